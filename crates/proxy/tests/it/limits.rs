//! Limits of requests and connections, and the responses beyond them.

use std::sync::atomic::{AtomicBool, Ordering};

use hearth_proxy::{Config, body, serve};
use hearth_types::NodeAddress;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;

use crate::test_proxy::{
    BodySender, Channel, Client, TestProxy, closed_port, get, serve_config, streaming_upstream, text, upstream,
    wait_until, with_timeout, write,
};

#[tokio::test]
async fn too_many_requests_to_a_sandbox_are_rejected() {
    let (upstream, mut sources) = streaming_upstream().await;
    let config = Config { requests_per_group_max: 2, ..Config::for_guests() };
    let proxy = TestProxy::start_with(upstream, config, serve_config()).await;
    let mut client = Client::connect_http2(proxy.address).await;
    let (first, second) = (client.get("/").await, client.get("/").await);
    let refused = client.get("/").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        text(refused).await,
        r#"{"sandboxId":"i123","message":"Too many connections to the sandbox are open","connectionLimit":2,"code":429}"#
    );
    // A request no longer counts when its response has ended or was dropped.
    sources.recv().await.end();
    assert_eq!(text(first).await, "");
    drop(second);
    proxy.requests_finished().await;
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_closed_port_is_reported_after_five_attempts() {
    let proxy = TestProxy::start(NodeAddress::Tcp(closed_port().await)).await;
    let response = proxy.client().await.get("/").await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
    assert_eq!(
        text(response).await,
        r#"{"sandboxId":"i123","message":"The sandbox is running but port is not open","port":8080,"code":502}"#
    );
    assert_eq!(proxy.dials(), 5);
}

#[tokio::test]
async fn a_server_that_is_just_starting_is_not_reported_closed() {
    let address = closed_port().await;
    let proxy = TestProxy::start(NodeAddress::Tcp(address)).await;
    let mut client = proxy.client().await;
    let start = async {
        wait_until("the first attempts", || proxy.dials() == 2).await;
        let listener = tokio::net::TcpListener::bind(address).await.expect("the port is still free");
        let service = tower::service_fn(|_| async { Ok(Response::new(body::full("started"))) });
        tokio::spawn(serve::serve(listener, service, serve_config(), proxy.shutdown.clone()));
    };
    let (response, ()) = tokio::join!(client.get("/"), start);
    assert_eq!(text(response).await, "started");
    assert!(proxy.dials() > 2);
}

#[tokio::test]
async fn browsers_get_the_message_as_html() {
    let proxy = TestProxy::start(NodeAddress::Tcp(closed_port().await)).await;
    let mut request = get("/");
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    request.headers_mut().insert("user-agent", agent.parse().expect("a value"));
    request.headers_mut().insert("accept", "text/html,*/*;q=0.8".parse().expect("a value"));
    let response = proxy.client().await.send(request).await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let page = text(response).await;
    assert!(page.contains("<h1>The sandbox is running but port is not open</h1>"), "{page}");
    assert!(page.contains("i123") && page.contains("8080"), "{page}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_while_all_are_busy() {
    let mut sources = Channel::new();
    let send = sources.sender();
    let upstream = upstream(move |request: Request<Incoming>| {
        let (source, body) = BodySender::body();
        let body = if request.uri().path() == "/stream" { body } else { body::full("fine") };
        send(source);
        std::future::ready(Response::new(body))
    })
    .await;
    let serve_config = serve::Config { connections_max: 1, ..serve_config() };
    let proxy = TestProxy::start_with(upstream, Config::for_guests(), serve_config).await;
    let mut first = proxy.client().await;
    let stream = first.get("/stream").await;
    let mut second = proxy.client().await;
    let is_over = AtomicBool::new(false);
    let waiting = async {
        assert_eq!(text(second.get("/").await).await, "fine");
        assert!(is_over.load(Ordering::SeqCst), "the busy connection was replaced");
    };
    let busy = async {
        let mut source = sources.recv().await;
        source.send("part").await;
        is_over.store(true, Ordering::SeqCst);
        source.end();
        assert_eq!(text(stream).await, "part");
    };
    tokio::join!(waiting, busy);
}

#[tokio::test]
async fn the_longest_idle_connection_is_closed_for_a_new_one() {
    let upstream = upstream(|_: Request<Incoming>| std::future::ready(Response::new(body::full("fine")))).await;
    let serve_config = serve::Config { connections_max: 4, ..serve_config() };
    let proxy = TestProxy::start_with(upstream, Config::for_guests(), serve_config).await;
    // A silent connection, one within a head, and one that has been served.
    let mut silent = proxy.raw().await;
    let mut slow = proxy.raw().await;
    write(&mut slow, "GET / HTTP/1.1\r\nhost: a\r\nx-slow").await;
    let mut served = proxy.client().await;
    assert_eq!(text(served.get("/").await).await, "fine");
    // All have the same address, which may have two connections.
    assert_eq!(text(proxy.client().await.get("/").await).await, "fine");
    for mut closed in [silent.split().0, slow.split().0] {
        let read = with_timeout("the end", closed.read(&mut [0; 1])).await;
        assert!(read.is_err() || read.is_ok_and(|bytes| bytes == 0));
    }
    assert_eq!(text(served.get("/").await).await, "fine");
}
