//! Creates that name themselves.

use std::time::Duration;

use futures::future::join_all;
use hearth_api::Config;
use serde_json::json;

use crate::client::{Answer, Client};
use crate::fake_node::OnCreate;
use crate::world::{LIMITS, World, config};

const BASE: &str = r#"{"templateID":"base","metadata":{"a":"b"},"timeout":60}"#;

async fn create(client: &Client, key: &str, body: &str) -> Answer {
    client.send("POST", "/v2/sandboxes", &[("idempotency-key", key)], body.to_owned()).await
}

#[track_caller]
fn assert_code(answer: &Answer, code: &str) {
    assert_eq!(answer.json()["error_code"], code, "{answer:?}");
}

#[tokio::test]
async fn a_repetition_gets_the_first_ones_sandbox() {
    let mut world = World::start().await;
    let first = create(&world.client, "a-1", BASE).await.assert_status(201);
    // However it is written.
    let same = r#"{ "timeout": 60, "metadata": {"a": "b"}, "templateID": "base" }"#;
    assert_eq!(create(&world.client, "a-1", same).await.assert_status(201).json(), first.json());
    for different in [r#"{"templateID":"base"}"#, r#"{"templateID":"base","metadata":{"a":"c"},"timeout":60}"#] {
        assert_code(
            &create(&world.client, "a-1", different).await.assert_error(422, "different request"),
            "idempotency_request_mismatch",
        );
    }
    world.restart().await;
    assert_eq!(
        create(&world.client, "a-1", BASE).await.assert_status(201).json(),
        first.json(),
        "after a restart, too"
    );
    assert_eq!(world.node.state().creates.len(), 1);
    // Other keys, other teams and the first generation are not concerned.
    let (_, other) = world.other_team("other", LIMITS).await;
    for answer in [create(&world.client, "a-2", BASE).await, create(&other, "a-1", BASE).await] {
        assert_ne!(answer.assert_status(201).text_of("sandboxID"), first.text_of("sandboxID"));
    }
    let old = world.client.send("POST", "/sandboxes", &[("idempotency-key", "a-1")], BASE).await.assert_status(201);
    assert_ne!(old.text_of("sandboxID"), first.text_of("sandboxID"));
    // It is the same answer also when the sandbox is gone.
    world.client.delete(&format!("/sandboxes/{}", first.text_of("sandboxID"))).await.assert_status(204);
    assert_eq!(create(&world.client, "a-1", BASE).await.assert_status(201).json(), first.json());
}

#[tokio::test]
async fn a_repetition_has_the_token_for_visitors_as_well() {
    let world = World::start().await;
    let private = r#"{"templateID":"base","network":{"allowPublicTraffic":false}}"#;
    let first = create(&world.client, "private", private).await.assert_status(201);
    assert_eq!(first.text_of("trafficAccessToken").len(), 64);
    assert_eq!(create(&world.client, "private", private).await.assert_status(201).json(), first.json());
}

#[tokio::test]
async fn keys_have_the_form_of_the_contract() {
    let world = World::start().await;
    for key in ["", "A", "a_b", "a b", "ä", &"a".repeat(256)] {
        create(&world.client, key, BASE).await.assert_error(400, "Idempotency-Key");
    }
    create(&world.client, &"a".repeat(255), BASE).await.assert_status(201);
}

#[tokio::test]
async fn of_many_at_once_one_creates() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let first = tokio::spawn(async move { create(&client, "a-1", BASE).await });
    world.node.until("the create arrived", |state| !state.creates.is_empty()).await;
    for answer in join_all((0..10).map(|_| create(&world.client, "a-1", BASE))).await {
        let answer = answer.assert_status(409);
        assert_code(&answer, "idempotency_in_progress");
        assert_eq!((answer.header("should-retry"), answer.header("retry-after")), (Some("true"), Some("1")));
    }
    world.node.change(|state| state.on_create = OnCreate::Start);
    let first = first.await.expect("no panic").assert_status(201);
    assert_eq!(create(&world.client, "a-1", BASE).await.assert_status(201).json(), first.json());
    assert_eq!(world.node.state().creates.len(), 1);
}

#[tokio::test]
async fn what_failed_may_be_tried_again() {
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
async fn a_server_that_died_leaves_an_unknown_outcome() {
    let world = World::start().await;
    create(&world.client, "a-1", BASE).await.assert_status(201);
    // As if it had died before it could keep the answer, just now and long ago.
    world.sql("UPDATE idempotency SET answer = NULL").await;
    assert_code(&create(&world.client, "a-1", BASE).await.assert_status(409), "idempotency_in_progress");
    world.sql("UPDATE idempotency SET decided_by_us = 0").await;
    let answer = create(&world.client, "a-1", BASE).await.assert_error(409, "not known");
    assert_code(&answer, "idempotency_outcome_unknown");
    assert_eq!(world.node.state().creates.len(), 1);
}

#[tokio::test]
async fn keys_expire() {
    let world = World::with(Config { idempotency_kept: Duration::from_secs(1), ..config() }).await;
    let first = create(&world.client, "a-1", BASE).await.assert_status(201);
    world
        .eventually("another sandbox is created", async || {
            let again = create(&world.client, "a-1", BASE).await.assert_status(201);
            if again.json() == first.json() { Err("the same".to_owned()) } else { Ok(()) }
        })
        .await;
    world.sql("UPDATE idempotency SET expires_at_us = 0").await;
    world
        .eventually("rows are cleared away", async || {
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
