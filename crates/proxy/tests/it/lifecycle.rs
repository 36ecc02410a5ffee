//! Servers from the first connection to the end of the drain.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use hearth_proxy::serve::{self, Peer};
use hearth_proxy::{Body, Config, body};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::test_proxy::{
    Client, TestProxy, chunk, expect_abort, get, read_head, serve_config, serve_handler, streaming_upstream, text,
    with_timeout, write,
};

#[tokio::test]
async fn a_drain_finishes_responses_and_accepts_no_new_connections() {
    for http2 in [false, true] {
        let (upstream, mut sources) = streaming_upstream().await;
        let proxy = TestProxy::start(upstream).await;
        let mut client = proxy.client_of(http2).await;
        let mut response = client.get("/").await;
        let mut source = sources.recv().await;
        let (mut silent, mut late) = (proxy.raw().await, proxy.raw().await);
        // Once this request is served, the silent connections have been accepted, too.
        let idle = proxy.client().await.get("/").await;
        sources.recv().await.end();
        assert_eq!(text(idle).await, "");

        proxy.shutdown.cancel();
        // A request in transit is served, and a silent connection is not waited for.
        write(&mut late, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        sources.recv().await.end();
        let head = with_timeout("the response", read_head(&mut late)).await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ") && head.contains("connection: close"), "{head}");
        assert_eq!(with_timeout("the end", silent.read(&mut [0; 1])).await.expect("a proper end"), 0);
        source.send("late").await;
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("late"));
        assert!(TcpStream::connect(proxy.address).await.is_err());
        source.end();
        assert_eq!(chunk(response.body_mut()).await, None);
        assert_eq!(with_timeout("the drain", proxy.served).await.expect("the task does not panic"), 0);
    }
}

#[tokio::test]
async fn requests_are_aborted_at_the_drain_timeout() {
    for http2 in [false, true] {
        let (upstream, mut sources) = streaming_upstream().await;
        let serve_config = serve::Config { drain_timeout: Duration::from_millis(50), ..serve_config() };
        let proxy = TestProxy::start_with(upstream, Config::for_guests(), serve_config).await;
        let mut client = proxy.client_of(http2).await;
        let mut response = client.get("/").await;
        let mut source = sources.recv().await;
        source.send("part").await;
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("part"));
        proxy.shutdown.cancel();
        assert_eq!(with_timeout("the abort", proxy.served).await.expect("the task does not panic"), 1);
        expect_abort(response.body_mut()).await;
    }
}

#[tokio::test]
async fn dropping_the_server_aborts_all_requests() {
    let (upstream, mut sources) = streaming_upstream().await;
    let proxy = TestProxy::start(upstream).await;
    let mut response = proxy.client().await.get("/").await;
    let _source = sources.recv().await;
    proxy.served.abort();
    expect_abort(response.body_mut()).await;
}

#[tokio::test]
async fn a_unix_socket_is_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy");
    let listener = UnixListener::bind(&path).expect("a free path");
    let service = tower::service_fn(|request: Request<Body>| async move {
        let ip = request.extensions().get::<Peer>().map(Peer::ip);
        Ok::<_, Infallible>(Response::new(body::full(format!("{ip:?}"))))
    });
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(serve::serve(listener, service, serve_config(), shutdown.clone()));
    let stream = UnixStream::connect(&path).await.expect("the server listens");
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    assert_eq!(text(Client::Http1(sender).send(get("/")).await).await, "Some(None)");
    shutdown.cancel();
    assert_eq!(with_timeout("the drain", served).await.expect("the task does not panic"), 0);
}

#[tokio::test]
async fn handlers_get_the_peer() {
    let (address, _server) = serve_handler(|request: Request<Body>| async move {
        let peer = request.extensions().get::<Peer>().and_then(Peer::ip);
        Response::new(body::full(format!("{peer:?}")))
    })
    .await;
    for mut client in [Client::connect(address).await, Client::connect_http2(address).await] {
        assert_eq!(text(client.get("/").await).await, "Some(127.0.0.1)");
    }
}

#[tokio::test]
async fn chunks_before_a_failure_reach_the_client() {
    let (address, _server) = serve_handler(|_: Request<Body>| async {
        // Both are ready at the same time, so the failure could overtake the chunk.
        let part = Ok(Frame::data(Bytes::from_static(b"part")));
        let frames = futures::stream::iter([part, Err(std::io::Error::other("broken"))]);
        Response::new(body::boxed(StreamBody::new(frames)))
    })
    .await;
    for mut client in [Client::connect(address).await, Client::connect_http2(address).await] {
        let mut response = client.get("/").await;
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("part"));
        expect_abort(response.body_mut()).await;
    }
}

#[tokio::test]
async fn expect_continue_is_not_answered_for_an_unread_body() {
    let (address, _server) = serve_handler(|request: Request<Body>| async {
        drop(request);
        // If the server read the body instead of the handler, it would do so now.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        Response::builder().status(413).body(body::empty()).expect("a response")
    })
    .await;
    let mut client = TcpStream::connect(address).await.expect("the server listens");
    write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await;
    assert!(with_timeout("the response", read_head(&mut client)).await.starts_with("HTTP/1.1 413 "));
}
