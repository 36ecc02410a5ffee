//! Edges with TLS, and clients that trust a single authority.

use std::sync::Arc;
use std::time::Duration;

use hearth_edge::Config;
use hearth_proxy::body;
use hearth_proxy::serve::HEAD_TIMEOUT;
use hearth_proxy::tls::{Acceptor, Certificate, CertificateError};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::upgrade_and_echo;
use crate::world::{World, guest, mirror, text, with_timeout};

const HOST: &str = "8080-i123.example.com";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, name: &str) -> Certificate {
        let (chain, key) = self.issue_pem(name);
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).expect("the key matches the certificate")
    }

    fn issue_pem(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    /// Returns a TLS client that trusts only this authority.
    fn client(&self, protocols: &[&str], version: &'static SupportedProtocolVersion) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let mut config = builder
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

async fn connect(world: &World, client: &TlsConnector, host: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    with_timeout("a handshake", client.connect(name, world.raw().await)).await
}

async fn get(stream: TlsStream<TcpStream>, host: &str) -> Response<Incoming> {
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        let request = Request::get(format!("https://{host}/")).body(body::empty()).expect("a request");
        return with_timeout("a response", sender.send_request(request)).await.expect("a response");
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let request = Request::get("/").header("host", host).body(body::empty()).expect("a request");
    with_timeout("a response", sender.send_request(request)).await.expect("a response")
}

#[tokio::test]
async fn both_tls_versions_and_http_versions_are_served() {
    let authority = Authority::new();
    let acceptor = Acceptor::new(authority.issue("*.example.com"));
    let world = World::with_tls(guest(mirror).await, Config::default(), Some(acceptor)).await;
    for version in [&TLS12, &TLS13] {
        for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
        {
            let stream = connect(&world, &authority.client(offered, version), HOST).await.expect("a handshake");
            let protocol = stream.get_ref().1.alpn_protocol();
            assert_eq!(protocol, chosen.map(str::as_bytes), "{offered:?}");
            let seen = text(get(stream, HOST).await).await;
            for line in ["GET /", "host: 8080-i123.example.com", "x-forwarded-proto: https"] {
                assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
            }
        }
    }
    let stream = connect(&world, &authority.client(&["h2"], &TLS13), HOST).await.expect("a handshake");
    let response = get(stream, "8080-i999.example.com").await;
    assert_eq!(response.status(), 502, "the host of the request decides, not the name in the handshake");
}

#[tokio::test]
async fn new_connections_get_the_replaced_certificate() {
    let (before, after) = (Authority::new(), Authority::new());
    let acceptor = Acceptor::new(before.issue("*.example.com"));
    let world = World::with_tls(guest(mirror).await, Config::default(), Some(acceptor.clone())).await;
    let open = connect(&world, &before.client(&[], &TLS13), HOST).await.expect("a handshake");
    assert!(connect(&world, &after.client(&[], &TLS13), HOST).await.is_err());
    acceptor.replace(after.issue("*.example.com"));
    assert!(connect(&world, &before.client(&[], &TLS13), HOST).await.is_err());
    connect(&world, &after.client(&[], &TLS13), HOST).await.expect("a handshake");
    assert_eq!(get(open, HOST).await.status(), 200, "open connections continue");
}

#[tokio::test]
async fn an_upgraded_stream_is_half_closed_over_tls() {
    let authority = Authority::new();
    let acceptor = Acceptor::new(authority.issue("*.example.com"));
    let world = World::with_tls(guest(upgrade_and_echo).await, Config::default(), Some(acceptor)).await;
    let mut stream = connect(&world, &authority.client(&["http/1.1"], &TLS13), HOST).await.expect("a handshake");
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the edge reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(with_timeout("a head", stream.read_u8()).await.expect("a head"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"hello").await.expect("the edge reads");
    stream.shutdown().await.expect("half-close");
    let mut rest = String::new();
    with_timeout("the goodbye", stream.read_to_string(&mut rest)).await.expect("a proper end");
    assert_eq!(rest, "hellogoodbye");
}

#[tokio::test]
async fn clients_without_tls_are_served_on_the_same_port() {
    let authority = Authority::new();
    let acceptor = Acceptor::new(authority.issue("*.example.com"));
    let world = World::with_tls(guest(mirror).await, Config::default(), Some(acceptor)).await;
    let seen = text(world.get(HOST, "/").await).await;
    for line in ["GET /", "host: 8080-i123.example.com", "x-forwarded-proto: http", "x-forwarded-for: 127.0.0.1"] {
        assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
    }
    assert_eq!(world.get("8080-i999.example.com", "/").await.status(), 502, "requests are routed as over TLS");

    // HTTP/2 with prior knowledge.
    let io = TokioIo::new(world.raw().await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get(format!("http://{HOST}/")).body(body::empty()).expect("a request");
    assert_eq!(with_timeout("a response", sender.send_request(request)).await.expect("a response").status(), 200);

    // An upgrade.
    let mut stream = world.raw().await;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the edge reads");
    assert!(crate::world::read_head(&mut stream).await.starts_with("HTTP/1.1 200 "), "the guest does not upgrade");
}

#[tokio::test]
async fn silent_clients_are_disconnected_and_block_nobody() {
    let authority = Authority::new();
    let acceptor = Acceptor::new(authority.issue("*.example.com"));
    let world = World::with_tls(guest(mirror).await, Config::default(), Some(acceptor)).await;
    let (mut silent, mut handshaking, mut requesting) = (world.raw().await, world.raw().await, world.raw().await);
    // The beginning of a handshake, and of a request.
    handshaking.write_all(&[0x16]).await.expect("the edge reads");
    requesting.write_all(b"GET / HTTP/1.1\r\n").await.expect("the edge reads");
    let stream = connect(&world, &authority.client(&[], &TLS13), HOST).await.expect("a handshake");
    assert_eq!(get(stream, HOST).await.status(), 200);
    // All three connections were accepted before that one.
    tokio::time::pause();
    tokio::time::advance(HEAD_TIMEOUT + Duration::from_secs(1)).await;
    tokio::time::resume();
    for stream in [&mut silent, &mut handshaking, &mut requesting] {
        let mut rest = Vec::new();
        let _ = with_timeout("the end", stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
    // A client without a handshake does not delay the drain.
    let _silent = world.raw().await;
    world.edge_shutdown.cancel();
    assert_eq!(with_timeout("the drain", world.edge_served).await.expect("the task does not panic"), 0);
}

#[test]
fn unusable_certificates_are_rejected() {
    let authority = Authority::new();
    let ((chain, key), (_, other)) = (authority.issue_pem("a.example.com"), authority.issue_pem("b.example.com"));
    let check = |chain: &str, key: &str| Certificate::from_pem(chain.as_bytes(), key.as_bytes());
    check(&chain, &key).expect("the key matches the certificate");
    assert!(matches!(check(&chain, &other), Err(CertificateError::KeyMismatch(_))));
    assert!(matches!(check("", &key), Err(CertificateError::Empty)));
    assert!(matches!(check(&key, &key), Err(CertificateError::Empty)));
    assert!(matches!(check(&chain, &chain), Err(CertificateError::Key(_))));
    assert!(matches!(check("-----BEGIN CERTIFICATE-----\n!", &key), Err(CertificateError::Chain(_))));
}
