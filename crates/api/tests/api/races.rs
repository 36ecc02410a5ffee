//! What happens at the same time.

use std::time::{Duration, Instant};

use futures::future::join_all;
use hearth_store::Limits;
use hearth_types::SandboxId;
use tokio::task::JoinSet;

use crate::client::Answer;
use crate::fake_node::{OnCreate, OnDelete, State};
use crate::world::{LIMITS, World};

const BASE: &str = r#"{"templateID":"base"}"#;

fn count(answers: &[Answer], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status.as_u16() == status).count()
}

/// A create that hangs on the node; returns the id that nobody was told, and the answer to come.
async fn hanging(world: &World) -> (SandboxId, tokio::task::JoinHandle<Answer>) {
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let before = world.node.state().creates.len();
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    let state = world.node.until("a create arrived", |state| state.creates.len() > before).await;
    (state.creates[before].sandbox_id.clone(), creating)
}

#[tokio::test]
async fn a_kill_during_a_create_wins() {
    let world = World::start().await;
    let (id, creating) = hanging(&world).await;
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    creating.await.expect("no panic").assert_error(409, "killed");
    world.assert_nothing_left().await;
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_error(404, "sandbox not found");
}

#[tokio::test]
async fn a_sandbox_that_is_being_created_is_not_seen_yet() {
    let world = World::start().await;
    let (id, creating) = hanging(&world).await;
    let path = format!("/sandboxes/{id}");
    world.client.get(&path).await.assert_error(404, "sandbox not found");
    assert_eq!(world.client.get("/v2/sandboxes").await.json(), serde_json::json!([]));
    world.client.post(&format!("{path}/timeout"), r#"{"timeout":5}"#).await.assert_error(409, "being started");
    world.client.post(&format!("{path}/refreshes"), "").await.assert_error(409, "being started");
    // A connect waits for it.
    let (client, connect) = (world.client.clone(), format!("/v2{path}/connect"));
    let connecting = tokio::spawn(async move { client.post(&connect, "").await });
    world.client.get("/health").await.assert_status(200);
    assert!(!connecting.is_finished());
    world.node.change(|state| state.on_create = OnCreate::Start);
    let created = creating.await.expect("no panic").assert_status(201);
    assert_eq!(connecting.await.expect("no panic").assert_status(200).json(), created.json());
}

#[tokio::test]
async fn a_connect_that_waits_for_a_sandbox_that_fails_finds_none() {
    let world = World::start().await;
    let (id, creating) = hanging(&world).await;
    let (client, connect) = (world.client.clone(), format!("/v2/sandboxes/{id}/connect"));
    let connecting = tokio::spawn(async move { client.post(&connect, "").await });
    world.client.get("/health").await.assert_status(200);
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    creating.await.expect("no panic").assert_error(409, "killed");
    let answer = connecting.await.expect("no panic");
    // Depending on when it looks: in the middle of the kill, or after it.
    assert!([404, 409].contains(&answer.status.as_u16()), "{answer:?}");
}

#[tokio::test]
async fn exactly_the_limit_wins() {
    let world = World::start().await;
    let answers = join_all((0..50).map(|_| world.create(BASE))).await;
    assert_eq!((count(&answers, 201), count(&answers, 429)), (20, 30));
    let refused = answers.iter().find(|answer| answer.status == 429).expect("thirty").clone();
    let refused = refused.assert_error(429, "maximum number of concurrent sandboxes, 20");
    assert_eq!(refused.header("should-retry"), Some("false"));
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(world.node.state().creates.len(), 20, "the others never reached a node");
    // Another team is not concerned.
    let (_, other) = world.other_team("other", LIMITS).await;
    other.post("/v2/sandboxes", BASE).await.assert_status(201);
    // A place is free with the answer to the kill.
    let id = world.store.sandboxes().await.expect("reads")[0].sandbox_id.clone();
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.create(BASE).await.assert_status(201);
    world.create(BASE).await.assert_error(429, "");
}

#[tokio::test]
async fn a_team_at_its_limit_is_refused_while_others_write() {
    let world = World::start().await;
    for _ in 0..LIMITS.sandboxes_max {
        world.running().await;
    }
    let lock = world.write_lock().await;
    // Well below the time for which a write would wait for the lock.
    let since = Instant::now();
    let refused = tokio::time::timeout(Duration::from_secs(2), world.create(BASE)).await;
    assert!(since.elapsed() >= Duration::from_millis(200), "clients that poll are slowed down");
    refused.expect("needs no write").assert_error(429, "maximum number of concurrent sandboxes, 20");
    lock.release().await;
    let id = world.store.sandboxes().await.expect("reads")[0].sandbox_id.clone();
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.create(BASE).await.assert_status(201);
}

#[tokio::test]
async fn creates_of_one_team_leave_room_for_others() {
    /// More than the server has under way at once.
    const CREATES: usize = 600;
    /// What of them one team may have under way.
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
    world.node.until("the team has its share", |state| of_churner(state) >= SHARE).await;
    // Those on the node hang, so these are the others.
    for _ in 0..CREATES - 2 * SHARE {
        let refused = creating.join_next().await.expect("more").expect("no panic");
        let refused = refused.assert_error(503, "too many sandboxes are being created");
        assert_eq!(refused.header("should-retry"), Some("true"));
    }
    let client = world.client.clone();
    let other = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    world.node.until("the other team's create reached the node", |state| state.creates.len() > of_churner(state)).await;
    world.node.change(|state| state.on_create = OnCreate::Start);
    other.await.expect("no panic").assert_status(201);
    let answers = creating.join_all().await;
    assert_eq!(count(&answers, 201) + count(&answers, 503), 2 * SHARE);
}

#[tokio::test]
async fn kills_of_one_sandbox_at_once_end_it_once() {
    let world = World::start().await;
    let id = world.running().await;
    world.node.change(|state| state.on_delete = OnDelete::Hang);
    let path = format!("/sandboxes/{id}");
    let (client, first) = (world.client.clone(), path.clone());
    let first = tokio::spawn(async move { client.delete(&first).await });
    world.node.until("the kill reached the node", |state| !state.deletes.is_empty()).await;
    // In the middle of the kill: as good as gone for everybody, and a second kill does not wait for the node.
    world.client.delete(&path).await.assert_status(204);
    assert_eq!(world.catalog.find(&id).await.expect("reads"), None);
    world.client.get(&path).await.assert_error(404, "sandbox not found");
    assert_eq!(world.client.get("/v2/sandboxes").await.json(), serde_json::json!([]));
    world.client.post(&format!("{path}/timeout"), r#"{"timeout":5}"#).await.assert_error(409, "being killed");
    world.client.post(&format!("{path}/refreshes"), "").await.assert_error(409, "being killed");
    world.client.post(&format!("/v2{path}/connect"), "").await.assert_error(409, "being killed");
    assert!(!first.is_finished());
    world.node.change(|state| state.on_delete = OnDelete::End);
    first.await.expect("no panic").assert_status(204);
    world.client.delete(&path).await.assert_error(404, "sandbox not found");
    assert_eq!(world.node.state().deletes.len(), 1);
    // Truly at the same time.
    let id = world.running().await;
    let path = format!("/sandboxes/{id}");
    let answers = join_all((0..10).map(|_| world.client.delete(&path))).await;
    assert!(count(&answers, 204) >= 1);
    assert_eq!(count(&answers, 204) + count(&answers, 404), 10, "{answers:?}");
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn requests_that_meet_a_kill_are_answered() {
    let world = World::start().await;
    for _ in 0..5 {
        let id = world.running().await;
        let path = format!("/sandboxes/{id}");
        let ask = |method: &'static str, suffix: &str, body: &'static str| {
            let (client, path) = (world.client.clone(), format!("{path}{suffix}"));
            async move { client.send(method, &path, &[], body).await }
        };
        let answers = tokio::join!(
            ask("POST", "/timeout", r#"{"timeout":100}"#),
            ask("POST", "/connect", r#"{"timeout":100}"#),
            ask("POST", "/refreshes", ""),
            ask("DELETE", "", ""),
            ask("POST", "/timeout", r#"{"timeout":0}"#),
            ask("GET", "", ""),
        );
        let (timeout, connect, refresh, kill, zero, get) = answers;
        for answer in [timeout, connect, refresh, zero, get] {
            assert!([200, 204, 404, 409].contains(&answer.status.as_u16()), "{answer:?}");
        }
        assert!([204, 404].contains(&kill.status.as_u16()), "{kill:?}");
        world.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn timeouts_and_connects_at_once_leave_one_of_their_ends() {
    let world = World::start().await;
    let id = world.running().await;
    let path = format!("/sandboxes/{id}");
    let answers = join_all((0..40).map(|index| {
        let client = world.client.clone();
        let (path, body) = if index % 2 == 0 {
            (format!("{path}/timeout"), format!(r#"{{"timeout":{}}}"#, 500 + index))
        } else {
            (format!("{path}/connect"), format!(r#"{{"timeout":{}}}"#, 100 + index))
        };
        async move { client.post(&path, &body).await }
    }))
    .await;
    assert_eq!((count(&answers, 204), count(&answers, 200)), (20, 20));
    let detail = world.client.get(&path).await.assert_status(200).json();
    let at = |member: &str| detail[member].as_str().expect(member).parse::<jiff::Timestamp>().expect(member);
    // Every timeout is longer than every connect, so no connect can be the one that counts.
    assert!(at("endAt").duration_since(at("startedAt")).as_secs() >= 500);
}

#[tokio::test]
async fn many_creates_and_kills_leave_nothing() {
    let world = World::start().await;
    for round in 0..5 {
        // Every other round some of the creates fail.
        let on_create = if round % 2 == 0 { OnCreate::Start } else { OnCreate::Fail };
        world.node.change(|state| state.on_create = on_create);
        let answers = join_all((0..10).map(|_| world.create(BASE))).await;
        let ids = answers.iter().filter(|answer| answer.status == 201).map(|answer| answer.text_of("sandboxID"));
        for answer in join_all(ids.map(|id| {
            let client = world.client.clone();
            async move { client.delete(&format!("/sandboxes/{id}")).await }
        }))
        .await
        {
            answer.assert_status(204);
        }
        world.assert_nothing_left().await;
    }
}
