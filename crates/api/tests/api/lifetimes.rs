//! Kill, timeout, refresh, connect and expiry.

use std::time::Duration;

use hearth_store::Limits;
use hearth_types::SandboxId;
use jiff::Timestamp;
use serde_json::Value;

use crate::world::{LIMITS, World};

async fn detail(world: &World, id: &SandboxId) -> Value {
    world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200).json()
}

async fn end_at(world: &World, id: &SandboxId) -> Timestamp {
    detail(world, id).await["endAt"].as_str().expect("a time").parse().expect("a time")
}

/// Returns the whole seconds from the time of a request to the sandbox's end time, independent of the test's speed.
async fn seconds_left(world: &World, id: &SandboxId, requested_at: Timestamp) -> i64 {
    end_at(world, id).await.duration_since(requested_at).as_secs()
}

#[tokio::test]
async fn a_kill_leaves_nothing_and_later_requests_reply_404() {
    let world = World::start().await;
    let id = world.running().await;
    let path = format!("/sandboxes/{id}");
    let reply = world.client.delete(&path).await.assert_status(204);
    assert_eq!(reply.text, "");
    // Everything is deleted before the reply.
    assert!(world.node.state().sandboxes.is_empty());
    assert_eq!(world.catalog.find(&id).await.expect("reads"), None);
    assert_eq!(world.store.sandboxes().await.expect("reads"), []);
    assert_eq!(world.client.get("/v2/sandboxes").await.json(), Value::Array(Vec::new()));
    for (method, path, body) in [
        ("DELETE", path.clone(), ""),
        ("GET", path.clone(), ""),
        ("POST", format!("{path}/timeout"), r#"{"timeout":5}"#),
        ("POST", format!("{path}/refreshes"), ""),
        ("POST", format!("{path}/connect"), r#"{"timeout":5}"#),
        ("POST", format!("/v2{path}/connect"), ""),
    ] {
        world.client.send(method, &path, &[], body).await.assert_error(404, "sandbox not found");
    }
    assert_eq!(world.node.state().deletes.len(), 1, "the node gets one delete");
}

#[tokio::test]
async fn a_timeout_extends_or_shortens_and_is_capped() {
    let world = World::start().await;
    let id = world.running().await;
    let path = format!("/sandboxes/{id}/timeout");
    let started: Timestamp = detail(&world, &id).await["startedAt"].as_str().expect("a time").parse().expect("a time");
    for timeout in [1000, 50, 500] {
        let before = Timestamp::now();
        world.client.post(&path, &format!(r#"{{"timeout":{timeout}}}"#)).await.assert_status(204);
        let left = seconds_left(&world, &id, before).await;
        assert!((timeout - 1..timeout + 30).contains(&left), "{timeout}: {left}");
    }
    world.client.post(&path, r#"{"timeout":2147483647}"#).await.assert_status(204);
    assert_eq!(end_at(&world, &id).await.duration_since(started).as_secs(), 86_400, "capped to the team's maximum");
    for body in ["", "{}", "{", r#"{"timeout":"5"}"#, r#"{"timeout":null}"#, r#"{"timeout":2147483648}"#] {
        world.client.post(&path, body).await.assert_error(400, "validation error: ");
    }
}

#[tokio::test]
async fn a_sandbox_at_its_maximum_length_cannot_be_extended() {
    let world = World::start().await;
    let id = world.running().await;
    // Reduce the team's limit below the sandbox's age.
    world.sql("UPDATE team SET sandbox_length_max_ms = 0 WHERE slug = 'first'").await;
    let path = format!("/sandboxes/{id}");
    world.client.post(&format!("{path}/timeout"), r#"{"timeout":5}"#).await.assert_error(400, "maximum length");
    world
        .client
        .post(&format!("{path}/connect"), r#"{"timeout":5}"#)
        .await
        .assert_error(400, "Timeout cannot be greater than 0 hours");
    let before = end_at(&world, &id).await;
    world.client.post(&format!("{path}/refreshes"), "").await.assert_status(204);
    assert_eq!(end_at(&world, &id).await, before);
    world.client.post(&format!("{path}/timeout"), r#"{"timeout":0}"#).await.assert_status(204);
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn a_refresh_never_shortens() {
    let world = World::start().await;
    let id = world.running().await;
    let path = format!("/sandboxes/{id}");
    let before = detail(&world, &id).await["endAt"].clone();
    for body in ["", "{}", "null", r#"{"duration":0}"#, r#"{"duration":15}"#, r#"{"duration":null}"#] {
        world.client.post(&format!("{path}/refreshes"), body).await.assert_status(204);
        assert_eq!(detail(&world, &id).await["endAt"], before, "{body}");
    }
    let requested_at = Timestamp::now();
    world.client.post(&format!("{path}/refreshes"), r#"{"duration":1000}"#).await.assert_status(204);
    assert!(seconds_left(&world, &id, requested_at).await >= 999);
    for body in [r#"{"duration":-1}"#, r#"{"duration":3601}"#, r#"{"duration":"x"}"#, "{"] {
        world.client.post(&format!("{path}/refreshes"), body).await.assert_error(400, "validation error: ");
    }
    // A duration below 15 seconds counts as 15 seconds.
    world.client.post(&format!("{path}/timeout"), r#"{"timeout":5}"#).await.assert_status(204);
    let requested_at = Timestamp::now();
    world.client.post(&format!("{path}/refreshes"), r#"{"duration":1}"#).await.assert_status(204);
    assert!(seconds_left(&world, &id, requested_at).await >= 14);
}

#[tokio::test]
async fn connect_returns_the_same_sandbox_and_never_shortens_its_lifetime() {
    let world = World::start().await;
    let created = world.create(r#"{"templateID":"base","timeout":1000}"#).await.assert_status(201);
    let id: SandboxId = created.text_of("sandboxID").parse().expect("an id");
    let before = detail(&world, &id).await["endAt"].clone();
    let (first, second) = (format!("/sandboxes/{id}/connect"), format!("/v2/sandboxes/{id}/connect"));
    for (path, body) in [
        (&first, r#"{"timeout":0}"#),
        (&first, r#"{"timeout":300}"#),
        (&first, r#"{"timeout":300,"memory":false}"#),
        (&second, ""),
        (&second, "{}"),
        (&second, "null"),
        (&second, r#"{"timeout":10}"#),
        (&second, r#"{"memory":false}"#),
    ] {
        let connected = world.client.post(path, body).await.assert_status(200);
        assert_eq!(connected.json(), created.json(), "{path} {body}");
        assert_eq!(detail(&world, &id).await["endAt"], before, "{path} {body}: exactly the same end time");
    }
    let requested_at = Timestamp::now();
    world.client.post(&second, r#"{"timeout":2000}"#).await.assert_status(200);
    let left = seconds_left(&world, &id, requested_at).await;
    assert!((1999..2030).contains(&left), "{left}");
    for (path, body, message) in [
        (&first, "", "validation error: "),
        (&first, "{}", "validation error: missing field `timeout`"),
        (&first, r#"{"timeout":-1}"#, "validation error: "),
        (&second, r#"{"timeout":-1}"#, "validation error: "),
        (&second, r#"{"timeout":86401}"#, "Timeout cannot be greater than 24 hours"),
        (&second, "[]", "validation error: "),
    ] {
        world.client.post(path, body).await.assert_error(400, message);
    }
    // The default timeout of the second generation extends the lifetime too.
    let short = world.create(r#"{"templateID":"base","timeout":10}"#).await.text_of("sandboxID");
    let requested_at = Timestamp::now();
    world.client.post(&format!("/v2/sandboxes/{short}/connect"), "").await.assert_status(200);
    assert!(seconds_left(&world, &short.parse().expect("an id"), requested_at).await >= 299);
}

#[tokio::test]
async fn an_expired_sandbox_is_deleted_and_not_before_its_end_time() {
    let world = World::start().await;
    let created = world.create(r#"{"templateID":"base","timeout":3}"#).await.assert_status(201);
    let id: SandboxId = created.text_of("sandboxID").parse().expect("an id");
    let end = end_at(&world, &id).await;
    let state = world.node.wait_for("the expiry reached the node", |state| !state.deletes.is_empty()).await;
    assert!(Timestamp::now() >= end, "not before its end time");
    assert_eq!(state.deletes[0].0, id);
    world.wait_until_deleted(&id).await;
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn a_changed_end_time_takes_effect() {
    let world = World::start().await;
    let (sooner, later) = (world.running().await, world.running().await);
    world.client.post(&format!("/sandboxes/{later}/timeout"), r#"{"timeout":3}"#).await.assert_status(204);
    world.client.post(&format!("/sandboxes/{later}/refreshes"), r#"{"duration":600}"#).await.assert_status(204);
    world.client.post(&format!("/sandboxes/{sooner}/timeout"), r#"{"timeout":4}"#).await.assert_status(204);
    // With its first end time, the other sandbox would expire first.
    let state = world.node.wait_for("one expired", |state| !state.deletes.is_empty()).await;
    assert_eq!(state.deletes[0].0, sooner);
    world.wait_until_deleted(&sooner).await;
    world.client.get(&format!("/sandboxes/{later}")).await.assert_status(200);
}

#[tokio::test]
async fn a_timeout_of_zero_or_less_kills_immediately() {
    let world = World::start().await;
    for timeout in [0, -1, i32::MIN] {
        let id = world.running().await;
        let path = format!("/sandboxes/{id}");
        world.client.post(&format!("{path}/timeout"), &format!(r#"{{"timeout":{timeout}}}"#)).await.assert_status(204);
        // The sandbox is deleted before the reply.
        world.client.get(&path).await.assert_error(404, "sandbox not found");
        assert_eq!(world.catalog.find(&id).await.expect("reads"), None);
        assert_eq!(world.client.get("/v2/sandboxes").await.json(), Value::Array(Vec::new()));
    }
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn the_default_timeout_is_capped_to_the_team_s_limit() {
    let world = World::start().await;
    let limits = Limits { sandbox_length_max: Duration::from_secs(60), ..LIMITS };
    let (_, client) = world.other_team("short", limits).await;
    let created = client.post("/v2/sandboxes", r#"{"templateID":"base"}"#).await.assert_status(201);
    let detail = client.get(&format!("/sandboxes/{}", created.text_of("sandboxID"))).await.json();
    let at = |member: &str| detail[member].as_str().expect(member).parse::<Timestamp>().expect(member);
    assert_eq!(at("endAt").duration_since(at("startedAt")).as_secs(), 60);
    // The default timeout of a connect is capped too.
    let connect = format!("/v2/sandboxes/{}/connect", created.text_of("sandboxID"));
    client.post(&connect, "").await.assert_status(200);
    client.post(&connect, r#"{"timeout":300}"#).await.assert_error(400, "Timeout cannot be greater than 60 seconds");
}
