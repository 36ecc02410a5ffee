//! From the first connection until nothing is left.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use hearth_proxy::serve::{self, Peer};
use hearth_proxy::{Body, Config, body};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::test_proxy::{
    BodySender, Channel, Client, TestProxy, chunk, expect_abort, get, read_head, serve_config, text, upstream,
    with_timeout, write,
};

/// An upstream whose answers the test feeds.
async fn fed(sources: &Channel<BodySender>) -> hearth_types::NodeAddress {
    let send = sources.sender();
    upstream(move |_: Request<Incoming>| {
        let (source, body) = BodySender::body();
        send(source);
        std::future::ready(Response::new(body))
    })
    .await
}

#[tokio::test]
async fn a_drain_lets_answers_end_and_takes_no_new_connections() {
    for http2 in [false, true] {
        let mut sources = Channel::new();
        let proxy = TestProxy::start(fed(&sources).await).await;
        let mut client = if http2 { Client::connect_http2(proxy.address).await } else { proxy.client().await };
        let mut response = client.get("/").await;
        let mut source = sources.recv().await;
        let (mut silent, mut late) = (proxy.raw().await, proxy.raw().await);
        // Those that have said nothing have been accepted, too.
        let idle = proxy.client().await.get("/").await;
        sources.recv().await.end();
        assert_eq!(text(idle).await, "");

        proxy.shutdown.cancel();
        // What was on its way is answered, and whoever asks nothing is not waited for.
        write(&mut late, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        sources.recv().await.end();
        let answer = with_timeout("the answer", read_head(&mut late)).await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200 ") && answer.contains("connection: close"), "{answer}");
        assert_eq!(with_timeout("the end", silent.read(&mut [0; 1])).await.expect("a proper end"), 0);
        source.send("late").await;
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("late"));
        assert!(TcpStream::connect(proxy.address).await.is_err());
        source.end();
        assert_eq!(chunk(response.body_mut()).await, None);
        assert_eq!(with_timeout("the drain", proxy.served).await.expect("no panic"), 0);
    }
}

#[tokio::test]
async fn what_outlives_the_patience_is_cut() {
    for http2 in [false, true] {
        let mut sources = Channel::new();
        let serve_config = serve::Config { drain_timeout: Duration::from_millis(50), ..serve_config() };
        let proxy = TestProxy::start_with(fed(&sources).await, Config::for_guests(), serve_config).await;
        let mut client = if http2 { Client::connect_http2(proxy.address).await } else { proxy.client().await };
        let mut response = client.get("/").await;
        let mut source = sources.recv().await;
        source.send("part").await;
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("part"));
        proxy.shutdown.cancel();
        assert_eq!(with_timeout("the cut", proxy.served).await.expect("no panic"), 1);
        expect_abort(response.body_mut()).await;
    }
}

#[tokio::test]
async fn dropping_the_server_cuts_everything() {
    let mut sources = Channel::new();
    let proxy = TestProxy::start(fed(&sources).await).await;
    let mut response = proxy.client().await.get("/").await;
    let _source = sources.recv().await;
    proxy.served.abort();
    expect_abort(response.body_mut()).await;
}

#[tokio::test]
async fn a_unix_socket_is_served_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy");
    let listener = UnixListener::bind(&path).expect("a free path");
    let service = tower::service_fn(|request: Request<Body>| async move {
        let ip = request.extensions().get::<Peer>().map(Peer::ip);
        Ok::<_, Infallible>(Response::new(body::full(format!("{ip:?}"))))
    });
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(serve::serve(listener, service, serve_config(), shutdown.clone()));
    let stream = UnixStream::connect(&path).await.expect("it listens");
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    assert_eq!(text(Client::Http1(sender).send(get("/")).await).await, "Some(None)");
    shutdown.cancel();
    assert_eq!(with_timeout("the drain", served).await.expect("no panic"), 0);
}

#[tokio::test]
async fn handlers_know_the_peer() {
    let (listener, address) = crate::test_proxy::listen().await;
    let service = tower::service_fn(|request: Request<Body>| async move {
        let peer = request.extensions().get::<Peer>().and_then(Peer::ip);
        Ok::<_, Infallible>(Response::new(body::full(format!("{peer:?}"))))
    });
    let shutdown = CancellationToken::new();
    let _end = shutdown.clone().drop_guard();
    tokio::spawn(serve::serve(listener, service, serve_config(), shutdown));
    for mut client in [Client::connect(address).await, Client::connect_http2(address).await] {
        assert_eq!(text(client.get("/").await).await, "Some(127.0.0.1)");
    }
}

#[tokio::test]
async fn what_came_before_a_failure_is_still_the_client_s() {
    let (listener, address) = crate::test_proxy::listen().await;
    let service = tower::service_fn(|_: Request<Body>| async {
        // Both are there at once, so that nothing but care keeps the failure from overtaking the part.
        let part = Ok(Frame::data(Bytes::from_static(b"part")));
        let frames = futures::stream::iter([part, Err(std::io::Error::other("broken"))]);
        Ok::<_, Infallible>(Response::new(body::boxed(StreamBody::new(frames))))
    });
    let shutdown = CancellationToken::new();
    let _end = shutdown.clone().drop_guard();
    tokio::spawn(serve::serve(listener, service, serve_config(), shutdown));
    for mut client in [Client::connect(address).await, Client::connect_http2(address).await] {
        let mut response = client.get("/").await;
        assert_eq!(chunk(response.body_mut()).await.as_deref(), Some("part"));
        expect_abort(response.body_mut()).await;
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_not_told_to_send_what_nobody_wants() {
    let (listener, address) = crate::test_proxy::listen().await;
    let service = tower::service_fn(|request: Request<Body>| async {
        drop(request);
        // Whoever reads the body in our place would do so now.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        Ok::<_, Infallible>(Response::builder().status(413).body(body::empty()).expect("a response"))
    });
    let shutdown = CancellationToken::new();
    let _end = shutdown.clone().drop_guard();
    tokio::spawn(serve::serve(listener, service, serve_config(), shutdown));
    let mut client = TcpStream::connect(address).await.expect("it listens");
    write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await;
    assert!(with_timeout("the answer", read_head(&mut client)).await.starts_with("HTTP/1.1 413 "));
}
