//! The daemon stops and comes back.

use hearth_store::SandboxState;
use jiff::Timestamp;

use crate::fake_node::OnCreate;
use crate::world::World;

const BASE: &str = r#"{"templateID":"base"}"#;

#[tokio::test]
async fn running_sandboxes_live_through_a_restart() {
    let mut world = World::start().await;
    let created = world.create(r#"{"templateID":"base","metadata":{"a":"b"}}"#).await.assert_status(201);
    let id = created.text_of("sandboxID");
    let path = format!("/sandboxes/{id}");
    let before = world.client.get(&path).await.assert_status(200).json();
    world.restart().await;
    assert_eq!(world.client.get(&path).await.assert_status(200).json(), before, "the same, tokens and times included");
    world
        .eventually("its route is back", async || {
            let route = world.catalog.find(&id.parse().expect("an id")).await.expect("reads");
            route.map(drop).ok_or_else(|| "no route".to_owned())
        })
        .await;
    let connected = world.client.post(&format!("/v2{path}/connect"), "").await.assert_status(200);
    assert_eq!(connected.json(), created.json());
    world.client.delete(&path).await.assert_status(204);
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn timers_live_through_a_restart() {
    let mut world = World::start().await;
    let id = world.create(r#"{"templateID":"base","timeout":3}"#).await.assert_status(201).text_of("sandboxID");
    let kept = world.running().await;
    let detail = world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200).json();
    let end: Timestamp = detail["endAt"].as_str().expect("a time").parse().expect("a time");
    world.restart().await;
    let state = world.node.until("it expired", |state| !state.deletes.is_empty()).await;
    assert!(Timestamp::now() >= end);
    assert_eq!(state.deletes[0].0.as_str(), id);
    world.client.get(&format!("/sandboxes/{kept}")).await.assert_status(200);
}

#[tokio::test]
async fn what_expired_while_the_daemon_was_down_is_ended_by_the_next() {
    let mut world = World::start().await;
    let id = world.running().await;
    world.stop_server().await;
    let row = world.store.sandbox(&id).await.expect("reads").expect("a row");
    world.store.set_sandbox_end(&id, row.execution_id, Timestamp::now()).await.expect("written");
    world.start_server().await;
    world.until_gone(&id).await;
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn what_the_nodes_lost_meanwhile_is_gone() {
    let mut world = World::start().await;
    let id = world.running().await;
    world.stop_server().await;
    world.node.die().await;
    world.node.listen();
    world.start_server().await;
    world.until_gone(&id).await;
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn what_was_half_done_is_undone() {
    let mut world = World::start().await;
    let (creating, killing) = (world.running().await, world.running().await);
    world.stop_server().await;
    // As if the daemon had been killed in the middle of a create and of a kill.
    for (id, state) in [(&creating, SandboxState::Creating), (&killing, SandboxState::Killing)] {
        world.sql(&format!("UPDATE sandbox SET state = '{}' WHERE id = '{id}'", state.as_str())).await;
    }
    world.start_server().await;
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_create_is_told_and_cleared_up() {
    let mut world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    world.node.until("a create arrived", |state| !state.creates.is_empty()).await;
    world.stop_server().await;
    // Whether the answer still gets out is up to the listener, which this test takes down at once.
    if let Ok(answer) = creating.await {
        let answer = answer.assert_error(503, "shutting down");
        assert_eq!(answer.header("should-retry"), Some("true"));
    }
    world.node.change(|state| state.on_create = OnCreate::Start);
    world.start_server().await;
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn sandboxes_of_a_node_that_was_taken_out_are_given_up() {
    let mut world = World::start().await;
    let id = world.running().await;
    world.stop_server().await;
    world.sql(&format!("UPDATE sandbox SET node_id = 'retired' WHERE id = '{id}'")).await;
    world.start_server().await;
    world.until_gone(&id).await;
    // Where it still runs it is an orphan.
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn a_server_starts_without_its_nodes() {
    let mut world = World::start().await;
    let id = world.running().await;
    world.stop_server().await;
    world.node.die().await;
    world.start_server().await;
    world.client.get("/health").await.assert_status(200);
    world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200);
    let answer = world.create(BASE).await.assert_error(503, "no node can be reached");
    assert_eq!(answer.header("should-retry"), Some("true"));
    assert_eq!(answer.json()["error_code"], "sandbox_capacity_unavailable");
    world.node.listen();
    world.until_gone(&id).await;
    let client = world.client.clone();
    world
        .eventually("creates work", async || {
            let answer = client.post("/v2/sandboxes", BASE).await;
            if answer.status == 201 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
}
