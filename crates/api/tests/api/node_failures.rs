//! Failures of nodes, and differences between nodes, rows and routes.

use std::collections::BTreeSet;
use std::time::Duration;

use hearth_types::{BuildId, ExecutionId, Route, SandboxId, SandboxSpec, TemplateId, Visitors};

use crate::fake_node::{OnCreate, OnDelete};
use crate::world::{World, config};

const BASE: &str = r#"{"templateID":"base"}"#;

#[tokio::test]
async fn a_sandbox_that_exits_is_deleted() {
    let world = World::start().await;
    let (exiting, running) = (world.running().await, world.running().await);
    world.node.exit(&exiting, "the guest shut down");
    world.wait_until_deleted(&exiting).await;
    world
        .eventually("its route is removed", async || {
            let route = world.catalog.find(&exiting).await.expect("reads");
            if route.is_none() { Ok(()) } else { Err(format!("{route:?}")) }
        })
        .await;
    world.client.get(&format!("/sandboxes/{running}")).await.assert_status(200);
    assert!(world.catalog.find(&running).await.expect("reads").is_some());
    assert!(world.node.state().deletes.is_empty(), "the node gets no delete for a sandbox that exited");
}

#[tokio::test]
async fn a_sandbox_that_disappears_without_an_event_is_deleted() {
    let world = World::start().await;
    let (lost, running) = (world.running().await, world.running().await);
    world.node.lose(&lost);
    world.wait_until_deleted(&lost).await;
    world.client.get(&format!("/sandboxes/{running}")).await.assert_status(200);
}

#[tokio::test]
async fn an_orphan_is_killed() {
    let world = World::start().await;
    let known = world.running().await;
    let orphan = SandboxSpec {
        sandbox_id: SandboxId::generate(),
        execution_id: ExecutionId::generate(),
        team_id: world.team.id,
        template_id: TemplateId::generate(),
        build_id: BuildId::generate(),
        env_vars: std::collections::BTreeMap::new(),
        envd_access_token: None,
        internet_access: true,
    };
    world.node.change(|state| {
        state.sandboxes.insert(orphan.sandbox_id.clone(), orphan.clone());
    });
    let state = world.node.wait_for("the orphan gets a delete", |state| !state.deletes.is_empty()).await;
    assert_eq!(state.deletes[0], (orphan.sandbox_id.clone(), orphan.execution_id));
    let state = world.node.wait_for("the orphan is deleted", |state| state.sandboxes.len() == 1).await;
    assert!(state.sandboxes.contains_key(&known));
}

#[tokio::test]
async fn sandboxes_in_creation_are_not_orphans() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    let lists = world.node.wait_for("a create arrived", |state| !state.creates.is_empty()).await.lists;
    world.node.wait_for("several comparisons have finished", |state| state.lists >= lists + 3).await;
    world.node.change(|state| state.on_create = OnCreate::Start);
    creating.await.expect("no panic").assert_status(201);
    assert!(world.node.state().deletes.is_empty());
}

#[tokio::test]
async fn a_route_without_a_sandbox_is_removed() {
    let world = World::start().await;
    let known = world.running().await;
    let route = Route {
        sandbox_id: SandboxId::generate(),
        execution_id: ExecutionId::generate(),
        team_id: world.team.id,
        node_id: world.node.as_node().id,
        node_proxy: world.node.as_node().proxy,
        visitors: Visitors::All,
        host_mask: None,
        https_ports: BTreeSet::new(),
    };
    world.catalog.publish(route, Duration::from_secs(60), None).await.expect("published");
    world
        .eventually("the route is removed", async || {
            let routes = world.catalog.list().await.expect("reads");
            if routes.len() == 1 && routes[0].sandbox_id == known { Ok(()) } else { Err(format!("{routes:?}")) }
        })
        .await;
}

#[tokio::test]
async fn routes_are_renewed_while_their_node_confirms_them() {
    // The lease is longer than several intervals between comparisons.
    let config = hearth_api::Config { route_lease: Duration::from_secs(2), ..config() };
    let world = World::with(config).await;
    let id = world.running().await;
    let lists = world.node.state().lists;
    world.node.wait_for("more time than the lease has passed", |state| state.lists >= lists + 25).await;
    assert!(world.catalog.find(&id).await.expect("reads").is_some(), "the route was renewed");
    // A lost route is published again.
    let execution = world.node.state().sandboxes[&id].execution_id;
    assert!(world.catalog.remove(&id, execution).await.expect("removed"));
    world
        .eventually("the route is published again", async || {
            world.catalog.find(&id).await.expect("reads").map(drop).ok_or_else(|| "no route".to_owned())
        })
        .await;
    // Routes to an unreachable node are not renewed.
    let row = world.store.sandbox(&id).await.expect("reads").expect("a row");
    world.node.crash().await;
    world
        .eventually("the lease expires", async || {
            let route = world.catalog.find(&id).await.expect("reads");
            if route.is_none() { Ok(()) } else { Err("the route still exists".to_owned()) }
        })
        .await;
    assert_eq!(
        world.store.sandbox(&id).await.expect("reads"),
        Some(row),
        "the sandbox may still run, so its row stays"
    );
}

#[tokio::test]
async fn a_node_crash_during_a_create_leaves_nothing() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    world.node.wait_for("a create arrived", |state| !state.creates.is_empty()).await;
    world.node.crash().await;
    let reply = creating.await.expect("no panic").assert_error(503, "lost");
    assert_eq!(reply.header("should-retry"), Some("true"));
    assert_eq!(reply.header("retry-after"), Some("1"));
    // The node is unreachable, so the row stays for a later delete. Clients do not see the sandbox.
    assert_eq!(world.client.get("/v2/sandboxes").await.json(), serde_json::json!([]));
    world
        .eventually("creates fail immediately", async || {
            let reply = world.create(BASE).await;
            if reply.text.contains("no reachable node") { Ok(()) } else { Err(format!("{reply:?}")) }
        })
        .await;
    world.node.change(|state| state.on_create = OnCreate::Start);
    world.node.listen();
    world.assert_no_leftovers().await;
    world
        .eventually("creates work again", async || {
            let reply = world.create(BASE).await;
            if reply.status == 201 { Ok(()) } else { Err(format!("{reply:?}")) }
        })
        .await;
}

#[tokio::test]
async fn sandboxes_of_a_restarted_node_are_deleted() {
    let world = World::start().await;
    let ids = [world.running().await, world.running().await];
    world.node.crash().await;
    world.node.listen();
    for id in &ids {
        world.wait_until_deleted(id).await;
    }
    world.assert_no_leftovers().await;
    world
        .eventually("creates work again", async || {
            let reply = world.create(BASE).await;
            if reply.status == 201 { Ok(()) } else { Err(format!("{reply:?}")) }
        })
        .await;
}

#[tokio::test]
async fn a_create_on_a_hanging_node_times_out() {
    let world = World::with(hearth_api::Config { create_budget: Duration::from_millis(200), ..config() }).await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let reply = world.create(BASE).await.assert_error(504, "too long");
    assert_eq!(reply.json()["error_code"], "sandbox_placement_timeout");
    assert_eq!(reply.header("should-retry"), Some("false"));
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn a_failed_kill_is_reported_and_retried() {
    let world = World::start().await;
    let id = world.running().await;
    let path = format!("/sandboxes/{id}");
    world.node.change(|state| state.on_delete = OnDelete::Fail);
    world.client.delete(&path).await.assert_error(500, "did not confirm");
    // Clients no longer see the sandbox, and a second kill succeeds.
    world.client.get(&path).await.assert_error(404, "sandbox not found");
    assert_eq!(world.catalog.find(&id).await.expect("reads"), None);
    world.client.delete(&path).await.assert_status(204);
    world.node.change(|state| state.on_delete = OnDelete::Succeed);
    world.assert_no_leftovers().await;
    world.client.delete(&path).await.assert_error(404, "sandbox not found");
}

#[tokio::test]
async fn an_expiry_whose_delete_fails_is_retried() {
    let world = World::start().await;
    let id = world.running().await;
    world.node.change(|state| state.on_delete = OnDelete::Fail);
    world.client.post(&format!("/sandboxes/{id}/timeout"), r#"{"timeout":1}"#).await.assert_status(204);
    world.node.wait_for("the delete is retried", |state| state.deletes.len() >= 2).await;
    world.wait_until_deleted(&id).await;
    assert_eq!(world.catalog.find(&id).await.expect("reads"), None);
    world.node.change(|state| state.on_delete = OnDelete::Succeed);
    world.assert_no_leftovers().await;
}
