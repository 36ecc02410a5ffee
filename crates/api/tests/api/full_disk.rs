//! Behaviour with a full disk, and after space was freed.

use crate::small_disk::SmallDisk;
use crate::world::{World, config};

/// Number of requests of each kind while the disk is full, and afterwards.
const TIMES: usize = 8;

#[tokio::test]
async fn a_full_disk_is_reported_and_has_no_lasting_effect() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    let folder = tempfile::tempdir_in(disk.path()).expect("a folder");
    let world = World::in_folder(config(), &["node-1"], folder).await;
    let (id, killed) = (world.running().await, world.running().await);
    let (_, token) = world.user("ada@example.com", &[&world.team]).await;
    let bearer = format!("Bearer {token}");
    let teams = async || world.client_with(None).send("GET", "/teams", &[("authorization", &bearer)], "").await;
    let create = r#"{"templateID":"base"}"#;
    disk.fill();
    for _ in 0..TIMES {
        let rejected = world.create(create).await.assert_error(503, "disk of the server's database is full");
        assert_eq!(rejected.json()["error_code"], "storage_full");
        assert_eq!(rejected.header("should-retry"), Some("false"));
        let path = format!("/sandboxes/{id}");
        world.client.post(&format!("{path}/timeout"), r#"{"timeout":60}"#).await.assert_error(503, "is full");
        let named = [("content-type", "application/json"), ("idempotency-key", "a-1")];
        world.client.send("POST", "/v2/sandboxes", &named, create).await.assert_error(503, "is full");
        assert_eq!(teams().await.assert_error(500, "is full").json()["error_code"], "storage_full");
        world.client.get(&path).await.assert_status(200);
        world.client.get("/v2/sandboxes").await.assert_status(200);
    }
    // The node kills the sandbox anyway. Its row is deleted when there is space.
    world.client.delete(&format!("/sandboxes/{killed}")).await.assert_error(503, "is full");
    assert_eq!(world.node.state().sandboxes.len(), 1);
    disk.free_space();
    for _ in 0..TIMES {
        world.create(create).await.assert_status(201);
        teams().await.assert_status(200);
        world.client.post(&format!("/sandboxes/{id}/timeout"), r#"{"timeout":60}"#).await.assert_status(204);
    }
    world
        .eventually("the killed sandbox is released", async || {
            let rows = world.store.sandboxes().await.expect("reads");
            if rows.iter().any(|row| row.sandbox_id == killed) { Err(format!("{rows:?}")) } else { Ok(()) }
        })
        .await;
}
