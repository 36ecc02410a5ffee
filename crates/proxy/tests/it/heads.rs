//! Heads of requests and responses, and the limits of reading them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hearth_proxy::body;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::test_proxy::{
    Channel, Client, TestProxy, advance_time, closed_port, get, post, raw_upstream, read_head, text, upstream,
    with_timeout, write,
};

/// Returns the head that the upstream receives when the client sends `request`, with sorted header lines.
async fn forwarded_head(request: &str) -> Vec<String> {
    let mut heads = Channel::new();
    let send = heads.sender();
    let upstream = raw_upstream(move |_, mut stream| {
        let send = send.clone();
        async move {
            send(read_head(&mut stream).await);
            write(&mut stream, "HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = proxy.raw().await;
    write(&mut client, request).await;
    let head = heads.recv().await;
    let mut lines: Vec<String> = head.trim_end().lines().map(str::to_owned).collect();
    lines[1..].sort();
    lines
}

#[tokio::test]
async fn hop_by_hop_headers_are_removed_and_the_host_is_forwarded() {
    let head = forwarded_head(
        "GET /a%2Fb/../c?d=%20&e HTTP/1.1\r\nHost: 8080-I123.Example.com:3002\r\nConnection: keep-alive, X-Mine\r\n\
         Keep-Alive: timeout=5\r\nX-Mine: 1\r\nProxy-Authorization: Basic x\r\nX-Yours: 1\r\nlang_version: 3\r\n\
         Authorization: Basic dXNlcjo=\r\nUser-Agent: t\r\n\r\n",
    )
    .await;
    let expected = [
        // The path is forwarded as it was written.
        "GET /a%2Fb/../c?d=%20&e HTTP/1.1",
        "Authorization: Basic dXNlcjo=",
        "Host: 8080-I123.Example.com:3002",
        "Lang_version: 3",
        "User-Agent: t",
        "X-Yours: 1",
    ];
    assert_eq!(head, expected);
}

#[tokio::test]
async fn an_absolute_uri_is_converted_to_path_and_host() {
    let head = forwarded_head("GET http://8080-i123.example.com/x?y HTTP/1.1\r\nHost: other\r\n\r\n").await;
    assert_eq!(head, ["GET /x?y HTTP/1.1", "Host: 8080-i123.example.com"]);
    let head = forwarded_head("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(head, ["OPTIONS * HTTP/1.1", "Host: a"]);
}

#[tokio::test]
async fn guests_get_header_names_in_canonical_case() {
    let expected = ["GET / HTTP/1.1", "Content-Type: a", "Host: a", "Sec-Websocket-Key: k", "X-B3-Id: 1"];
    let head = "GET / HTTP/1.1\r\nHOST: a\r\ncontent-type: a\r\nSec-WebSocket-Key: k\r\nx-b3-ID: 1\r\n\r\n";
    assert_eq!(forwarded_head(head).await, expected);
}

#[tokio::test]
async fn ambiguous_requests_are_rejected_and_never_forwarded() {
    const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let seen = Arc::new(Mutex::new(Vec::new()));
    let upstream = {
        let seen = Arc::clone(&seen);
        upstream(move |request: Request<Incoming>| {
            seen.lock().expect("not poisoned").push(request.uri().to_string());
            async move {
                let body =
                    request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                Response::new(body::full(body))
            }
        })
        .await
    };
    let proxy = TestProxy::start(upstream).await;
    for wrong in [
        "GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\nhost: a\n\n",
        "GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: y\rz\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n",
        "GET / HTTP/1.1\r\n host: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut client = proxy.raw().await;
        // Also after a valid request, and nothing after the invalid one is served.
        write(&mut client, "POST /right HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\na\nb\n\nc").await;
        write(&mut client, &format!("{wrong}{SMUGGLED}")).await;
        let mut responses = String::new();
        with_timeout("the end", client.read_to_string(&mut responses)).await.expect("a proper end");
        let statuses: Vec<_> =
            responses.match_indices("HTTP/1.1 ").map(|(at, _)| &responses[at + 9..at + 12]).collect();
        assert_eq!(statuses, ["200", "400"], "{wrong:?}: {responses}");
        assert!(responses.contains("a\nb\n\nc"), "{responses}");
    }
    assert!(seen.lock().expect("not poisoned").iter().all(|path| path == "/right"), "{seen:?}");
}

#[tokio::test]
async fn an_http2_request_names_one_host() {
    let proxy = TestProxy::start(upstream(|_| async { Response::new(body::empty()) }).await).await;
    let stream = TcpStream::connect(proxy.address).await.expect("the proxy listens");
    let executor = hyper_util::rt::TokioExecutor::new();
    let handshake = hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("a handshake");
    tokio::spawn(connection);
    for (hosts, status) in [
        (&[][..], 200),
        (&["8080-I123.example.com"], 200),
        (&["other"], 400),
        (&["8080-i123.example.com", "8080-i123.example.com"], 400),
    ] {
        let mut request = Request::get("http://8080-i123.example.com/").body(body::empty()).expect("a request");
        for host in hosts {
            request.headers_mut().append("host", host.parse().expect("a value"));
        }
        let response = with_timeout("a response", sender.send_request(request)).await.expect("a response");
        assert_eq!(response.status(), status, "{hosts:?}");
    }
}

#[tokio::test]
async fn http2_requests_are_converted_to_http1() {
    let handler = |request: Request<Incoming>| async move {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        let seen = (request.version(), request.uri().to_string(), header("host"), header("cookie"));
        Response::new(body::full(format!("{seen:?}")))
    };
    let proxy = TestProxy::start(upstream(handler).await).await;
    let mut client = Client::connect_http2(proxy.address).await;
    let mut request = get("/x?y");
    request.headers_mut().append("cookie", "a=1".parse().expect("a value"));
    request.headers_mut().append("cookie", "b=2".parse().expect("a value"));
    let response = client.send(request).await;
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(text(response).await, r#"(HTTP/1.1, "/x?y", Some("8080-i123.example.com"), Some("a=1; b=2"))"#);
}

#[tokio::test]
async fn hundreds_of_headers_pass() {
    let handler = |request: Request<Incoming>| async move {
        let mut response = Response::new(body::empty());
        *response.headers_mut() = request.headers().clone();
        response.headers_mut().remove("host");
        response
    };
    let proxy = TestProxy::start(upstream_with_many_headers(handler).await).await;
    for http2 in [false, true] {
        // As many as hyper's client accepts in HTTP/1.1; the proxy accepts more.
        let mut client = if http2 { Client::connect_http2(proxy.address).await } else { many_headers(&proxy).await };
        let mut request = post("/", body::empty());
        for number in 0..400 {
            let name: http::HeaderName = format!("x-metadata-{number}").parse().expect("a name");
            request.headers_mut().insert(name, "v".repeat(128).parse().expect("a value"));
        }
        let response = client.send(request).await;
        assert_eq!(response.status(), 200);
        let metadata = response.headers().keys().filter(|name| name.as_str().starts_with("x-metadata-"));
        assert_eq!(metadata.count(), 400);
    }
}

async fn many_headers(proxy: &TestProxy) -> Client {
    let mut builder = hyper::client::conn::http1::Builder::new();
    let io = hyper_util::rt::TokioIo::new(proxy.raw().await);
    let (sender, connection) = builder.max_headers(512).handshake(io).await.expect("a handshake");
    tokio::spawn(connection);
    Client::Http1(sender)
}

async fn upstream_with_many_headers<H, F>(handler: H) -> hearth_types::NodeAddress
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<hearth_proxy::Body>> + Send + 'static,
{
    raw_upstream(move |_, stream| {
        let handler = handler.clone();
        async move {
            let service = hyper::service::service_fn(move |request| {
                let response = handler(request);
                async move { Ok::<_, std::convert::Infallible>(response.await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.max_headers(512).serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
        }
    })
    .await
}

#[tokio::test]
async fn expect_continue_is_answered_when_the_body_is_read() {
    let echo = |request: Request<Incoming>| async move {
        assert!(!request.headers().contains_key("expect"));
        Response::new(body::boxed(request.into_body()))
    };
    let proxy = TestProxy::start(upstream(echo).await).await;
    let mut client = proxy.raw().await;
    write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await;
    assert_eq!(with_timeout("the interim response", read_head(&mut client)).await, "HTTP/1.1 100 Continue\r\n\r\n");
    write(&mut client, "body").await;
    assert!(with_timeout("the response", read_head(&mut client)).await.starts_with("HTTP/1.1 200 OK\r\n"));
    let mut echo = [0; 4];
    client.read_exact(&mut echo).await.expect("the echo");
    assert_eq!(&echo, b"body");
}

#[tokio::test]
async fn expect_continue_is_not_answered_without_an_upstream() {
    let proxy = TestProxy::start(hearth_types::NodeAddress::Tcp(closed_port().await)).await;
    let mut client = proxy.raw().await;
    write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await;
    assert!(with_timeout("the response", read_head(&mut client)).await.starts_with("HTTP/1.1 502 Bad Gateway\r\n"));
}

#[tokio::test]
async fn connect_requests_are_rejected() {
    let proxy = TestProxy::start(upstream(|_| async { Response::new(body::empty()) }).await).await;
    let mut client = proxy.raw().await;
    write(&mut client, "CONNECT 169.254.169.254:80 HTTP/1.1\r\nhost: 169.254.169.254:80\r\n\r\n").await;
    assert!(with_timeout("the response", read_head(&mut client)).await.starts_with("HTTP/1.1 502 "));
    assert_eq!(proxy.dials(), 0);
}

/// Returns a connection on which `sent` was written and then nothing for `quiet`.
async fn client_after_silence(proxy: &TestProxy, sent: &str, quiet: Duration) -> TcpStream {
    let mut client = proxy.raw().await;
    write(&mut client, sent).await;
    // When the proxy responds to another client, it has read what was sent and polled the connection.
    let _ = proxy.client().await.get("/").await;
    advance_time(quiet).await;
    client
}

async fn is_closed(client: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    with_timeout("the end", client.read_to_end(&mut rest)).await.is_err() || rest.is_empty()
}

#[tokio::test]
async fn silent_and_slow_clients_are_disconnected() {
    let proxy = TestProxy::start(upstream(|_| async { Response::new(body::empty()) }).await).await;
    for sent in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost: a\r\nx-slow"] {
        assert!(is_closed(&mut client_after_silence(&proxy, sent, Duration::from_secs(31)).await).await, "{sent}");
        // Until then the connection stays open.
        let mut client = client_after_silence(&proxy, sent, Duration::from_secs(29)).await;
        client.write_all(b"").await.expect("still open");
        if sent.starts_with("GET") {
            write(&mut client, ": 1\r\n\r\n").await;
            assert!(with_timeout("the response", read_head(&mut client)).await.starts_with("HTTP/1.1 200 OK\r\n"));
        }
    }
}

#[tokio::test]
async fn idle_connections_stay_open_for_the_documented_time() {
    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let proxy = TestProxy::start(upstream(|_| async { Response::new(body::empty()) }).await).await;
    let mut client = proxy.raw().await;
    for _ in 0..3 {
        write(&mut client, GET).await;
        assert!(with_timeout("the response", read_head(&mut client)).await.starts_with("HTTP/1.1 200 OK\r\n"));
        let _ = proxy.client().await.get("/").await;
        advance_time(Duration::from_secs(630)).await;
    }
    let _ = proxy.client().await.get("/").await;
    advance_time(Duration::from_secs(11)).await;
    assert!(is_closed(&mut client).await);
}
