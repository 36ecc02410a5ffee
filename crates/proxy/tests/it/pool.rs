//! Reuse of connections to upstreams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hearth_proxy::{Config, body};
use hearth_types::NodeAddress;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::test_proxy::{
    Channel, Client, GROUP, TestProxy, advance_time, get, post, raw_upstream, read_head, serve_config,
    streaming_upstream, text, upstream, wait_until, with_timeout, write,
};

async fn respond_fine(_: Request<Incoming>) -> Response<hearth_proxy::Body> {
    Response::new(body::full("fine"))
}

/// Waits until the connections of finished requests are idle.
async fn wait_for_idle(proxy: &TestProxy, idle: usize) {
    wait_until("connections to be idle", || proxy.engine.idle_connections() == idle).await;
    assert_eq!(proxy.engine.requests(&GROUP), 0);
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let proxy = TestProxy::start(upstream(respond_fine).await).await;
    let mut client = proxy.client().await;
    for _ in 0..20 {
        assert_eq!(text(client.get("/").await).await, "fine");
        assert_eq!(text(client.send(post("/", body::full("upload"))).await).await, "fine");
        wait_for_idle(&proxy, 1).await;
    }
    assert_eq!(proxy.dials(), 1);
}

#[tokio::test]
async fn concurrent_requests_use_separate_connections_and_few_stay_idle() {
    const REQUESTS: usize = 8;
    let (upstream, mut sources) = streaming_upstream().await;
    let config = Config { idle_per_key_max: 3, ..Config::for_guests() };
    let proxy = TestProxy::start_with(upstream, config, serve_config()).await;
    let mut client = Client::connect_http2(proxy.address).await;
    let mut responses = Vec::new();
    for _ in 0..REQUESTS {
        responses.push(client.get("/").await);
    }
    assert_eq!(proxy.dials(), REQUESTS);
    for response in responses {
        sources.recv().await.end();
        assert_eq!(text(response).await, "");
    }
    wait_for_idle(&proxy, 3).await;
}

#[tokio::test]
async fn a_connection_that_the_upstream_closes_is_not_reused() {
    for raw in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nfine",
        "HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nfine",
        "HTTP/1.1 200 OK\r\n\r\nfine",
    ] {
        let upstream = raw_upstream(move |_, mut stream| async move {
            read_head(&mut stream).await;
            stream.read_exact(&mut [0; 6]).await.expect("the upload");
            write(&mut stream, raw).await;
        })
        .await;
        let proxy = TestProxy::start(upstream).await;
        let mut client = proxy.client().await;
        for dials in 1..4 {
            let response = client.send(post("/", body::full("upload"))).await;
            assert_eq!(text(response).await, "fine", "{raw}");
            assert_eq!(proxy.dials(), dials);
        }
    }
}

/// Starts an upstream whose first connection serves one request and closes at the second; all others serve requests.
///
/// It counts the requests that it receives.
async fn closing_upstream(requests: Arc<AtomicUsize>) -> NodeAddress {
    raw_upstream(move |number, mut stream: TcpStream| {
        let requests = Arc::clone(&requests);
        async move {
            loop {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                let requests = requests.fetch_add(1, Ordering::SeqCst) + 1;
                if head.contains("content-length: 6") {
                    stream.read_exact(&mut [0; 6]).await.expect("the upload");
                }
                if number == 0 && requests == 2 {
                    return;
                }
                write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
            }
        }
    })
    .await
}

async fn check_stale(request: Request<hearth_proxy::Body>, expected_status: u16, expected_seen: usize) {
    let requests = Arc::new(AtomicUsize::new(0));
    let proxy = TestProxy::start(closing_upstream(Arc::clone(&requests)).await).await;
    let mut client = proxy.client().await;
    assert_eq!(text(client.get("/").await).await, "fine");
    wait_for_idle(&proxy, 1).await;
    let what = format!("{} {:?}", request.method(), request.headers());
    let response = client.send(request).await;
    assert_eq!(response.status().as_u16(), expected_status, "{what}");
    assert_eq!(requests.load(Ordering::SeqCst), expected_seen, "{what}");
}

#[tokio::test]
async fn a_request_on_a_stale_connection_is_resent_if_that_is_safe() {
    let with = |method: Method| {
        let mut request = get("/");
        *request.method_mut() = method;
        request
    };
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE, Method::PUT] {
        check_stale(with(method), 200, 3).await;
    }
    // The upstream may have processed the request.
    check_stale(with(Method::POST), 502, 2).await;
    check_stale(with(Method::PATCH), 502, 2).await;
    // The body was consumed.
    check_stale(post("/", body::full("upload")), 502, 2).await;
    let mut put = post("/", body::full("upload"));
    *put.method_mut() = Method::PUT;
    check_stale(put, 502, 2).await;
}

#[tokio::test]
async fn a_request_is_resent_only_once() {
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    let upstream = raw_upstream(move |number, mut stream: TcpStream| {
        let seen = Arc::clone(&seen);
        async move {
            while !read_head(&mut stream).await.is_empty() {
                seen.fetch_add(1, Ordering::SeqCst);
                if number > 0 || seen.load(Ordering::SeqCst) > 1 {
                    return;
                }
                write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
            }
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.client().await;
    assert_eq!(text(client.get("/").await).await, "fine");
    wait_for_idle(&proxy, 1).await;
    assert_eq!(client.get("/").await.status(), 502);
    assert_eq!((requests.load(Ordering::SeqCst), proxy.dials()), (3, 2));
}

#[tokio::test]
async fn a_request_with_a_partial_response_is_not_resent() {
    let upstream = raw_upstream(|_, mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
        read_head(&mut stream).await;
        write(&mut stream, "HTTP/1.1 200 O").await;
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.client().await;
    assert_eq!(text(client.get("/").await).await, "fine");
    wait_for_idle(&proxy, 1).await;
    assert_eq!(client.get("/").await.status(), 502);
    assert_eq!(proxy.dials(), 1);
}

#[tokio::test]
async fn clients_do_not_notice_that_an_idle_connection_closed() {
    let mut closed = Channel::new();
    let send = closed.sender();
    let upstream = raw_upstream(move |_, mut stream| {
        let send = send.clone();
        async move {
            read_head(&mut stream).await;
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
            drop(stream);
            send(());
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.client().await;
    for _ in 0..20 {
        assert_eq!(text(client.get("/").await).await, "fine");
        closed.recv().await;
    }
}

#[tokio::test]
async fn idle_connections_expire() {
    let proxy = TestProxy::start(upstream(respond_fine).await).await;
    let mut client = proxy.client().await;
    assert_eq!(text(client.get("/").await).await, "fine");
    wait_for_idle(&proxy, 1).await;
    advance_time(Duration::from_secs(599)).await;
    assert_eq!(text(client.get("/").await).await, "fine");
    wait_for_idle(&proxy, 1).await;
    assert_eq!(proxy.dials(), 1);
    // The idle time began again, and ends before a guest's own 640 s.
    advance_time(Duration::from_secs(620)).await;
    wait_until("the old connection to be dropped", || proxy.engine.idle_connections() == 0).await;
}

#[tokio::test]
async fn surplus_connections_of_a_burst_are_closed_early() {
    const BURST: usize = 24;
    let (upstream, mut sources) = streaming_upstream().await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = Client::connect_http2(proxy.address).await;
    let mut responses = Vec::new();
    for _ in 0..BURST {
        responses.push(client.get("/").await);
    }
    for response in responses {
        sources.recv().await.end();
        assert_eq!(text(response).await, "");
    }
    wait_for_idle(&proxy, BURST).await;
    advance_time(Duration::from_secs(50)).await;
    wait_until("the surplus to be closed", || proxy.engine.idle_connections() == 16).await;
}

#[tokio::test]
async fn unretryable_requests_use_no_old_connection() {
    let proxy = TestProxy::start(upstream(respond_fine).await).await;
    let mut client = proxy.client().await;
    for dials in 1..5 {
        assert_eq!(text(client.send(post("/", body::full("upload"))).await).await, "fine");
        assert_eq!(proxy.dials(), dials);
        // The old connection is replaced.
        wait_for_idle(&proxy, 1).await;
        advance_time(Duration::from_secs(4)).await;
    }
    // A retryable request uses an old connection.
    assert_eq!(text(client.get("/").await).await, "fine");
    assert_eq!(proxy.dials(), 4);
}

#[tokio::test]
async fn the_idle_timeout_of_the_upstream_is_respected() {
    let respond = |_| async {
        Response::builder().header("keep-alive", "timeout=5").body(body::full("fine")).expect("a response")
    };
    let proxy = TestProxy::start(upstream(respond).await).await;
    let mut client = proxy.client().await;
    for dials in 1..4 {
        let response = client.get("/").await;
        assert!(!response.headers().contains_key("keep-alive"));
        assert_eq!(text(response).await, "fine");
        assert_eq!(proxy.dials(), dials);
        wait_for_idle(&proxy, 1).await;
        advance_time(Duration::from_millis(4100)).await;
    }
}

#[tokio::test]
async fn unexpected_bytes_of_an_upstream_are_never_a_response() {
    let upstream = raw_upstream(|_, mut stream: TcpStream| async move {
        while !read_head(&mut stream).await.is_empty() {
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfineHTTP/1.1 200 OK\r\n").await;
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        // Bytes after a response are never the response to the next request.
        assert_eq!(text(with_timeout("a response", client.get("/")).await).await, "fine");
    }
}

#[tokio::test]
async fn bytes_after_a_bodyless_response_are_never_a_response() {
    let check = async |method: Method, head: &'static str| {
        // A simple server sends a body after every head. It is slow: the next request arrives before the body.
        let upstream = raw_upstream(move |_, mut stream| async move {
            read_head(&mut stream).await;
            write(&mut stream, head).await;
            if read_head(&mut stream).await.ends_with("\r\n\r\n") {
                write(&mut stream, &format!("body{head}")).await;
            }
        })
        .await;
        let proxy = TestProxy::start(upstream).await;
        let mut client = proxy.client().await;
        for _ in 0..4 {
            let mut request = get("/");
            *request.method_mut() = method.clone();
            let first = client.send(request).await;
            assert!(first.status().as_u16() < 400, "{head}: {}", first.status());
            assert_eq!(text(first).await, "");
        }
    };
    check(Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").await;
    check(Method::HEAD, "HTTP/1.1 203 Fine\r\n\r\n").await;
    check(Method::GET, "HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\n").await;
    check(Method::GET, "HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n").await;
}
