//! Aborts reach the other side: an incomplete message never looks complete.

use std::time::Duration;

use hearth_proxy::body::{self, Body};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::test_proxy::{
    BodySender, Channel, Client, GROUP, TestProxy, advance_time, chunk, expect_abort, get, post, raw_upstream,
    read_head, text, upstream, wait_until, with_timeout, write,
};

const NOT_FOUND: &str = r#"{"sandboxId":"i123","message":"The sandbox was not found","code":502}"#;

/// Incomplete responses, by the way in which their end would be marked.
const HEADS: [&str; 3] =
    ["transfer-encoding: chunked\r\n\r\n4\r\npart\r\n", "content-length: 100\r\n\r\npart", "\r\npart"];

#[tokio::test]
async fn an_upstream_reset_aborts_the_response() {
    for head in HEADS {
        for http2 in [false, true] {
            // Taken by the only connection.
            let (arrived, wait) = oneshot::channel::<()>();
            let wait = std::sync::Mutex::new(Some(wait));
            let upstream = raw_upstream(move |_, mut stream| {
                let wait = wait.lock().expect("not poisoned").take().expect("there is one connection");
                async move {
                    read_head(&mut stream).await;
                    write(&mut stream, &format!("HTTP/1.1 200 OK\r\n{head}")).await;
                    let _ = wait.await;
                    stream.set_zero_linger().expect("a TCP socket");
                }
            })
            .await;
            let proxy = TestProxy::start(upstream).await;
            let mut client = proxy.client_of(http2).await;
            let mut response = client.get("/").await;
            assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("part"));
            arrived.send(()).expect("the upstream waits");
            expect_abort(response.body_mut()).await;
        }
    }
}

#[tokio::test]
async fn an_early_end_of_the_upstream_aborts_the_response() {
    // Without a length or chunks, the end of the connection is a proper end.
    for head in &HEADS[..2] {
        let upstream = raw_upstream(move |_, mut stream| async move {
            read_head(&mut stream).await;
            write(&mut stream, &format!("HTTP/1.1 200 OK\r\n{head}")).await;
        })
        .await;
        let proxy = TestProxy::start(upstream).await;
        let mut response = proxy.client().await.get("/").await;
        // The bytes before the failure are not lost.
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("part"));
        expect_abort(response.body_mut()).await;
    }
}

#[tokio::test]
async fn an_aborted_http_1_0_response_resets_the_connection() {
    let (mut source, body) = BodySender::body();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let upstream = upstream(move |_: Request<Incoming>| {
        let body = body.lock().expect("not poisoned").take().expect("there is one request");
        std::future::ready(Response::new(body))
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.raw().await;
    write(&mut client, "GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.0 200"));
    source.send("part").await;
    let mut part = [0; 4];
    client.read_exact(&mut part).await.expect("the part");
    proxy.engine.abort(&GROUP);
    let error = with_timeout("the reset", client.read(&mut part)).await.expect_err("no proper end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Handles the requests of the abort tests.
///
/// Responds to `/stream` with a body that the test sends, reads all of `/upload`, and never responds to `/silent`.
async fn endless(mut request: Request<Incoming>, send: impl Fn(BodySender)) -> Response<Body> {
    match request.uri().path() {
        "/stream" => {
            let (source, body) = BodySender::body();
            send(source);
            Response::new(body)
        }
        "/silent" => {
            let (source, _) = BodySender::body();
            send(source);
            std::future::pending().await
        }
        "/upload" => {
            let (source, _) = BodySender::body();
            send(source);
            while let Some(Ok(_)) = request.body_mut().frame().await {}
            Response::new(body::full("never"))
        }
        _ => Response::new(body::full("fine")),
    }
}

async fn check_abort(abort: impl Fn(&TestProxy), then: Result<&str, &str>) {
    let mut sources = Channel::new();
    let send = sources.sender();
    let proxy = TestProxy::start(upstream(move |request| endless(request, send.clone())).await).await;
    for http2 in [false, true] {
        let client = || async { proxy.client_of(http2).await };
        let mut client_of_stream = client().await;
        if then.is_err() && http2 {
            // The first round closed the group.
            assert_eq!(text(client_of_stream.get("/stream").await).await, NOT_FOUND);
            continue;
        }
        let mut stream = client_of_stream.get("/stream").await;
        let mut source = sources.recv().await;
        source.send("part").await;
        assert_eq!(chunk(stream.body_mut()).await.as_deref(), Some("part"));

        let mut client_of_silence = client().await;
        let mut client_of_upload = client().await;
        let (_upload, upload_body) = BodySender::body();
        let waiting = async {
            tokio::join!(client_of_silence.get("/silent"), client_of_upload.send(post("/upload", upload_body)))
        };
        let abort_all = async {
            let both = (sources.recv().await, sources.recv().await);
            assert_eq!(proxy.engine.requests(&GROUP), 3);
            abort(&proxy);
            drop(both);
        };
        let ((silence, upload), ()) = tokio::join!(waiting, abort_all);
        expect_abort(stream.body_mut()).await;
        for response in [silence, upload] {
            assert_eq!(response.status(), 502);
            assert_eq!(text(response).await, NOT_FOUND);
        }
        wait_until("the upstream to notice", || source.is_closed()).await;
        proxy.requests_finished().await;
        assert_eq!(proxy.engine.idle_connections(), 0);

        let later = text(client().await.get("/later").await).await;
        assert_eq!(later, then.unwrap_or_else(|page| page));
    }
}

#[tokio::test]
async fn abort_stops_all_requests_and_later_ones_are_served() {
    check_abort(|proxy| proxy.engine.abort(&GROUP), Ok("fine")).await;
}

#[tokio::test]
async fn close_stops_all_requests_and_later_ones_are_rejected() {
    check_abort(|proxy| proxy.engine.close(&GROUP), Err(NOT_FOUND)).await;
}

#[tokio::test]
async fn a_group_without_requests_can_be_closed() {
    let proxy = TestProxy::start(upstream(|_| async { Response::new(body::full("fine")) }).await).await;
    proxy.engine.close(&GROUP);
    let response = proxy.client().await.get("/").await;
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (502, NOT_FOUND));
    assert_eq!(proxy.dials(), 0);
}

#[tokio::test]
async fn a_shut_down_engine_rejects_requests() {
    let proxy = TestProxy::start(upstream(|_| async { Response::new(body::full("fine")) }).await).await;
    let mut client = proxy.client().await;
    assert_eq!(text(client.get("/").await).await, "fine");
    proxy.engine.shutdown().await;
    assert_eq!(client.get("/").await.status(), 502);
}

/// Checks that an upstream sees at most the end of the connection when a client disconnects, never the end of a
/// message.
async fn check_client_leaves(request: &'static str, response: &'static str) {
    let mut seen = Channel::new();
    let send = seen.sender();
    let upstream = raw_upstream(move |_, mut stream: TcpStream| {
        let send = send.clone();
        async move {
            read_head(&mut stream).await;
            write(&mut stream, response).await;
            send(None);
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            send(Some(String::from_utf8(rest).expect("text")));
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.raw().await;
    write(&mut client, request).await;
    assert_eq!(seen.recv().await, None);
    // Clients that give up have waited for a while.
    advance_time(Duration::from_secs(2)).await;
    drop(client);
    let rest = seen.recv().await.expect("the end");
    assert!(!rest.contains("0\r\n\r\n"), "{rest:?}");
    proxy.requests_finished().await;
}

#[tokio::test]
async fn a_disconnected_client_closes_the_upstream() {
    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const UPLOAD: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n";
    const STREAM: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n";
    // Before the response, during it, during the upload, and during both.
    for (request, response) in [(GET, ""), (GET, STREAM), (UPLOAD, ""), (UPLOAD, STREAM)] {
        check_client_leaves(request, response).await;
    }
}

#[tokio::test]
async fn a_half_closed_client_gets_its_response() {
    let mut sources = Channel::new();
    let send = sources.sender();
    let proxy = TestProxy::start(upstream(move |request| endless(request, send.clone())).await).await;
    for request in [
        "GET /stream HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /stream HTTP/1.0\r\nhost: a\r\n\r\n",
        "POST /stream HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody",
    ] {
        let mut client = proxy.raw().await;
        write(&mut client, request).await;
        client.shutdown().await.expect("half-close");
        let mut source = sources.recv().await;
        // The response may continue as long as a byte arrives now and then.
        for _ in 0..3 {
            advance_time(Duration::from_secs(8)).await;
            source.send("part").await;
            let mut read = Vec::new();
            while !String::from_utf8_lossy(&read).contains("part") {
                assert_ne!(
                    with_timeout("a part", client.read_buf(&mut read)).await.expect("the response continues"),
                    0,
                    "{request}"
                );
            }
        }
        source.end();
        let mut rest = Vec::new();
        with_timeout("the end", client.read_to_end(&mut rest)).await.expect("a proper end");
    }
}

#[tokio::test]
async fn an_early_disconnect_holds_the_upstream_for_ten_seconds() {
    let mut sources = Channel::new();
    let send = sources.sender();
    let proxy = TestProxy::start(upstream(move |request| endless(request, send.clone())).await).await;
    let mut client = proxy.raw().await;
    write(&mut client, "GET /stream HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.shutdown().await.expect("half-close");
    let source = sources.recv().await;
    read_head(&mut client).await;
    drop(client);
    advance_time(Duration::from_secs(9)).await;
    // When the proxy responds to another client, it has polled this connection.
    let _ = proxy.client().await.get("/").await;
    assert!(!source.is_closed());
    advance_time(Duration::from_secs(2)).await;
    wait_until("the upstream to notice", || source.is_closed()).await;
}

#[tokio::test]
async fn an_incomplete_upload_closes_the_upstream() {
    let mut seen = Channel::new();
    let send = seen.sender();
    let upstream = raw_upstream(move |_, mut stream: TcpStream| {
        let send = send.clone();
        async move {
            read_head(&mut stream).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            send(rest);
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.raw().await;
    write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nbody").await;
    client.shutdown().await.expect("half-close");
    assert!(seen.recv().await.len() <= 4, "the upstream is closed immediately");
    proxy.requests_finished().await;
}

#[tokio::test]
async fn a_reset_stream_closes_only_its_upstream() {
    let mut sources = Channel::new();
    let send = sources.sender();
    let proxy = TestProxy::start(upstream(move |request| endless(request, send.clone())).await).await;
    let mut client = Client::connect_http2(proxy.address).await;
    let first = client.get("/stream").await;
    let first_source = sources.recv().await;
    let mut second = client.get("/stream").await;
    let mut second_source = sources.recv().await;
    drop(first);
    wait_until("the upstream to notice", || first_source.is_closed()).await;
    second_source.send("alive").await;
    assert_eq!(chunk(second.body_mut()).await.as_deref(), Some("alive"));
}

#[tokio::test]
async fn a_missing_response_has_the_unreachable_page() {
    let unreachable = |response: &'static str| async move {
        let upstream = raw_upstream(move |_, mut stream| async move {
            read_head(&mut stream).await;
            write(&mut stream, response).await;
        })
        .await;
        let proxy = TestProxy::start(upstream).await;
        let response = proxy.client().await.send(get("/")).await;
        assert_eq!(response.status(), 502);
        let page = text(response).await;
        assert!(!page.contains("was not found") && !page.contains("port is not open"), "{page}");
        assert!(page.starts_with(r#"{"sandboxId":"i123","message":""#), "{page}");
        assert_eq!(proxy.dials(), 1);
    };
    unreachable("").await;
    unreachable("no HTTP at all\r\n\r\n").await;
    unreachable("HTTP/1.1 200 OK\r\ncontent-le").await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_writer_down() {
    let mut progress = Channel::new();
    let send = progress.sender();
    let upstream = raw_upstream(move |_, mut stream: TcpStream| {
        let send = send.clone();
        async move {
            read_head(&mut stream).await;
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n").await;
            let chunk = vec![b'x'; 1 << 20];
            let mut written = 0;
            // Stops when all buffers on the way are full, so that a write blocks.
            while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(500), stream.write_all(&chunk)).await {
                written += chunk.len();
            }
            send(written);
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let response = proxy.client().await.get("/").await;
    // The gigabyte is not read, so it must not have been accepted either.
    assert!(progress.recv().await < 64 << 20);
    drop(response);
}
