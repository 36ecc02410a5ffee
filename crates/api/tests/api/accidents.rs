//! What goes wrong on nodes and between.

use std::time::Duration;

use hearth_types::{BuildId, ExecutionId, Ingress, Route, SandboxId, SandboxSpec, TemplateId};

use crate::fake_node::{OnCreate, OnDelete};
use crate::world::{World, config};

const BASE: &str = r#"{"templateID":"base"}"#;

#[tokio::test]
async fn a_sandbox_that_ends_by_itself_is_gone() {
    let world = World::start().await;
    let (dying, living) = (world.running().await, world.running().await);
    world.node.end(&dying, "the guest shut down");
    world.until_gone(&dying).await;
    world
        .eventually("its route is gone", async || {
            let route = world.catalog.find(&dying).await.expect("reads");
            if route.is_none() { Ok(()) } else { Err(format!("{route:?}")) }
        })
        .await;
    world.client.get(&format!("/sandboxes/{living}")).await.assert_status(200);
    assert!(world.catalog.find(&living).await.expect("reads").is_some());
    assert!(world.node.state().deletes.is_empty(), "there was nothing left to delete");
}

#[tokio::test]
async fn a_sandbox_that_vanishes_without_a_word_is_found_out() {
    let world = World::start().await;
    let (vanished, living) = (world.running().await, world.running().await);
    world.node.lose(&vanished);
    world.until_gone(&vanished).await;
    world.client.get(&format!("/sandboxes/{living}")).await.assert_status(200);
}

#[tokio::test]
async fn a_sandbox_that_nobody_knows_is_ended() {
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
    let state = world.node.until("the orphan was ended", |state| !state.deletes.is_empty()).await;
    assert_eq!(state.deletes[0], (orphan.sandbox_id.clone(), orphan.execution_id));
    let state = world.node.until("it is gone", |state| state.sandboxes.len() == 1).await;
    assert!(state.sandboxes.contains_key(&known));
}

#[tokio::test]
async fn sandboxes_that_are_being_created_are_no_orphans() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    let lists = world.node.until("a create arrived", |state| !state.creates.is_empty()).await.lists;
    world.node.until("several comparisons went by", |state| state.lists >= lists + 3).await;
    world.node.change(|state| state.on_create = OnCreate::Start);
    creating.await.expect("no panic").assert_status(201);
    assert!(world.node.state().deletes.is_empty());
}

#[tokio::test]
async fn a_route_to_nowhere_is_removed() {
    let world = World::start().await;
    let known = world.running().await;
    let route = Route {
        sandbox_id: SandboxId::generate(),
        execution_id: ExecutionId::generate(),
        team_id: world.team.id,
        node_id: world.node.as_node().id,
        node_proxy: world.node.as_node().proxy,
        ingress: Ingress::open(),
        traffic_token: None,
    };
    world.catalog.publish(route, Duration::from_secs(60), None).await.expect("published");
    world
        .eventually("it is removed", async || {
            let routes = world.catalog.list().await.expect("reads");
            if routes.len() == 1 && routes[0].sandbox_id == known { Ok(()) } else { Err(format!("{routes:?}")) }
        })
        .await;
}

#[tokio::test]
async fn routes_live_as_long_as_their_node_confirms_them() {
    // A lease is several comparisons long.
    let config = hearth_api::Config { route_lease: Duration::from_secs(2), ..config() };
    let world = World::with(config).await;
    let id = world.running().await;
    let lists = world.node.state().lists;
    world.node.until("more than a lease went by", |state| state.lists >= lists + 25).await;
    assert!(world.catalog.find(&id).await.expect("reads").is_some(), "it was renewed");
    // A route that is lost comes back.
    let execution = world.node.state().sandboxes[&id].execution_id;
    assert!(world.catalog.remove(&id, execution).await.expect("removed"));
    world
        .eventually("it is published again", async || {
            world.catalog.find(&id).await.expect("reads").map(drop).ok_or_else(|| "no route".to_owned())
        })
        .await;
    // Nobody vouches for the sandboxes of a node that is out of reach.
    let row = world.store.sandbox(&id).await.expect("reads").expect("a row");
    world.node.die().await;
    world
        .eventually("the lease ended", async || {
            let route = world.catalog.find(&id).await.expect("reads");
            if route.is_none() { Ok(()) } else { Err("there still is a route".to_owned()) }
        })
        .await;
    assert_eq!(world.store.sandbox(&id).await.expect("reads"), Some(row), "whether it runs is not known");
}

#[tokio::test]
async fn a_node_that_dies_in_the_middle_of_a_create_leaves_nothing() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    world.node.until("a create arrived", |state| !state.creates.is_empty()).await;
    world.node.die().await;
    let answer = creating.await.expect("no panic").assert_error(503, "lost");
    assert_eq!(answer.header("should-retry"), Some("true"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    // Nobody can be asked now, so the row stays to remember, and clients do not see it.
    assert_eq!(world.client.get("/v2/sandboxes").await.json(), serde_json::json!([]));
    world
        .eventually("creates fail at once", async || {
            let answer = world.create(BASE).await;
            if answer.text.contains("no node can be reached") { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
    world.node.change(|state| state.on_create = OnCreate::Start);
    world.node.listen();
    world.assert_nothing_left().await;
    world
        .eventually("creates work again", async || {
            let answer = world.create(BASE).await;
            if answer.status == 201 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
}

#[tokio::test]
async fn a_node_that_restarts_has_nothing_and_so_do_we() {
    let world = World::start().await;
    let ids = [world.running().await, world.running().await];
    world.node.die().await;
    world.node.listen();
    for id in &ids {
        world.until_gone(id).await;
    }
    world.assert_nothing_left().await;
    world
        .eventually("creates work again", async || {
            let answer = world.create(BASE).await;
            if answer.status == 201 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
}

#[tokio::test]
async fn a_node_that_hangs_is_given_up() {
    let world = World::with(hearth_api::Config { create_budget: Duration::from_millis(200), ..config() }).await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let answer = world.create(BASE).await.assert_error(504, "too long");
    assert_eq!(answer.json()["error_code"], "sandbox_placement_timeout");
    assert_eq!(answer.header("should-retry"), Some("false"));
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn a_kill_that_fails_is_told_and_tried_until_it_succeeds() {
    let world = World::start().await;
    let id = world.running().await;
    let path = format!("/sandboxes/{id}");
    world.node.change(|state| state.on_delete = OnDelete::Fail);
    world.client.delete(&path).await.assert_error(500, "did not confirm");
    // For clients it is gone, and killing it again is no news.
    world.client.get(&path).await.assert_error(404, "sandbox not found");
    assert_eq!(world.catalog.find(&id).await.expect("reads"), None);
    world.client.delete(&path).await.assert_status(204);
    world.node.change(|state| state.on_delete = OnDelete::End);
    world.assert_nothing_left().await;
    world.client.delete(&path).await.assert_error(404, "sandbox not found");
}

#[tokio::test]
async fn an_expiry_on_a_node_that_is_down_is_made_good() {
    let world = World::start().await;
    let id = world.running().await;
    world.node.change(|state| state.on_delete = OnDelete::Fail);
    world.client.post(&format!("/sandboxes/{id}/timeout"), r#"{"timeout":1}"#).await.assert_status(204);
    world.node.until("it was tried more than once", |state| state.deletes.len() >= 2).await;
    world.until_gone(&id).await;
    assert_eq!(world.catalog.find(&id).await.expect("reads"), None);
    world.node.change(|state| state.on_delete = OnDelete::End);
    world.assert_nothing_left().await;
}
