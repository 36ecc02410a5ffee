//! Request bodies, framing, deadlines and CORS.

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
    let reply = world.client.raw_exchange(&request).await;
    assert!(reply.starts_with("HTTP/1.1 201 Created\r\n"), "{reply}");
    let id = world.store.sandboxes().await.expect("reads")[0].sandbox_id.clone();
    // An empty chunked body counts as an absent body.
    let request = format!(
        "POST /v2/sandboxes/{id}/connect HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n0\r\n\r\n",
        world.client.key()
    );
    let reply = world.client.raw_exchange(&request).await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
}

#[tokio::test]
async fn oversized_bodies_are_rejected() {
    let world = World::with(hearth_api::Config { request_bytes_max: 1000, ..config() }).await;
    let body = format!(r#"{{"templateID":"base","metadata":{{"a":"{}"}}}}"#, "x".repeat(1000));
    world.create(&body).await.assert_error(413, "larger than 1000 bytes");
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        world.client.key(),
        body.len()
    );
    let reply = world.client.raw_exchange(&request).await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    assert!(reply.contains(r#""code":413"#), "{reply}");
    world.create(r#"{"templateID":"base"}"#).await.assert_status(201);
    assert_eq!(hearth_api::Config::new(hearth_types::Secret::new(""), None).request_bytes_max, 16 * 1024 * 1024);
}

#[tokio::test]
async fn an_incomplete_body_times_out() {
    let world = World::with(hearth_api::Config { body_read_max: Duration::from_millis(100), ..config() }).await;
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{",
        world.client.key()
    );
    let reply = world.client.raw_exchange(&request).await;
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
    assert!(reply.contains(r#""code":408"#), "{reply}");
}

#[tokio::test]
async fn work_continues_after_the_deadline_of_its_request() {
    let world = World::with(hearth_api::Config { request_deadline: Duration::from_millis(300), ..config() }).await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let reply = world.create(r#"{"templateID":"base"}"#).await.assert_error(504, "longer than");
    assert_eq!(reply.header("should-retry"), Some("false"), "a retry could create a second sandbox");
    // The sandbox is still created and listed.
    world.node.change(|state| state.on_create = OnCreate::Start);
    world
        .eventually("the sandbox is listed", async || {
            let list = world.client.get("/v2/sandboxes").await.json();
            if list.as_array().map(Vec::len) == Some(1) { Ok(()) } else { Err(list.to_string()) }
        })
        .await;
}

#[tokio::test]
async fn scripts_of_any_origin_are_allowed() {
    let world = World::start().await;
    let anonymous = world.client_with(None);
    let preflight = [
        ("origin", "https://example.com"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-api-key,content-type,lang_version"),
    ];
    let reply = anonymous.send("OPTIONS", "/v2/sandboxes", &preflight, "").await.assert_status(200);
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    let allowed = reply.header("access-control-allow-headers").expect("allowed headers").to_lowercase();
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
    let methods = reply.header("access-control-allow-methods").expect("allowed methods");
    assert!(["GET", "POST", "PUT", "PATCH", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
    for (client, path, status) in
        [(&world.client, "/v2/sandboxes", 200), (&anonymous, "/v2/sandboxes", 401), (&anonymous, "/x", 404)]
    {
        let reply = client.send("GET", path, &[("origin", "https://example.com")], "").await.assert_status(status);
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"), "{path}");
        let exposed = reply.header("access-control-expose-headers").expect("exposed headers").to_lowercase();
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
async fn a_client_that_disconnects_during_a_create_leaks_nothing() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let body = r#"{"templateID":"base"}"#;
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {}\r\nContent-Length: {}\r\n\r\n{body}",
        world.client.key(),
        body.len()
    );
    let mut stream = world.client.raw(&request).await;
    world.node.wait_for("the create arrived", |state| !state.creates.is_empty()).await;
    stream.shutdown().await.expect("closing");
    drop(stream);
    // A request on a new connection still works.
    world.client.get("/health").await.assert_status(200);
    world.node.change(|state| state.on_create = OnCreate::Start);
    // Exactly one sandbox is created, which is listed, has a route and can be killed.
    let mut id = String::new();
    world
        .eventually("the sandbox is listed", async || {
            let list = world.client.get("/v2/sandboxes").await.json();
            list[0]["sandboxID"].as_str().unwrap_or_default().clone_into(&mut id);
            if list.as_array().map(Vec::len) == Some(1) { Ok(()) } else { Err(list.to_string()) }
        })
        .await;
    assert_eq!(world.catalog.list().await.expect("reads").len(), 1);
    assert_eq!(world.node.state().creates.len(), 1);
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.assert_no_leftovers().await;
}

#[tokio::test]
async fn a_client_that_disconnects_during_a_body_creates_nothing() {
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
