//! How much of everything there may be, and what clients read then.

use std::sync::atomic::{AtomicBool, Ordering};

use hearth_proxy::{Config, body, serve};
use hearth_types::NodeAddress;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;

use crate::stage::{Client, GROUP, Handed, Source, Stage, get, listen, serving, soon, text, until, upstream, write};

#[tokio::test]
async fn too_many_requests_to_a_sandbox_are_refused() {
    let mut sources = Handed::new();
    let hand = sources.hand();
    let upstream = upstream(move |_: Request<Incoming>| {
        let (source, body) = Source::body();
        hand(source);
        std::future::ready(Response::new(body))
    })
    .await;
    let config = Config { requests_per_group_max: 2, ..Config::for_guests() };
    let stage = Stage::with(upstream, config, serving()).await;
    let mut client = Client::connect_http2(stage.address).await;
    let (first, second) = (client.get("/").await, client.get("/").await);
    let refused = client.get("/").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        text(refused).await,
        r#"{"sandboxId":"i123","message":"Too many connections to the sandbox are open","connectionLimit":2,"code":429}"#
    );
    // A place is free again when an answer has ended, and also when it is not wanted any more.
    sources.take().await.end();
    assert_eq!(text(first).await, "");
    drop(second);
    until("the places to be free again", || stage.engine.requests(&GROUP) == 0).await;
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_closed_port_is_reported_after_five_attempts() {
    let (listener, address) = listen().await;
    drop(listener);
    let stage = Stage::before(NodeAddress::Tcp(address)).await;
    let response = stage.client().await.get("/").await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
    assert_eq!(
        text(response).await,
        r#"{"sandboxId":"i123","message":"The sandbox is running but port is not open","port":8080,"code":502}"#
    );
    assert_eq!(stage.dials(), 5);
}

#[tokio::test]
async fn a_server_that_is_just_starting_is_not_reported_closed() {
    let (listener, address) = listen().await;
    drop(listener);
    let stage = Stage::before(NodeAddress::Tcp(address)).await;
    let mut client = stage.client().await;
    let start = async {
        until("the first attempts", || stage.dials() == 2).await;
        let listener = tokio::net::TcpListener::bind(address).await.expect("the port is still free");
        let service = tower::service_fn(|_| async { Ok(Response::new(body::full("started"))) });
        tokio::spawn(serve::serve(listener, service, serving(), stage.shutdown.clone()));
    };
    let (response, ()) = tokio::join!(client.get("/"), start);
    assert_eq!(text(response).await, "started");
    assert!(stage.dials() > 2);
}

#[tokio::test]
async fn a_person_reads_the_same_as_a_page() {
    let (listener, address) = listen().await;
    drop(listener);
    let stage = Stage::before(NodeAddress::Tcp(address)).await;
    let mut request = get("/");
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    request.headers_mut().insert("user-agent", agent.parse().expect("a value"));
    request.headers_mut().insert("accept", "text/html,*/*;q=0.8".parse().expect("a value"));
    let response = stage.client().await.send(request).await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let page = text(response).await;
    assert!(page.contains("<h1>The sandbox is running but port is not open</h1>"), "{page}");
    assert!(page.contains("i123") && page.contains("8080"), "{page}");
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_while_all_are_busy() {
    let mut sources = Handed::new();
    let hand = sources.hand();
    let upstream = upstream(move |request: Request<Incoming>| {
        let (source, body) = Source::body();
        let body = if request.uri().path() == "/stream" { body } else { body::full("fine") };
        hand(source);
        std::future::ready(Response::new(body))
    })
    .await;
    let serving = serve::Config { connections_max: 1, ..serving() };
    let stage = Stage::with(upstream, Config::for_guests(), serving).await;
    let mut first = stage.client().await;
    let stream = first.get("/stream").await;
    let mut second = stage.client().await;
    let is_over = AtomicBool::new(false);
    let asked = async {
        assert_eq!(text(second.get("/").await).await, "fine");
        assert!(is_over.load(Ordering::SeqCst), "answered in place of one that was busy");
    };
    let busy = async {
        let mut source = sources.take().await;
        source.send("part").await;
        is_over.store(true, Ordering::SeqCst);
        source.end();
        assert_eq!(text(stream).await, "part");
    };
    tokio::join!(asked, busy);
}

#[tokio::test]
async fn the_longest_idle_connection_is_closed_for_a_new_one() {
    let upstream = upstream(|_: Request<Incoming>| std::future::ready(Response::new(body::full("fine")))).await;
    let serving = serve::Config { connections_max: 4, ..serving() };
    let stage = Stage::with(upstream, Config::for_guests(), serving).await;
    // One that says nothing, one in the middle of a head, and one that has been answered.
    let mut silent = stage.raw().await;
    let mut slow = stage.raw().await;
    write(&mut slow, "GET / HTTP/1.1\r\nhost: a\r\nx-slow").await;
    let mut answered = stage.client().await;
    assert_eq!(text(answered.get("/").await).await, "fine");
    // All come from one address, which has two places.
    assert_eq!(text(stage.client().await.get("/").await).await, "fine");
    for mut closed in [silent.split().0, slow.split().0] {
        let read = soon("the end", closed.read(&mut [0; 1])).await;
        assert!(read.is_err() || read.is_ok_and(|bytes| bytes == 0));
    }
    assert_eq!(text(answered.get("/").await).await, "fine");
}
