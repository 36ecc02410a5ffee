//! Who may visit a sandbox's ports, and how they are spoken to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::SinkExt;
use hearth_proxy::body::{self, Body};
use hearth_types::{Ingress, Route, Secret};
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

async fn world(guest: SocketAddr, ingress: Ingress, traffic_token: Option<&str>) -> World {
    let world = World::with_guest(guest).await;
    let route = Route { ingress, traffic_token: traffic_token.map(Secret::new), ..world.route.clone() };
    world.catalog.publish(route, LEASE, None).await.expect("the same execution");
    world
}

fn private() -> Ingress {
    Ingress { public: false, ..Ingress::open() }
}

fn ask(port: u16, headers: Headers<'_>) -> Request<Body> {
    let request = Request::get("/").header("host", format!("{port}-i123.example.com"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body::empty()).expect("a request")
}

#[tokio::test]
async fn private_traffic_needs_the_token_on_every_port_but_the_daemon_s() {
    let world = world(guest(mirror).await, private(), Some(TOKEN)).await;
    let refused: [(Headers<'_>, &str); 6] = [
        (&[], MISSING),
        (&[("x-access-token", TOKEN.as_bytes())], MISSING),
        (&[("e2b-traffic-access-token", b"")], INVALID),
        (&[("e2b-traffic-access-token", &TOKEN.as_bytes()[1..])], INVALID),
        (&[("e2b-traffic-access-token", b"4a37c1e74e38d3f85a98eb2bca8690f3")], INVALID),
        (&[("e2b-traffic-access-token", b"\xff")], INVALID),
    ];
    for (headers, page) in refused {
        for port in [80, 8080, 49999] {
            let response = world.send(ask(port, headers)).await;
            assert_eq!(response.status(), 403);
            assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
            assert_eq!(text(response).await, page, "{port} {headers:?}");
        }
        assert_eq!(world.send(ask(49983, headers)).await.status(), 200, "{headers:?}");
    }
    let response = world.send(ask(8080, &[("e2b-traffic-access-token", TOKEN.as_bytes())])).await;
    assert_eq!(response.status(), 200);
    assert!(!text(response).await.contains(TOKEN), "the token is nothing for the guest");

    let browser: [(&str, &[u8]); 2] = [("user-agent", b"Mozilla/5.0 (X11) Firefox/140.0"), ("accept", b"text/html")];
    let response = world.send(ask(8080, &browser)).await;
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    assert!(text(response).await.contains("e2b-traffic-access-token header is missing"));
}

#[tokio::test]
async fn without_a_token_nobody_visits_a_private_sandbox() {
    let world = world(guest(mirror).await, private(), None).await;
    for shown in [&b""[..], TOKEN.as_bytes()] {
        let response = world.send(ask(8080, &[("e2b-traffic-access-token", shown)])).await;
        assert_eq!((response.status().as_u16(), text(response).await.as_str()), (403, INVALID));
    }
}

#[tokio::test]
async fn a_mask_is_the_host_that_programs_see() {
    let mask = Some("${PORT}.internal:${PORT}".parse().expect("a mask"));
    let world = world(guest(mirror).await, Ingress { host_mask: mask, ..Ingress::open() }, None).await;
    let io = TokioIo::new(world.raw().await);
    let (mut http2, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
    tokio::spawn(connection);
    for (port, host) in [(8080, "8080.internal:8080"), (49983, "49983-i123.example.com")] {
        let asked = format!("{port}-i123.example.com");
        let request = Request::get(format!("http://{asked}/a%2Fb?c")).body(body::empty()).expect("a request");
        let by_http2: Response<Incoming> =
            with_timeout("an answer", http2.send_request(request)).await.expect("an answer");
        for response in [by_http2, world.get(&asked, "/a%2Fb?c").await] {
            let seen = text(response).await;
            for line in ["GET /a%2Fb?c".to_owned(), format!("host: {host}"), format!("x-forwarded-host: {asked}")] {
                assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
            }
        }
    }
}

/// A guest whose server speaks TLS, with a certificate that nobody vouches for and that is for another name.
async fn tls_guest(protocols: &[&str]) -> SocketAddr {
    let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("they fit");
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
async fn ports_that_speak_tls_are_spoken_to_in_tls() {
    let ingress = || Ingress { https_ports: [8443].into(), ..Ingress::open() };
    let encrypted = world(tls_guest(&[]).await, ingress(), None).await;
    for _ in 0..2 {
        let response = encrypted.send(ask(8443, &[])).await;
        assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, "HTTP/1.1"));
    }
    let clear = world(guest(mirror).await, ingress(), None).await;
    assert_eq!(clear.send(ask(8080, &[])).await.status(), 200);
    // Who speaks what the other does not understand is neither gone nor closed.
    for response in [encrypted.send(ask(8080, &[])).await, clear.send(ask(8443, &[])).await] {
        assert_eq!(response.status(), 502);
        let page = text(response).await;
        assert!(!page.contains("was not found") && !page.contains("port is not open"), "{page}");
    }
}

#[tokio::test]
async fn a_port_s_version_is_agreed_on_in_tls() {
    for (protocols, expected) in
        [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["h2"], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1")]
    {
        let ingress = Ingress { https_ports: [8443].into(), ..Ingress::open() };
        let world = world(tls_guest(protocols).await, ingress, None).await;
        let io = TokioIo::new(world.raw().await);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (mut sender, connection) = handshake.await.expect("HTTP/2");
        tokio::spawn(connection);
        for kind in ["text/plain", "application/grpc", "text/plain"] {
            let request = Request::post("http://8443-i123.example.com/").header("content-type", kind);
            let request = request.body(body::full("body")).expect("a request");
            let response = with_timeout("an answer", sender.send_request(request)).await.expect("an answer");
            assert_eq!(text(response).await, expected, "{protocols:?} {kind}");
        }
        // A client of HTTP/1.1 may upgrade its connection, so it gets one of HTTP/1.1 where there is one.
        if protocols.contains(&"http/1.1") {
            assert_eq!(text(world.send(ask(8443, &[])).await).await, "HTTP/1.1");
        }
    }
}

#[tokio::test]
async fn a_sandbox_has_room_for_so_many_requests_at_a_time() {
    const FULL: &str = r#"{"sandboxId":"i123","message":"Too many connections to the sandbox are open","connectionLimit":2,"code":429}"#;
    let echo = |request: Request<Incoming>| async move { Response::new(body::boxed(request.into_body())) };
    let world = World::with_room(guest(echo).await, 2).await;
    let mut held = Vec::new();
    for port in [8080, 8081] {
        let (mut sender, upload) = body_channel();
        let request = Request::post("/").header("host", format!("{port}-i123.example.com")).body(upload);
        sender.send(data("part")).await.expect("somebody reads");
        let mut response = world.send(request.expect("a request")).await;
        with_timeout("a part", response.body_mut().frame()).await.expect("a frame").expect("no abort");
        held.push((sender, response));
    }
    let response = world.send(ask(8082, &[])).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(text(response).await, FULL);
    let browser: [(&str, &[u8]); 1] = [("user-agent", b"Mozilla/5.0 (X11) Firefox/140.0")];
    let page = text(world.send(ask(8082, &browser)).await).await;
    assert!(page.contains("<dt>Limit</dt><dd>2</dd>"), "{page}");

    let (sender, response) = held.pop().expect("two are held");
    drop(sender);
    assert!(with_timeout("the end", response.into_body().collect()).await.is_ok());
    // The place is given back when the edge has seen the end of the answer.
    with_timeout("a place", async {
        while world.send(ask(8082, &[])).await.status() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
