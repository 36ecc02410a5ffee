//! Concurrent requests.

use std::time::{Duration, Instant};

use futures::future::join_all;
use hearth_store::Limits;
use hearth_types::SandboxId;
use tokio::task::JoinSet;

use crate::client::Reply;
use crate::fake_node::{OnCreate, OnDelete, State};
use crate::world::{LIMITS, World};

const BASE: &str = r#"{"templateID":"base"}"#;

fn count(replies: &[Reply], status: u16) -> usize {
    replies.iter().filter(|reply| reply.status.as_u16() == status).count()
}

/// Starts a create that hangs on the node. Returns the sandbox ID and the task that receives the reply.
async fn hanging_create(world: &World) -> (SandboxId, tokio::task::JoinHandle<Reply>) {
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let before = world.node.state().creates.len();
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    let state = world.node.wait_for("a create arrived", |state| state.creates.len() > before).await;
    (state.creates[before].sandbox_id.clone(), creating)
}

#[tokio::test]
async fn a_kill_during_a_create_takes_precedence() {
    let world = World::start().await;
    let (id, creating) = hanging_create(&world).await;
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    creating.await.expect("no panic").assert_error(409, "killed");
    world.assert_no_leftovers().await;
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_error(404, "sandbox not found");
}

#[tokio::test]
async fn a_sandbox_in_creation_is_not_visible() {
    let world = World::start().await;
    let (id, creating) = hanging_create(&world).await;
    let path = format!("/sandboxes/{id}");
    world.client.get(&path).await.assert_error(404, "sandbox not found");
    assert_eq!(world.client.get("/v2/sandboxes").await.json(), serde_json::json!([]));
    world.client.post(&format!("{path}/timeout"), r#"{"timeout":5}"#).await.assert_error(409, "being started");
    world.client.post(&format!("{path}/refreshes"), "").await.assert_error(409, "being started");
    // A connect waits until the sandbox is created.
    let (client, connect) = (world.client.clone(), format!("/v2{path}/connect"));
    let connecting = tokio::spawn(async move { client.post(&connect, "").await });
    world.client.get("/health").await.assert_status(200);
    assert!(!connecting.is_finished());
    world.node.change(|state| state.on_create = OnCreate::Start);
    let created = creating.await.expect("no panic").assert_status(201);
    assert_eq!(connecting.await.expect("no panic").assert_status(200).json(), created.json());
}

#[tokio::test]
async fn a_waiting_connect_fails_when_the_sandbox_is_killed() {
    let world = World::start().await;
    let (id, creating) = hanging_create(&world).await;
    let (client, connect) = (world.client.clone(), format!("/v2/sandboxes/{id}/connect"));
    let connecting = tokio::spawn(async move { client.post(&connect, "").await });
    world.client.get("/health").await.assert_status(200);
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    creating.await.expect("no panic").assert_error(409, "killed");
    let reply = connecting.await.expect("no panic");
    // The connect checks the state either during the kill or after it.
    assert!([404, 409].contains(&reply.status.as_u16()), "{reply:?}");
}

#[tokio::test]
async fn concurrent_creates_succeed_up_to_the_limit() {
    let world = World::start().await;
    let replies = join_all((0..50).map(|_| world.create(BASE))).await;
    assert_eq!((count(&replies, 201), count(&replies, 429)), (20, 30));
    let rejected = replies.iter().find(|reply| reply.status == 429).expect("thirty").clone();
    let rejected = rejected.assert_error(429, "maximum number of concurrent sandboxes, 20");
    assert_eq!(rejected.header("should-retry"), Some("false"));
    assert_eq!(rejected.header("retry-after"), None);
    assert_eq!(world.node.state().creates.len(), 20, "the others never reached a node");
    // Another team is not affected.
    let (_, other) = world.other_team("other", LIMITS).await;
    other.post("/v2/sandboxes", BASE).await.assert_status(201);
    // A killed sandbox no longer counts when its kill was answered.
    let id = world.store.sandboxes().await.expect("reads")[0].sandbox_id.clone();
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.create(BASE).await.assert_status(201);
    world.create(BASE).await.assert_error(429, "");
}

#[tokio::test]
async fn a_team_at_its_limit_is_rejected_without_a_write() {
    let world = World::start().await;
    for _ in 0..LIMITS.sandboxes_max {
        world.running().await;
    }
    let lock = world.write_lock().await;
    // Well below the time that a write waits for the lock.
    let since = Instant::now();
    let rejected = tokio::time::timeout(Duration::from_secs(2), world.create(BASE)).await;
    assert!(since.elapsed() >= Duration::from_millis(200), "clients that poll are slowed down");
    rejected.expect("needs no write").assert_error(429, "maximum number of concurrent sandboxes, 20");
    lock.release().await;
    let id = world.store.sandboxes().await.expect("reads")[0].sandbox_id.clone();
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.create(BASE).await.assert_status(201);
}

#[tokio::test]
async fn creates_of_one_team_leave_room_for_others() {
    /// More than the server's limit of concurrent creates.
    const CREATES: usize = 600;
    /// Limit of concurrent creates of one team.
    const SHARE: usize = 128;
    let world = World::start().await;
    let limits = Limits { sandboxes_max: 2048, ..LIMITS };
    let (team, churner) = world.other_team("churner", limits).await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let mut creating = JoinSet::new();
    for _ in 0..CREATES {
        let client = churner.clone();
        creating.spawn(async move { client.post("/v2/sandboxes", BASE).await });
    }
    let of_churner = |state: &State| state.creates.iter().filter(|spec| spec.team_id == team.id).count();
    world.node.wait_for("the team has its share", |state| of_churner(state) >= SHARE).await;
    // The creates on the node hang, so these are the rejected ones.
    for _ in 0..CREATES - 2 * SHARE {
        let rejected = creating.join_next().await.expect("more").expect("no panic");
        let rejected = rejected.assert_error(503, "too many sandboxes are being created");
        assert_eq!(rejected.header("should-retry"), Some("true"));
    }
    let client = world.client.clone();
    let other = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    world
        .node
        .wait_for("the other team's create reached the node", |state| state.creates.len() > of_churner(state))
        .await;
    world.node.change(|state| state.on_create = OnCreate::Start);
    other.await.expect("no panic").assert_status(201);
    let replies = creating.join_all().await;
    assert_eq!(count(&replies, 201) + count(&replies, 503), 2 * SHARE);
}

#[tokio::test]
async fn concurrent_kills_of_one_sandbox_delete_it_once() {
    let world = World::start().await;
    let id = world.running().await;
    world.node.change(|state| state.on_delete = OnDelete::Hang);
    let path = format!("/sandboxes/{id}");
    let (client, first) = (world.client.clone(), path.clone());
    let first = tokio::spawn(async move { client.delete(&first).await });
    world.node.wait_for("the kill reached the node", |state| !state.deletes.is_empty()).await;
    // During the kill, clients do not see the sandbox, and a second kill does not wait for the node.
    world.client.delete(&path).await.assert_status(204);
    assert_eq!(world.catalog.find(&id).await.expect("reads"), None);
    world.client.get(&path).await.assert_error(404, "sandbox not found");
    assert_eq!(world.client.get("/v2/sandboxes").await.json(), serde_json::json!([]));
    world.client.post(&format!("{path}/timeout"), r#"{"timeout":5}"#).await.assert_error(409, "being killed");
    world.client.post(&format!("{path}/refreshes"), "").await.assert_error(409, "being killed");
    world.client.post(&format!("/v2{path}/connect"), "").await.assert_error(409, "being killed");
    assert!(!first.is_finished());
    world.node.change(|state| state.on_delete = OnDelete::Succeed);
    first.await.expect("no panic").assert_status(204);
    world.client.delete(&path).await.assert_error(404, "sandbox not found");
    assert_eq!(world.node.state().deletes.len(), 1);
    // Ten kills at the same time.
    let id = world.running().await;
    let path = format!("/sandboxes/{id}");
    let replies = join_all((0..10).map(|_| world.client.delete(&path))).await;
    assert!(count(&replies, 204) >= 1);
    assert_eq!(count(&replies, 204) + count(&replies, 404), 10, "{replies:?}");
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn requests_during_a_kill_are_answered() {
    let world = World::start().await;
    for _ in 0..5 {
        let id = world.running().await;
        let path = format!("/sandboxes/{id}");
        let send = |method: &'static str, suffix: &str, body: &'static str| {
            let (client, path) = (world.client.clone(), format!("{path}{suffix}"));
            async move { client.send(method, &path, &[], body).await }
        };
        let replies = tokio::join!(
            send("POST", "/timeout", r#"{"timeout":100}"#),
            send("POST", "/connect", r#"{"timeout":100}"#),
            send("POST", "/refreshes", ""),
            send("DELETE", "", ""),
            send("POST", "/timeout", r#"{"timeout":0}"#),
            send("GET", "", ""),
        );
        let (timeout, connect, refresh, kill, zero, get) = replies;
        for reply in [timeout, connect, refresh, zero, get] {
            assert!([200, 204, 404, 409].contains(&reply.status.as_u16()), "{reply:?}");
        }
        assert!([204, 404].contains(&kill.status.as_u16()), "{kill:?}");
        world.assert_no_leftovers().await;
    }
}

#[tokio::test]
async fn concurrent_timeouts_and_connects_set_one_of_their_end_times() {
    let world = World::start().await;
    let id = world.running().await;
    let path = format!("/sandboxes/{id}");
    let replies = join_all((0..40).map(|index| {
        let client = world.client.clone();
        let (path, body) = if index % 2 == 0 {
            (format!("{path}/timeout"), format!(r#"{{"timeout":{}}}"#, 500 + index))
        } else {
            (format!("{path}/connect"), format!(r#"{{"timeout":{}}}"#, 100 + index))
        };
        async move { client.post(&path, &body).await }
    }))
    .await;
    assert_eq!((count(&replies, 204), count(&replies, 200)), (20, 20));
    let detail = world.client.get(&path).await.assert_status(200).json();
    let at = |member: &str| detail[member].as_str().expect(member).parse::<jiff::Timestamp>().expect(member);
    // Every timeout is longer than every connect, so the end time is that of a timeout.
    assert!(at("endAt").duration_since(at("startedAt")).as_secs() >= 500);
}

#[tokio::test]
async fn many_creates_and_kills_leave_nothing() {
    let world = World::start().await;
    for round in 0..5 {
        // Creates fail in every other round.
        let on_create = if round % 2 == 0 { OnCreate::Start } else { OnCreate::Fail };
        world.node.change(|state| state.on_create = on_create);
        let replies = join_all((0..10).map(|_| world.create(BASE))).await;
        let ids = replies.iter().filter(|reply| reply.status == 201).map(|reply| reply.text_of("sandboxID"));
        for reply in join_all(ids.map(|id| {
            let client = world.client.clone();
            async move { client.delete(&format!("/sandboxes/{id}")).await }
        }))
        .await
        {
            reply.assert_status(204);
        }
        world.assert_no_leftovers().await;
    }
}
