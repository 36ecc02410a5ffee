//! Upstreams with and without HTTP/2.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hearth_proxy::Config;
use hearth_proxy::body::{self, Body, boxed};
use hearth_types::NodeAddress;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::test_proxy::{
    BodySender, Channel, Client, GROUP, TestProxy, chunk, expect_abort, get, post, raw_upstream, read_head,
    serve_config, text, wait_until, with_timeout, write,
};

/// Starts a server that speaks only HTTP/2.
async fn http2_upstream<H, F>(handler: H) -> NodeAddress
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    raw_upstream(move |_, stream| {
        let handler = handler.clone();
        async move {
            let service = hyper::service::service_fn(move |request| {
                let response = handler(request);
                async move { Ok::<_, std::convert::Infallible>(response.await) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // Tests abort connections on purpose.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

fn grpc(path: &str, body: Body) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    request.body(body).expect("a request")
}

/// Sends back every chunk, and their number in the trailers.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    assert_eq!(request.version(), Version::HTTP_2);
    assert_eq!(request.headers()["te"], "trailers");
    let (mut source, response_body) = BodySender::body();
    let mut request_body = request.into_body();
    tokio::spawn(async move {
        let mut chunks = 0;
        while let Some(Ok(frame)) = request_body.frame().await {
            let data = frame.into_data().expect("no trailers");
            if !data.is_empty() {
                chunks += 1;
                source.send(String::from_utf8(data.to_vec()).expect("text").leak()).await;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", chunks.into());
        source.send_trailers(trailers).await;
    });
    Response::builder().header("content-type", "application/grpc").body(response_body).expect("a response")
}

async fn trailers(body: &mut Incoming) -> HeaderMap {
    loop {
        let frame = with_timeout("trailers", body.frame()).await.expect("trailers are sent").expect("not aborted");
        if let Ok(trailers) = frame.into_trailers() {
            return trailers;
        }
    }
}

/// Starts two proxies, as an edge and a node, before an upstream.
async fn edge_and_node(upstream: NodeAddress) -> (TestProxy, TestProxy) {
    let node = TestProxy::start(upstream).await;
    let edge = TestProxy::start_with(NodeAddress::Tcp(node.address), Config::for_nodes(), serve_config()).await;
    (edge, node)
}

#[tokio::test]
async fn both_directions_stream_concurrently_and_end_with_trailers() {
    let (edge, node) = edge_and_node(http2_upstream(echo).await).await;
    let mut client = Client::connect_http2(edge.address).await;
    for _ in 0..3 {
        let (mut source, body) = BodySender::body();
        let mut response = client.send(grpc("/echo.Echo/Both", body)).await;
        assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
        for part in ["one", "two", "three"] {
            source.send(part).await;
            assert_eq!(chunk(response.body_mut()).await.as_deref(), Some(part));
        }
        source.end();
        assert_eq!(trailers(response.body_mut()).await["grpc-status"], "3");
    }
    wait_until("connections to be idle", || edge.engine.idle_connections() == 1 && node.engine.idle_connections() == 1)
        .await;
    assert_eq!((edge.dials(), node.dials()), (1, 1), "sequential requests use one connection");
}

#[tokio::test]
async fn concurrent_calls_are_independent() {
    const CALLS: usize = 40;
    let (edge, _node) = edge_and_node(http2_upstream(echo).await).await;
    let mut client = Client::connect_http2(edge.address).await;
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        let (source, body) = BodySender::body();
        calls.push((source, client.send(grpc("/", body)).await));
    }
    for (source, response) in calls.iter_mut().rev() {
        source.send("part").await;
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("part"));
    }
    for (source, mut response) in calls {
        source.end();
        assert_eq!(trailers(response.body_mut()).await["grpc-status"], "1");
    }
}

#[tokio::test]
async fn a_trailers_only_response_passes() {
    let refuse = |_: Request<Incoming>| async {
        Response::builder().header("grpc-status", "12").body(body::empty()).expect("a response")
    };
    let (edge, _node) = edge_and_node(http2_upstream(refuse).await).await;
    let mut client = Client::connect_http2(edge.address).await;
    let (_source, body) = BodySender::body();
    let response = client.send(grpc("/", body)).await;
    assert_eq!(response.headers()["grpc-status"], "12");
    assert!(http_body::Body::is_end_stream(response.body()));
}

#[tokio::test]
async fn a_guest_with_only_http2_is_reached_by_all_clients() {
    let respond = |request: Request<Incoming>| async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let seen = format!("{} {:?} {}", parts.method, parts.version, String::from_utf8_lossy(&body));
        Response::new(body::full(seen))
    };
    for http2 in [true, false] {
        let proxy = TestProxy::start(http2_upstream(respond).await).await;
        let mut client = proxy.client_of(http2).await;
        assert_eq!(text(client.get("/").await).await, "GET HTTP/2.0 ");
        // The version is known now.
        for _ in 0..2 {
            assert_eq!(text(client.send(post("/", body::full("upload"))).await).await, "POST HTTP/2.0 upload");
        }
        assert_eq!(proxy.dials(), 2, "one in HTTP/1.1, one in HTTP/2");
    }
    // A request that the server did not understand is resent.
    let proxy = TestProxy::start(http2_upstream(respond).await).await;
    let mut client = Client::connect_http2(proxy.address).await;
    assert_eq!(text(client.send(post("/", body::full("upload"))).await).await, "POST HTTP/2.0 upload");
}

#[tokio::test]
async fn a_guest_with_only_http1_is_reached_after_a_failed_probe() {
    for refusal in ["HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", "HTTP/1.0 505 No\r\n\r\n", "", "no HTTP"] {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let upstream = raw_upstream(move |_, mut stream: TcpStream| {
            let counted = Arc::clone(&counted);
            async move {
                loop {
                    let head = read_head(&mut stream).await;
                    if head.starts_with("PRI * HTTP/2.0\r\n") {
                        return write(&mut stream, refusal).await;
                    }
                    if head.is_empty() {
                        return;
                    }
                    counted.fetch_add(1, Ordering::SeqCst);
                    write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
                }
            }
        })
        .await;
        let proxy = TestProxy::start(upstream).await;
        let mut client = Client::connect_http2(proxy.address).await;
        for number in 1..4 {
            let request = grpc("/", body::empty());
            assert_eq!(text(client.send(request).await).await, "fine", "{refusal}");
            assert_eq!(requests.load(Ordering::SeqCst), number);
        }
        assert_eq!(proxy.dials(), 2, "the server is probed once");
    }
}

#[tokio::test]
async fn a_guest_is_not_probed_for_http2_without_need() {
    let upstream = raw_upstream(|number, mut stream| async move {
        assert_eq!(number, 0, "it serves a single connection");
        while read_head(&mut stream).await.starts_with("GET / HTTP/1.1\r\n") {
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = Client::connect_http2(proxy.address).await;
    for _ in 0..3 {
        assert_eq!(text(client.get("/").await).await, "fine");
    }
    assert_eq!(proxy.dials(), 1);
}

#[tokio::test]
async fn a_silent_server_is_retried_in_http1() {
    let upstream = raw_upstream(|_, mut stream| async move {
        if read_head(&mut stream).await.starts_with("PRI") {
            // The proxy closes the connection.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            return;
        }
        write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = Client::connect_http2(proxy.address).await;
    assert_eq!(text(client.send(grpc("/", body::empty())).await).await, "fine");
}

#[tokio::test]
async fn a_cancelled_call_ends_at_the_guest() {
    let mut sources = Channel::new();
    let send = sources.sender();
    let respond = move |_: Request<Incoming>| {
        let (source, body) = BodySender::body();
        send(source);
        async { Response::new(body) }
    };
    let (edge, node) = edge_and_node(http2_upstream(respond).await).await;
    let mut client = Client::connect_http2(edge.address).await;
    let response = client.send(grpc("/", body::full("request"))).await;
    let source = sources.recv().await;
    drop(response);
    wait_until("the guest to notice", || source.is_closed()).await;
    edge.requests_finished().await;
    node.requests_finished().await;
}

#[tokio::test]
async fn a_reset_reaches_the_client_with_its_error_code() {
    let upstream = raw_upstream(|_, mut stream: TcpStream| async move {
        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
            [&[0, 0, u8::try_from(payload.len()).expect("short"), kind, flags, 0, 0, 0, stream], payload].concat()
        };
        // Sends SETTINGS, and after a request HEADERS with `:status 200` and RST_STREAM with ENHANCE_YOUR_CALM.
        stream.write_all(&frame(4, 0, 0, &[])).await.expect("the proxy reads");
        let mut seen = Vec::new();
        // Frame header of HEADERS on stream 1, with any length and flags.
        while !seen.windows(6).any(|bytes| bytes[0] == 1 && bytes[2..] == [0, 0, 0, 1]) {
            assert_ne!(stream.read_buf(&mut seen).await.expect("the proxy writes"), 0);
        }
        let response = [frame(1, 4, 1, &[0x88]), frame(3, 0, 1, &[0, 0, 0, 11])].concat();
        stream.write_all(&response).await.expect("the proxy reads");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let (edge, _node) = edge_and_node(upstream).await;
    let mut client = Client::connect_http2(edge.address).await;
    let (_source, body) = BodySender::body();
    let error = match client.try_send(grpc("/", body)).await {
        Ok(mut response) => {
            with_timeout("the reset", response.body_mut().frame()).await.expect("a reset").expect_err("a reset")
        }
        Err(error) => error,
    };
    assert!(format!("{error:?}").contains("ENHANCE_YOUR_CALM"), "{error:?}");
}

#[tokio::test]
async fn abort_stops_calls_and_closes_idle_connections() {
    let (edge, node) = edge_and_node(http2_upstream(echo).await).await;
    let mut client = Client::connect_http2(edge.address).await;
    let (mut source, body) = BodySender::body();
    let mut response = client.send(grpc("/", body)).await;
    source.send("part").await;
    assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("part"));
    node.engine.abort(&GROUP);
    expect_abort(response.body_mut()).await;
    node.requests_finished().await;
    assert_eq!(node.engine.idle_connections(), 0);
}

#[tokio::test]
async fn a_connection_with_goaway_is_not_reused() {
    let served = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    let upstream = raw_upstream(move |_, stream| {
        let counted = Arc::clone(&counted);
        async move {
            let answered = Arc::new(tokio::sync::Notify::new());
            let notify = Arc::clone(&answered);
            let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                counted.fetch_add(1, Ordering::SeqCst);
                notify.notify_one();
                async { Ok::<_, std::convert::Infallible>(Response::new(body::full("fine"))) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            // Sends GOAWAY with the first response.
            tokio::select! {
                _ = connection.as_mut() => return,
                () = answered.notified() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let mut client = Client::connect_http2(proxy.address).await;
    for number in 1..5 {
        assert_eq!(text(client.send(grpc("/", body::empty())).await).await, "fine");
        assert_eq!(served.load(Ordering::SeqCst), number);
        proxy.requests_finished().await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_the_guest_down() {
    let mut progress = Channel::new();
    let send = progress.sender();
    let flood = move |_: Request<Incoming>| {
        let (mut sender, receiver) = futures::channel::mpsc::channel::<Result<_, std::io::Error>>(0);
        let send = send.clone();
        tokio::spawn(async move {
            let chunk = bytes::Bytes::from(vec![b'x'; 64 << 10]);
            let mut written = 0;
            let mut write =
                async || futures::SinkExt::send(&mut sender, Ok(http_body::Frame::data(chunk.clone()))).await;
            while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(500), write()).await {
                written += 64 << 10;
            }
            send(written);
        });
        async { Response::new(boxed(http_body_util::StreamBody::new(receiver))) }
    };
    let (edge, _node) = edge_and_node(http2_upstream(flood).await).await;
    let mut client = Client::connect_http2(edge.address).await;
    let response = client.send(grpc("/", body::empty())).await;
    assert!(progress.recv().await < 8 << 20);
    drop(response);
}

#[tokio::test]
async fn the_size_of_heads_is_limited() {
    let respond = |_: Request<Incoming>| async {
        let mut response = Response::new(body::empty());
        for number in 0..300 {
            let name: http::HeaderName = format!("x-{number}").parse().expect("a name");
            response.headers_mut().insert(name, "v".repeat(4096).parse().expect("a value"));
        }
        response
    };
    let proxy = TestProxy::start(http2_upstream(respond).await).await;
    let mut client = Client::connect_http2(proxy.address).await;
    assert_eq!(client.send(grpc("/", body::empty())).await.status(), 502);
    proxy.requests_finished().await;
    let mut head = get("/");
    *head.method_mut() = Method::HEAD;
    assert_eq!(client.send(head).await.status(), 502);
}
