//! Stops and restarts of the daemon.

use hearth_store::SandboxState;
use jiff::Timestamp;

use crate::fake_node::OnCreate;
use crate::world::World;

const BASE: &str = r#"{"templateID":"base"}"#;

#[tokio::test]
async fn running_sandboxes_survive_a_restart() {
    let mut world = World::start().await;
    let created = world.create(r#"{"templateID":"base","metadata":{"a":"b"}}"#).await.assert_status(201);
    let id = created.text_of("sandboxID");
    let path = format!("/sandboxes/{id}");
    let before = world.client.get(&path).await.assert_status(200).json();
    world.restart().await;
    assert_eq!(
        world.client.get(&path).await.assert_status(200).json(),
        before,
        "the description stays the same, including tokens and times"
    );
    world
        .eventually("its route is published again", async || {
            let route = world.catalog.find(&id.parse().expect("an id")).await.expect("reads");
            route.map(drop).ok_or_else(|| "no route".to_owned())
        })
        .await;
    let connected = world.client.post(&format!("/v2{path}/connect"), "").await.assert_status(200);
    assert_eq!(connected.json(), created.json());
    world.client.delete(&path).await.assert_status(204);
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn timers_survive_a_restart() {
    let mut world = World::start().await;
    let id = world.create(r#"{"templateID":"base","timeout":3}"#).await.assert_status(201).text_of("sandboxID");
    let other = world.running().await;
    let detail = world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200).json();
    let end: Timestamp = detail["endAt"].as_str().expect("a time").parse().expect("a time");
    world.restart().await;
    let state = world.node.wait_for("the sandbox expires", |state| !state.deletes.is_empty()).await;
    assert!(Timestamp::now() >= end);
    assert_eq!(state.deletes[0].0.as_str(), id);
    world.client.get(&format!("/sandboxes/{other}")).await.assert_status(200);
}

#[tokio::test]
async fn sandboxes_that_expired_while_the_daemon_was_stopped_are_killed() {
    let mut world = World::start().await;
    let id = world.running().await;
    world.stop_server().await;
    let row = world.store.sandbox(&id).await.expect("reads").expect("a row");
    world.store.set_sandbox_end(&id, row.execution_id, Timestamp::now()).await.expect("written");
    world.start_server().await;
    world.wait_until_deleted(&id).await;
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn sandboxes_lost_by_a_node_while_the_daemon_was_stopped_are_deleted() {
    let mut world = World::start().await;
    let id = world.running().await;
    world.stop_server().await;
    world.node.crash().await;
    world.node.listen();
    world.start_server().await;
    world.wait_until_deleted(&id).await;
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn interrupted_creates_and_kills_are_cleaned_up() {
    let mut world = World::start().await;
    let (creating, killing) = (world.running().await, world.running().await);
    world.stop_server().await;
    // Simulate that the daemon was killed during a create and during a kill.
    for (id, state) in [(&creating, SandboxState::Creating), (&killing, SandboxState::Killing)] {
        world.sql(&format!("UPDATE sandbox SET state = '{}' WHERE id = '{id}'", state.as_str())).await;
    }
    world.start_server().await;
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn a_stop_during_a_create_is_reported_and_cleaned_up() {
    let mut world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    world.node.wait_for("a create arrived", |state| !state.creates.is_empty()).await;
    world.stop_server().await;
    // The reply may be lost, because the test closes the listener immediately.
    if let Ok(reply) = creating.await {
        let reply = reply.assert_error(503, "shutting down");
        assert_eq!(reply.header("should-retry"), Some("true"));
    }
    world.node.change(|state| state.on_create = OnCreate::Start);
    world.start_server().await;
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn sandboxes_of_a_removed_node_are_deleted() {
    let mut world = World::start().await;
    let id = world.running().await;
    world.stop_server().await;
    world.sql(&format!("UPDATE sandbox SET node_id = 'retired' WHERE id = '{id}'")).await;
    world.start_server().await;
    world.wait_until_deleted(&id).await;
    // On its real node, the sandbox is an orphan.
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn a_server_starts_without_its_nodes() {
    let mut world = World::start().await;
    let id = world.running().await;
    world.stop_server().await;
    world.node.crash().await;
    world.start_server().await;
    world.client.get("/health").await.assert_status(200);
    world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200);
    let reply = world.create(BASE).await.assert_error(503, "no reachable node");
    assert_eq!(reply.header("should-retry"), Some("true"));
    assert_eq!(reply.json()["error_code"], "sandbox_capacity_unavailable");
    world.node.listen();
    world.wait_until_deleted(&id).await;
    let client = world.client.clone();
    world
        .eventually("creates work", async || {
            let reply = client.post("/v2/sandboxes", BASE).await;
            if reply.status == 201 { Ok(()) } else { Err(format!("{reply:?}")) }
        })
        .await;
}
