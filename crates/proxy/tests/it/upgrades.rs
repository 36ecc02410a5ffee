//! Upgrades to any protocol, and splicing.

use std::time::Duration;

use hearth_proxy::body::{self, Body};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::test_proxy::{
    Channel, GROUP, TestProxy, advance_time, post, read_head, text, upstream, with_timeout, write,
};

/// Upgrades to the requested protocol, echoes until the client half-closes, and then says goodbye.
async fn echo(mut request: Request<Incoming>) -> Response<Body> {
    let Some(protocol) = request.headers().get("upgrade").cloned() else {
        return Response::new(body::full("no upgrade"));
    };
    assert_eq!(request.headers()["connection"], "upgrade");
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.expect("upgraded"));
        let mut buffer = [0; 1024];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..bytes]).await.expect("the client reads");
            stream.flush().await.expect("the client reads");
        }
        // The client's direction has ended; this one still works.
        let _ = stream.write_all(b"goodbye").await;
        let _ = stream.shutdown().await;
    });
    let response = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", protocol);
    response.header("sec-websocket-accept", "x").body(body::empty()).expect("a response")
}

async fn connect_upgraded(proxy: &TestProxy, protocol: &str) -> TcpStream {
    let mut client = proxy.raw().await;
    let head = format!(
        "GET /socket HTTP/1.1\r\nhost: 8080-i123.example.com\r\nconnection: keep-alive, Upgrade\r\n\
         upgrade: {protocol}\r\nsec-websocket-key: k\r\n\r\n"
    );
    write(&mut client, &head).await;
    let head = with_timeout("the upgrade", read_head(&mut client)).await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nupgrade: {protocol}\r\n")), "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-accept: x\r\n"), "{head}");
    client
}

async fn expect(client: &mut TcpStream, text: &str) {
    let mut received = vec![0; text.len()];
    with_timeout("an echo", client.read_exact(&mut received)).await.expect("the echo");
    assert_eq!(received, text.as_bytes());
}

#[tokio::test]
async fn any_protocol_is_spliced_and_half_closed() {
    let proxy = TestProxy::start(upstream(echo).await).await;
    for protocol in ["websocket", "x-anything"] {
        let mut client = connect_upgraded(&proxy, protocol).await;
        for text in ["one", "two", "\0\u{1}binary"] {
            write(&mut client, text).await;
            expect(&mut client, text).await;
        }
        client.shutdown().await.expect("half-close");
        expect(&mut client, "goodbye").await;
        assert_eq!(with_timeout("the end", client.read(&mut [0; 1])).await.expect("a proper end"), 0);
    }
    proxy.requests_finished().await;
}

#[tokio::test]
async fn bytes_right_after_the_upgrade_request_are_not_lost() {
    let proxy = TestProxy::start(upstream(echo).await).await;
    let mut client = proxy.raw().await;
    write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nimpatient").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101"));
    expect(&mut client, "impatient").await;
}

#[tokio::test]
async fn large_frames_pass_completely() {
    let proxy = TestProxy::start(upstream(echo).await).await;
    let client = connect_upgraded(&proxy, "websocket").await;
    let sent: Vec<u8> = (0..3_000_000u32).map(|number| number.to_le_bytes()[0]).collect();
    let (mut reader, mut writer) = client.into_split();
    let write = {
        let sent = sent.clone();
        async move {
            writer.write_all(&sent).await.expect("the proxy reads");
            writer.shutdown().await.expect("half-close");
        }
    };
    let read = async move {
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.expect("a proper end");
        received
    };
    let ((), received) = with_timeout("the echo", async { tokio::join!(write, read) }).await;
    assert!(received.strip_suffix(b"goodbye") == Some(&sent), "received {} bytes", received.len());
}

#[tokio::test]
async fn closing_a_sandbox_aborts_its_upgraded_streams() {
    let proxy = TestProxy::start(upstream(echo).await).await;
    let mut client = connect_upgraded(&proxy, "websocket").await;
    write(&mut client, "hello").await;
    expect(&mut client, "hello").await;
    assert_eq!(proxy.engine.requests(&GROUP), 1);
    proxy.engine.close(&GROUP);
    // The stream may end or be reset, but has no goodbye.
    let mut rest = Vec::new();
    let _ = with_timeout("the end", client.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn an_upgraded_stream_may_be_silent_for_days() {
    let proxy = TestProxy::start(upstream(echo).await).await;
    let mut client = connect_upgraded(&proxy, "websocket").await;
    // Before the first bytes, and between bytes.
    for text in ["before", "after"] {
        advance_time(Duration::from_secs(3 * 24 * 60 * 60)).await;
        write(&mut client, text).await;
        expect(&mut client, text).await;
    }
}

#[tokio::test]
async fn the_upstream_sees_a_client_disappear() {
    let mut ended = Channel::new();
    let send = ended.sender();
    let upstream = upstream(move |mut request: Request<Incoming>| {
        let send = send.clone();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.expect("upgraded"));
            let _ = stream.read(&mut [0; 1]).await;
            // Writes fail once the peer's reset has arrived.
            while stream.write_all(&[0; 1024]).await.is_ok() {}
            send(());
        });
        let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
        let response = response.header("sec-websocket-accept", "x").body(body::empty());
        std::future::ready(response.expect("a response"))
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let client = connect_upgraded(&proxy, "websocket").await;
    client.set_zero_linger().expect("a TCP socket");
    drop(client);
    ended.recv().await;
}

#[tokio::test]
async fn a_rejected_upgrade_is_an_ordinary_response() {
    let refuse = |_: Request<Incoming>| async {
        Response::builder().status(426).header("upgrade", "other").body(body::full("no")).expect("a response")
    };
    let proxy = TestProxy::start(upstream(refuse).await).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        let mut request = post("/", body::empty());
        request.headers_mut().insert("connection", "upgrade".parse().expect("a value"));
        request.headers_mut().insert("upgrade", "websocket".parse().expect("a value"));
        let response = client.send(request).await;
        assert_eq!(response.status(), 426);
        assert_eq!(text(response).await, "no");
    }
    assert_eq!(proxy.dials(), 1);
}

#[tokio::test]
async fn an_unexpected_upgrade_is_an_error() {
    let switch = |_: Request<Incoming>| async {
        let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "x");
        response.body(body::empty()).expect("a response")
    };
    let proxy = TestProxy::start(upstream(switch).await).await;
    let response = proxy.client().await.get("/").await;
    assert_eq!(response.status(), 502);
}
