//! Creates with an idempotency key.

use std::time::Duration;

use futures::future::join_all;
use hearth_api::Config;
use serde_json::json;

use crate::client::{Client, Reply};
use crate::fake_node::OnCreate;
use crate::world::{LIMITS, World, config};

const BASE: &str = r#"{"templateID":"base","metadata":{"a":"b"},"timeout":60}"#;

async fn create(client: &Client, key: &str, body: &str) -> Reply {
    client.send("POST", "/v2/sandboxes", &[("idempotency-key", key)], body.to_owned()).await
}

#[track_caller]
fn assert_code(reply: &Reply, code: &str) {
    assert_eq!(reply.json()["error_code"], code, "{reply:?}");
}

#[tokio::test]
async fn a_repeated_request_returns_the_first_sandbox() {
    let mut world = World::start().await;
    let first = create(&world.client, "a-1", BASE).await.assert_status(201);
    // Spaces and the order of members do not matter.
    let same = r#"{ "timeout": 60, "metadata": {"a": "b"}, "templateID": "base" }"#;
    assert_eq!(create(&world.client, "a-1", same).await.assert_status(201).json(), first.json());
    for different in [r#"{"templateID":"base"}"#, r#"{"templateID":"base","metadata":{"a":"c"},"timeout":60}"#] {
        assert_code(
            &create(&world.client, "a-1", different).await.assert_error(422, "different request"),
            "idempotency_request_mismatch",
        );
    }
    world.restart().await;
    assert_eq!(create(&world.client, "a-1", BASE).await.assert_status(201).json(), first.json(), "after a restart too");
    assert_eq!(world.node.state().creates.len(), 1);
    // Other keys, other teams and the first generation are not affected.
    let (_, other) = world.other_team("other", LIMITS).await;
    for reply in [create(&world.client, "a-2", BASE).await, create(&other, "a-1", BASE).await] {
        assert_ne!(reply.assert_status(201).text_of("sandboxID"), first.text_of("sandboxID"));
    }
    let old = world.client.send("POST", "/sandboxes", &[("idempotency-key", "a-1")], BASE).await.assert_status(201);
    assert_ne!(old.text_of("sandboxID"), first.text_of("sandboxID"));
    // The reply stays the same after the sandbox was deleted.
    world.client.delete(&format!("/sandboxes/{}", first.text_of("sandboxID"))).await.assert_status(204);
    assert_eq!(create(&world.client, "a-1", BASE).await.assert_status(201).json(), first.json());
}

#[tokio::test]
async fn a_repeated_request_returns_the_traffic_token() {
    let world = World::start().await;
    let private = r#"{"templateID":"base","network":{"allowPublicTraffic":false}}"#;
    let first = create(&world.client, "private", private).await.assert_status(201);
    assert_eq!(first.text_of("trafficAccessToken").len(), 64);
    assert_eq!(create(&world.client, "private", private).await.assert_status(201).json(), first.json());
}

#[tokio::test]
async fn keys_have_the_format_of_the_contract() {
    let world = World::start().await;
    for key in ["", "A", "a_b", "a b", "ä", &"a".repeat(256)] {
        create(&world.client, key, BASE).await.assert_error(400, "Idempotency-Key");
    }
    create(&world.client, &"a".repeat(255), BASE).await.assert_status(201);
}

#[tokio::test]
async fn concurrent_requests_with_one_key_create_one_sandbox() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let first = tokio::spawn(async move { create(&client, "a-1", BASE).await });
    world.node.wait_for("the create arrived", |state| !state.creates.is_empty()).await;
    for reply in join_all((0..10).map(|_| create(&world.client, "a-1", BASE))).await {
        let reply = reply.assert_status(409);
        assert_code(&reply, "idempotency_in_progress");
        assert_eq!((reply.header("should-retry"), reply.header("retry-after")), (Some("true"), Some("1")));
    }
    world.node.change(|state| state.on_create = OnCreate::Start);
    let first = first.await.expect("no panic").assert_status(201);
    assert_eq!(create(&world.client, "a-1", BASE).await.assert_status(201).json(), first.json());
    assert_eq!(world.node.state().creates.len(), 1);
}

#[tokio::test]
async fn a_failed_request_may_be_retried() {
    let world = World::start().await;
    let (_, small) = world.other_team("small", hearth_store::Limits { sandboxes_max: 0, ..LIMITS }).await;
    create(&small, "a-1", BASE).await.assert_error(429, "maximum number of concurrent sandboxes, 0");
    create(&small, "a-1", BASE).await.assert_error(429, "maximum number of concurrent sandboxes, 0");
    for on_create in [OnCreate::Full, OnCreate::Fail] {
        world.node.change(|state| state.on_create = on_create);
        assert!(create(&world.client, "a-1", BASE).await.status.is_server_error());
    }
    create(&world.client, "a-1", r#"{"templateID":"nothing"}"#).await.assert_error(404, "not found");
    world.node.change(|state| state.on_create = OnCreate::Start);
    create(&world.client, "a-1", BASE).await.assert_status(201);
}

#[tokio::test]
async fn a_server_crash_leaves_an_unknown_outcome() {
    let world = World::start().await;
    create(&world.client, "a-1", BASE).await.assert_status(201);
    // Simulate a crash before the reply was stored: first a recent one, then one that is long past.
    world.sql("UPDATE idempotency SET answer = NULL").await;
    assert_code(&create(&world.client, "a-1", BASE).await.assert_status(409), "idempotency_in_progress");
    world.sql("UPDATE idempotency SET decided_by_us = 0").await;
    let reply = create(&world.client, "a-1", BASE).await.assert_error(409, "not known");
    assert_code(&reply, "idempotency_outcome_unknown");
    assert_eq!(world.node.state().creates.len(), 1);
}

#[tokio::test]
async fn keys_expire() {
    let world = World::with(Config { idempotency_retention: Duration::from_secs(1), ..config() }).await;
    let first = create(&world.client, "a-1", BASE).await.assert_status(201);
    world
        .eventually("another sandbox is created", async || {
            let again = create(&world.client, "a-1", BASE).await.assert_status(201);
            if again.json() == first.json() { Err("the same".to_owned()) } else { Ok(()) }
        })
        .await;
    world.sql("UPDATE idempotency SET expires_at_us = 0").await;
    world
        .eventually("expired rows are deleted", async || {
            let config = hearth_store::Config::sqlite(&world.folder().join("hearth.db")).expect("UTF-8");
            let database = sea_orm::Database::connect(config.url).await.expect("opens");
            let sql = "SELECT COUNT(*) AS n FROM idempotency";
            let row = sea_orm::ConnectionTrait::query_one_raw(
                &database,
                sea_orm::Statement::from_string(sea_orm::DbBackend::Sqlite, sql),
            );
            let count: i64 = row.await.expect("a query").expect("a row").try_get("", "n").expect("a number");
            database.close().await.expect("closes");
            if count == 0 { Ok(()) } else { Err(json!(count).to_string()) }
        })
        .await;
}
