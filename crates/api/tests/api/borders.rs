//! What surrounds every request: bodies, framing, deadlines, CORS.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fake_node::OnCreate;
use crate::world::{World, config};

#[tokio::test]
async fn chunked_bodies_are_read() {
    let world = World::start().await;
    let body = r#"{"templateID":"base"}"#;
    let (left, right) = body.split_at(7);
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nlang_version: 1\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n{:x}\r\n{left}\r\n{:x}\r\n{right}\r\n0\r\n\r\n",
        world.client.key(),
        left.len(),
        right.len()
    );
    let answer = world.client.raw_exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    let id = world.store.sandboxes().await.expect("reads")[0].sandbox_id.clone();
    // An empty chunked body is no body.
    let request = format!(
        "POST /v2/sandboxes/{id}/connect HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n0\r\n\r\n",
        world.client.key()
    );
    let answer = world.client.raw_exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn oversized_bodies_are_refused() {
    let world = World::with(hearth_api::Config { request_bytes_max: 1000, ..config() }).await;
    let body = format!(r#"{{"templateID":"base","metadata":{{"a":"{}"}}}}"#, "x".repeat(1000));
    world.create(&body).await.assert_error(413, "larger than 1000 bytes");
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        world.client.key(),
        body.len()
    );
    let answer = world.client.raw_exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains(r#""code":413"#), "{answer}");
    world.create(r#"{"templateID":"base"}"#).await.assert_status(201);
    assert_eq!(hearth_api::Config::new(hearth_types::Secret::new(""), None).request_bytes_max, 16 * 1024 * 1024);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::with(hearth_api::Config { body_read_max: Duration::from_millis(100), ..config() }).await;
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{",
        world.client.key()
    );
    let answer = world.client.raw_exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains(r#""code":408"#), "{answer}");
}

#[tokio::test]
async fn a_request_ends_at_its_deadline_and_its_work_does_not() {
    let world = World::with(hearth_api::Config { request_deadline: Duration::from_millis(300), ..config() }).await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let answer = world.create(r#"{"templateID":"base"}"#).await.assert_error(504, "longer than");
    assert_eq!(answer.header("should-retry"), Some("false"), "it could make a second sandbox");
    // The sandbox comes all the same, is listed, and expires in its time.
    world.node.change(|state| state.on_create = OnCreate::Start);
    world
        .eventually("it is listed", async || {
            let list = world.client.get("/v2/sandboxes").await.json();
            if list.as_array().map(Vec::len) == Some(1) { Ok(()) } else { Err(list.to_string()) }
        })
        .await;
}

#[tokio::test]
async fn scripts_of_any_origin_may_call() {
    let world = World::start().await;
    let nobody = world.client_with(None);
    let preflight = [
        ("origin", "https://example.com"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-api-key,content-type,lang_version"),
    ];
    let answer = nobody.send("OPTIONS", "/v2/sandboxes", &preflight, "").await.assert_status(200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    let allowed = answer.header("access-control-allow-headers").expect("allowed headers").to_lowercase();
    let allowed: Vec<&str> = allowed.split(',').map(str::trim).collect();
    for header in [
        "origin",
        "content-length",
        "content-type",
        "user-agent",
        "authorization",
        "x-api-key",
        "x-team-id",
        "x-admin-token",
        "browser",
        "lang",
        "lang_version",
        "machine",
        "os",
        "package_version",
        "processor",
        "publisher",
        "release",
        "sdk_runtime",
        "system",
        "idempotency-key",
    ] {
        assert!(allowed.contains(&header), "{header}: {allowed:?}");
    }
    let methods = answer.header("access-control-allow-methods").expect("allowed methods");
    assert!(["GET", "POST", "PUT", "PATCH", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
    for (client, path, status) in
        [(&world.client, "/v2/sandboxes", 200), (&nobody, "/v2/sandboxes", 401), (&nobody, "/x", 404)]
    {
        let answer = client.send("GET", path, &[("origin", "https://example.com")], "").await.assert_status(status);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{path}");
        let exposed = answer.header("access-control-expose-headers").expect("exposed headers").to_lowercase();
        for header in [
            "x-next-token",
            "x-total-running",
            "ratelimit-limit",
            "ratelimit-remaining",
            "ratelimit-reset",
            "retry-after",
        ] {
            assert!(exposed.contains(header), "{header}: {exposed}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_create_leaks_nothing() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let body = r#"{"templateID":"base"}"#;
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nContent-Length: {}\r\n\r\n{body}",
        world.client.key(),
        body.len()
    );
    let mut stream = world.client.raw(&request).await;
    world.node.until("the create arrived", |state| !state.creates.is_empty()).await;
    stream.shutdown().await.expect("closing");
    drop(stream);
    // The server has seen the client leave when it answers nobody: a fresh request on a fresh connection still works.
    world.client.get("/health").await.assert_status(200);
    world.node.change(|state| state.on_create = OnCreate::Start);
    // What was asked for happens, as one sandbox that is known, reachable, and can be ended.
    let mut id = String::new();
    world
        .eventually("it is listed", async || {
            let list = world.client.get("/v2/sandboxes").await.json();
            list[0]["sandboxID"].as_str().unwrap_or_default().clone_into(&mut id);
            if list.as_array().map(Vec::len) == Some(1) { Ok(()) } else { Err(list.to_string()) }
        })
        .await;
    assert_eq!(world.catalog.list().await.expect("reads").len(), 1);
    assert_eq!(world.node.state().creates.len(), 1);
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_body_asks_for_nothing() {
    let world = World::start().await;
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nContent-Length: 100\r\n\r\n{{\"templateID\":",
        world.client.key()
    );
    let mut stream = world.client.raw(&request).await;
    stream.shutdown().await.expect("closing");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("the server closes");
    assert!(world.node.state().creates.is_empty());
}
