//! Access to the ports of a sandbox, and requests as its programs see them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::SinkExt;
use hearth_proxy::body::{self, Body};
use hearth_types::{Route, Secret, Visitors};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use crate::world::{LEASE, World, body_channel, data, guest, listen, mirror, text, with_timeout};

const TOKEN: &str = "3a37c1e74e38d3f85a98eb2bca8690f3";
const MISSING: &str = r#"{"sandboxId":"i123","message":"The sandbox takes no public traffic, and the e2b-traffic-access-token header is missing","code":403}"#;
const INVALID: &str = r#"{"sandboxId":"i123","message":"The sandbox takes no public traffic, and the token in the e2b-traffic-access-token header is invalid","code":403}"#;

type Headers<'a> = &'a [(&'a str, &'a [u8])];

async fn world(guest: SocketAddr, change: impl FnOnce(&mut Route)) -> World {
    let world = World::with_guest(guest).await;
    let mut route = world.route.clone();
    change(&mut route);
    world.catalog.publish(route, LEASE, None).await.expect("the same execution");
    world
}

fn private(route: &mut Route) {
    route.visitors = Visitors::WithToken(Secret::new(TOKEN));
}

fn request(port: u16, headers: Headers<'_>) -> Request<Body> {
    let request = Request::get("/").header("host", format!("{port}-i123.example.com"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body::empty()).expect("a request")
}

#[tokio::test]
async fn private_sandboxes_require_the_token_on_every_port_except_the_daemon_s() {
    let world = world(guest(mirror).await, private).await;
    let rejected: [(Headers<'_>, &str); 6] = [
        (&[], MISSING),
        (&[("x-access-token", TOKEN.as_bytes())], MISSING),
        (&[("e2b-traffic-access-token", b"")], INVALID),
        (&[("e2b-traffic-access-token", &TOKEN.as_bytes()[1..])], INVALID),
        (&[("e2b-traffic-access-token", b"4a37c1e74e38d3f85a98eb2bca8690f3")], INVALID),
        (&[("e2b-traffic-access-token", b"\xff")], INVALID),
    ];
    for (headers, page) in rejected {
        for port in [80, 8080, 49999] {
            let response = world.send(request(port, headers)).await;
            assert_eq!(response.status(), 403);
            assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
            assert_eq!(text(response).await, page, "{port} {headers:?}");
        }
        assert_eq!(world.send(request(49983, headers)).await.status(), 200, "{headers:?}");
    }
    let response = world.send(request(8080, &[("e2b-traffic-access-token", TOKEN.as_bytes())])).await;
    assert_eq!(response.status(), 200);
    assert!(!text(response).await.contains(TOKEN), "the token is not forwarded");

    let browser: [(&str, &[u8]); 2] = [("user-agent", b"Mozilla/5.0 (X11) Firefox/140.0"), ("accept", b"text/html")];
    let response = world.send(request(8080, &browser)).await;
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    assert!(text(response).await.contains("e2b-traffic-access-token header is missing"));
}

#[tokio::test]
async fn programs_see_the_host_mask() {
    let mask = Some("${PORT}.internal:${PORT}".parse().expect("a mask"));
    let world = world(guest(mirror).await, |route| route.host_mask = mask).await;
    let io = TokioIo::new(world.raw().await);
    let (mut http2, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
    tokio::spawn(connection);
    for (port, host) in [(8080, "8080.internal:8080"), (49983, "49983-i123.example.com")] {
        let requested_host = format!("{port}-i123.example.com");
        let request = Request::get(format!("http://{requested_host}/a%2Fb?c")).body(body::empty()).expect("a request");
        let by_http2: Response<Incoming> =
            with_timeout("a response", http2.send_request(request)).await.expect("a response");
        for response in [by_http2, world.get(&requested_host, "/a%2Fb?c").await] {
            let seen = text(response).await;
            for line in
                ["GET /a%2Fb?c".to_owned(), format!("host: {host}"), format!("x-forwarded-host: {requested_host}")]
            {
                assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
            }
        }
    }
}

/// Starts a guest that speaks TLS with a self-signed certificate for another name.
async fn tls_guest(protocols: &[&str]) -> SocketAddr {
    let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("the key matches the certificate");
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listen().await;
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        let version = request.version();
        Ok::<_, Infallible>(Response::new(body::full(format!("{version:?}"))))
    });
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("the listener works");
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let io = TokioIo::new(stream);
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn https_ports_are_connected_with_tls() {
    let with_https = |route: &mut Route| route.https_ports = [8443].into();
    let encrypted = world(tls_guest(&[]).await, with_https).await;
    for _ in 0..2 {
        let response = encrypted.send(request(8443, &[])).await;
        assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, "HTTP/1.1"));
    }
    let clear = world(guest(mirror).await, with_https).await;
    assert_eq!(clear.send(request(8080, &[])).await.status(), 200);
    // A TLS mismatch is neither a missing sandbox nor a closed port.
    for response in [encrypted.send(request(8080, &[])).await, clear.send(request(8443, &[])).await] {
        assert_eq!(response.status(), 502);
        let page = text(response).await;
        assert!(!page.contains("was not found") && !page.contains("port is not open"), "{page}");
    }
}

#[tokio::test]
async fn the_http_version_of_a_tls_port_is_negotiated() {
    for (protocols, expected) in
        [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["h2"], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1")]
    {
        let world = world(tls_guest(protocols).await, |route| route.https_ports = [8443].into()).await;
        let io = TokioIo::new(world.raw().await);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (mut sender, connection) = handshake.await.expect("HTTP/2");
        tokio::spawn(connection);
        for kind in ["text/plain", "application/grpc", "text/plain"] {
            let request = Request::post("http://8443-i123.example.com/").header("content-type", kind);
            let request = request.body(body::full("body")).expect("a request");
            let response = with_timeout("a response", sender.send_request(request)).await.expect("a response");
            assert_eq!(text(response).await, expected, "{protocols:?} {kind}");
        }
        // An HTTP/1.1 client may upgrade its connection, so its requests are sent in HTTP/1.1 where the port supports
        // it.
        if protocols.contains(&"http/1.1") {
            assert_eq!(text(world.send(request(8443, &[])).await).await, "HTTP/1.1");
        }
    }
}

#[tokio::test]
async fn requests_per_sandbox_are_limited() {
    const FULL: &str = r#"{"sandboxId":"i123","message":"Too many connections to the sandbox are open","connectionLimit":2,"code":429}"#;
    let echo = |request: Request<Incoming>| async move { Response::new(body::boxed(request.into_body())) };
    let world = World::with_request_limit(guest(echo).await, 2).await;
    let mut held = Vec::new();
    for port in [8080, 8081] {
        let (mut sender, upload) = body_channel();
        let request = Request::post("/").header("host", format!("{port}-i123.example.com")).body(upload);
        sender.send(data("part")).await.expect("the body is read");
        let mut response = world.send(request.expect("a request")).await;
        with_timeout("a part", response.body_mut().frame()).await.expect("a frame").expect("not aborted");
        held.push((sender, response));
    }
    let response = world.send(request(8082, &[])).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(text(response).await, FULL);
    let browser: [(&str, &[u8]); 1] = [("user-agent", b"Mozilla/5.0 (X11) Firefox/140.0")];
    let page = text(world.send(request(8082, &browser)).await).await;
    assert!(page.contains("<dt>Limit</dt><dd>2</dd>"), "{page}");

    let (sender, response) = held.pop().expect("two are held");
    drop(sender);
    assert!(with_timeout("the end", response.into_body().collect()).await.is_ok());
    // The request counts until the edge has seen the end of the response.
    with_timeout("capacity", async {
        while world.send(request(8082, &[])).await.status() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
