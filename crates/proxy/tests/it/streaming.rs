//! Streaming in both directions at the same time, without delay.

use std::sync::Mutex;
use std::time::Duration;

use hearth_proxy::body::{self, Body, boxed};
use hearth_types::NodeAddress;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::test_proxy::{
    BodySender, Channel, Client, TestProxy, advance_time, chunk, closed_port, get, post, raw_upstream, read_head, text,
    unix_upstream, upstream, with_timeout, write,
};

const CHUNKS: [&str; 4] = ["data: one\n\n", "data: two\n\n", "x", "data: four\n\n"];

/// Returns a handler that responds once, with a body that the test sends.
fn fed(body: Body) -> impl Fn(Request<Incoming>) -> std::future::Ready<Response<Body>> + Clone + Send + Sync {
    let body = std::sync::Arc::new(Mutex::new(Some(body)));
    move |_| {
        let body = body.lock().expect("not poisoned").take().expect("there is one request");
        let response = Response::builder().header("content-type", "text/event-stream").body(body);
        std::future::ready(response.expect("a response"))
    }
}

async fn check_download(upstream: NodeAddress, mut source: BodySender, http2: bool) {
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.client_of(http2).await;
    let mut response = client.get("/events").await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for part in CHUNKS {
        source.send(part).await;
        // The next chunk is sent only after this one has arrived.
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some(part));
    }
    source.end();
    assert_eq!(chunk(response.body_mut()).await, None);
}

#[tokio::test]
async fn each_chunk_arrives_before_the_next_is_sent() {
    for http2 in [false, true] {
        let (source, body) = BodySender::body();
        check_download(upstream(fed(body)).await, source, http2).await;
    }
}

#[tokio::test]
async fn each_chunk_arrives_over_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, body) = BodySender::body();
    check_download(unix_upstream(folder.path().join("upstream"), fed(body)).await, source, false).await;
}

#[tokio::test]
async fn each_chunk_of_an_upload_arrives_before_the_next_is_sent() {
    for http2 in [false, true] {
        let mut received = Channel::new();
        let send = received.sender();
        let upstream = upstream(move |mut request: Request<Incoming>| {
            let send = send.clone();
            async move {
                while let Some(part) = chunk(request.body_mut()).await {
                    send(part);
                }
                Response::new(body::full("done"))
            }
        })
        .await;
        let proxy = TestProxy::start(upstream).await;
        let mut client = proxy.client_of(http2).await;
        let (mut source, body) = BodySender::body();
        let chunks = async {
            for part in CHUNKS {
                source.send(part).await;
                assert_eq!(received.recv().await, part);
            }
            source.end();
        };
        let (response, ()) = tokio::join!(client.send(post("/", body)), chunks);
        assert_eq!(text(response).await, "done");
    }
}

#[tokio::test]
async fn both_directions_stream_at_the_same_time() {
    let echo = |request: Request<Incoming>| async move { Response::new(boxed(request.into_body())) };
    let proxy = TestProxy::start(upstream(echo).await).await;
    for mut client in [proxy.client().await, Client::connect_http2(proxy.address).await] {
        let (mut source, body) = BodySender::body();
        let mut response = client.send(post("/", body)).await;
        for part in CHUNKS {
            source.send(part).await;
            assert_eq!(chunk(response.body_mut()).await.as_deref(), Some(part));
        }
        source.end();
        assert_eq!(chunk(response.body_mut()).await, None);
    }
}

#[tokio::test]
async fn an_early_response_arrives_while_the_upload_continues() {
    let mut rest = Channel::new();
    let send = rest.sender();
    let upstream = upstream(move |request: Request<Incoming>| {
        let send = send.clone();
        // Responds immediately and reads the upload afterwards.
        tokio::spawn(async move {
            let upload = request.into_body().collect().await.expect("the upload ends").to_bytes();
            send(String::from_utf8(upload.to_vec()).expect("text"));
        });
        async { Response::new(body::full("early")) }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.client().await;
    let (mut source, body) = BodySender::body();
    assert_eq!(text(client.send(post("/", body)).await).await, "early");
    source.send("late").await;
    source.end();
    assert_eq!(rest.recv().await, "late");
    // Both connections can be reused.
    let (source, body) = BodySender::body();
    source.end();
    assert_eq!(text(client.send(post("/", body)).await).await, "early");
}

#[tokio::test]
async fn a_client_that_uploads_first_reads_an_early_rejection() {
    const UPLOAD_BYTES: usize = 24 << 20;
    let upstream = raw_upstream(|_, mut stream| async move {
        read_head(&mut stream).await;
        write(&mut stream, "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno").await;
        // Closed with the upload unread, so that its remainder causes a reset.
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.raw().await;
    // The client reads the response only after it has sent everything.
    write(&mut client, &format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {UPLOAD_BYTES}\r\n\r\n")).await;
    with_timeout("the upload", client.write_all(&vec![b'x'; UPLOAD_BYTES]))
        .await
        .expect("the proxy reads the whole upload");
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 401 Unauthorized\r\n"));
    let mut body = [0; 2];
    client.read_exact(&mut body).await.expect("the body");
    assert_eq!(&body, b"no");
}

#[tokio::test]
async fn a_client_that_uploads_first_reads_the_proxy_s_own_page() {
    const UPLOAD_BYTES: usize = 24 << 20;
    let proxy = TestProxy::start(NodeAddress::Tcp(closed_port().await)).await;
    let mut client = proxy.raw().await;
    write(&mut client, &format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {UPLOAD_BYTES}\r\n\r\n")).await;
    with_timeout("the upload", client.write_all(&vec![b'x'; UPLOAD_BYTES]))
        .await
        .expect("the proxy reads the whole upload");
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 502 Bad Gateway\r\n"));
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let echo = |request: Request<Incoming>| async move {
        let collected = request.into_body().collect().await.expect("a body");
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let (mut source, body) = BodySender::body();
        source.send("body").await;
        source.send_trailers(trailers).await;
        Response::builder().header("trailer", "x-sum").body(body).expect("a response")
    };
    let proxy = TestProxy::start(upstream(echo).await).await;
    for mut client in [proxy.client().await, Client::connect_http2(proxy.address).await] {
        let (mut source, body) = BodySender::body();
        source.send("body").await;
        let trailers: HeaderMap =
            [("x-sum".parse().expect("a name"), HeaderValue::from_static("42"))].into_iter().collect();
        source.send_trailers(trailers.clone()).await;
        source.end();
        let mut request = post("/", body);
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        request.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
        let response = client.send(request).await.into_body().collect().await.expect("a body");
        assert_eq!(response.trailers(), Some(&trailers));
    }
}

#[tokio::test]
async fn a_stream_may_be_silent_for_days() {
    let (mut source, body) = BodySender::body();
    let proxy = TestProxy::start(upstream(fed(body)).await).await;
    let mut client = proxy.client().await;
    let mut response = client.get("/").await;
    source.send("before").await;
    assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("before"));
    advance_time(Duration::from_secs(3 * 24 * 60 * 60)).await;
    source.send("after").await;
    assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("after"));
}

#[tokio::test]
async fn lengths_methods_and_statuses_pass() {
    let handler = |request: Request<Incoming>| async move {
        let method = request.method().to_string();
        let response = Response::builder().header("x-method", method);
        match request.uri().path() {
            "/empty" => response.status(204).body(body::empty()),
            "/head" => response.header("content-length", "12345").body(body::empty()),
            "/teapot" => response.status(418).body(body::full("tea")),
            _ => response.body(body::full("fallback")),
        }
        .expect("a response")
    };
    let proxy = TestProxy::start(upstream(handler).await).await;
    for mut client in [proxy.client().await, Client::connect_http2(proxy.address).await] {
        assert_eq!(client.get("/empty").await.status(), 204);
        let mut head = get("/head");
        *head.method_mut() = http::Method::HEAD;
        let response = client.send(head).await;
        assert_eq!(response.headers()["content-length"], "12345");
        assert_eq!(text(response).await, "");
        let response = client.get("/teapot").await;
        assert_eq!(response.status(), 418);
        assert_eq!(response.headers()["content-length"], "3");
        assert_eq!(text(response).await, "tea");
        let mut custom = post("/", body::empty());
        *custom.method_mut() = "PROPFIND".parse().expect("a method");
        assert_eq!(client.send(custom).await.headers()["x-method"], "PROPFIND");
    }
    // Sequential requests of two clients share one connection, except after a HEAD request.
    assert_eq!(proxy.dials(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_clients_get_their_own_responses() {
    const CLIENTS: usize = 24;
    const REQUESTS: usize = 60;
    let echo = |request: Request<Incoming>| async move { Response::new(boxed(request.into_body())) };
    let proxy = std::sync::Arc::new(TestProxy::start(upstream(echo).await).await);
    let clients = (0..CLIENTS).map(|number| {
        let proxy = std::sync::Arc::clone(&proxy);
        tokio::spawn(async move {
            let mut client = proxy.client_of(number % 3 == 0).await;
            for round in 0..REQUESTS {
                let sent = format!("{number}-{round} ").repeat(1 + round * 50);
                let response = client.send(post("/", body::full(sent.clone()))).await;
                // Some clients disconnect during a response and connect again.
                if round % 7 == 6 {
                    drop(response);
                    client = proxy.client().await;
                    continue;
                }
                assert!(text(response).await == sent, "another client's response, or an incomplete one");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("the task does not panic");
    }
    proxy.requests_finished().await;
    assert!(proxy.engine.idle_connections() <= 32);
}
