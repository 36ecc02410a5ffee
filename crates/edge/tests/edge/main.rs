//! Tests with a client, an edge, a node's proxy and a guest, connected by sockets.

mod ingress;
mod tls;
mod world;

use futures::SinkExt;
use hearth_edge::Config;
use hearth_proxy::body::{self, Body, boxed};
use hearth_proxy::headers::ForwardedPolicy;
use hearth_types::{ExecutionId, NodeAddress, Route, SandboxId, TeamId};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{LEASE, World, body_channel, data, guest, listen, mirror, read_head, text, with_timeout};

const DAEMON_PORT: u16 = 49983;
const NOT_FOUND: &str = r#"{"sandboxId":"i123","message":"The sandbox was not found","code":502}"#;

#[tokio::test]
async fn a_request_is_routed_by_host_and_forwarded_unchanged() {
    let world = World::with_guest(guest(mirror).await).await;
    let request = Request::post("/a%2Fb?c")
        .header("host", "8080-I123-6532622b.Example.com:3002")
        .header("x-access-token", "t")
        .header("hearth-target", "i999/0/22")
        .header("hearth-anything", "1")
        .header("x-forwarded-for", "9.9.9.9")
        .header("x-forwarded-proto", "gopher")
        .header("connection", "hearth-target, x-gone")
        .header("x-gone", "1")
        .body(body::full("upload"));
    let seen = text(world.send(request.expect("a request")).await).await;
    let expected = [
        "POST /a%2Fb?c",
        "content-length: 6",
        "host: 8080-I123-6532622b.Example.com:3002",
        "x-access-token: t",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: 8080-I123-6532622b.Example.com:3002",
        "x-forwarded-proto: http",
    ];
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn requests_per_team_are_limited() {
    let (sender, body) = body_channel();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let guest = guest(move |_: Request<Incoming>| {
        let body = body.lock().expect("not poisoned").take().unwrap_or_else(body::empty);
        std::future::ready(Response::new(body))
    })
    .await;
    let config = Config { requests_max: 2, team_requests_max: 1, ..Config::default() };
    let world = World::with(guest, config).await;
    let stream = world.get("8080-i123.example.com", "/").await;
    assert_eq!(stream.status(), 200);
    let rejected = world.get("8081-i123.example.com", "/").await;
    assert_eq!((rejected.status().as_u16(), &rejected.headers()["retry-after"]), (429, &"1".parse().expect("a value")));
    assert_eq!(
        text(rejected).await,
        r#"{"sandboxId":"i123","message":"Too many connections to the sandbox are open","connectionLimit":1,"code":429}"#
    );
    // Another team's request is forwarded to the node, which does not run that sandbox.
    let (sandbox_id, execution_id) = ("i456".parse::<SandboxId>().expect("an id"), ExecutionId::generate());
    let other = Route { sandbox_id, execution_id, team_id: TeamId::generate(), ..world.route.clone() };
    world.catalog.publish(other, LEASE, None).await.expect("there is room");
    assert_eq!(world.get("8080-i456.example.com", "/").await.status(), 502);
    // The stream no longer counts when it has ended.
    drop(sender);
    assert_eq!(text(stream).await, "");
    let admitted = async { while world.get("8080-i123.example.com", "/").await.status() != 200 {} };
    with_timeout("capacity", admitted).await;
}

#[tokio::test]
async fn trusted_forwarding_headers_are_passed_on() {
    let config = Config { forwarded: ForwardedPolicy::Trust, ..Config::default() };
    let world = World::with(guest(mirror).await, config).await;
    let request = Request::get("/").header("host", "8080-i123.example.com").header("x-forwarded-proto", "https");
    let request = request.header("x-forwarded-for", "9.9.9.9").body(body::empty()).expect("a request");
    let seen = text(world.send(request).await).await;
    assert!(seen.contains("x-forwarded-proto: https"), "{seen}");
    assert!(seen.contains("x-forwarded-for: 9.9.9.9, 127.0.0.1"), "{seen}");
}

#[tokio::test]
async fn headers_name_the_sandbox_on_shared_hosts() {
    let world = World::with_guest(guest(mirror).await).await;
    for host in ["localhost:3002", "127.0.0.1", "[::1]:3002", "sandbox.example.com", "my-server.example.com", "hearth"]
    {
        let request = Request::get("/health").header("host", host).header("e2b-sandbox-id", "i123");
        let request = request.header("e2b-sandbox-port", "49983").body(body::empty()).expect("a request");
        let response = world.send(request).await;
        assert_eq!(response.status(), 200, "{host}");
        assert!(text(response).await.starts_with("GET /health\n"), "{host}");
    }
}

type Headers = &'static [(&'static str, &'static str)];

#[tokio::test]
async fn invalid_targets_get_the_contract_s_messages() {
    let world = World::with_guest(guest(mirror).await).await;
    let cases: [(&str, Headers, &str); 7] = [
        ("example.com", &[], "Invalid host"),
        ("49983-i123", &[], "Invalid host"),
        ("127.0.0.1:3002", &[], "Invalid host"),
        ("x-i123.example.com", &[], "Invalid sandbox port"),
        ("80-i_3.example.com", &[], "Invalid sandbox ID"),
        ("localhost", &[("e2b-sandbox-id", "i123")], "missing header"),
        ("sandbox.example.com", &[("e2b-sandbox-port", "80")], "missing header"),
    ];
    for (host, headers, expected) in cases {
        let request = Request::get("/").header("host", host);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = world.send(request.body(body::empty()).expect("a request")).await;
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(text(response).await, expected, "{host}");
    }
}

#[tokio::test]
async fn health_checks_of_the_edge_name_no_sandbox() {
    let world = World::with_guest(guest(mirror).await).await;
    for host in ["127.0.0.1:3002", "localhost", "edge.example.com"] {
        let response = world.get(host, "/health").await;
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await, "");
    }
    assert_eq!(world.get("49983-i9.example.com", "/health").await.status(), 502);
    assert!(text(world.get("49983-i123.example.com", "/health").await).await.starts_with("GET /health"));
    let half = Request::get("/health").header("host", "localhost").header("e2b-sandbox-id", "i123");
    assert_eq!(world.send(half.body(body::empty()).expect("a request")).await.status(), 400);
}

#[tokio::test]
async fn an_unknown_sandbox_gets_the_contract_s_page() {
    let world = World::with_guest(guest(mirror).await).await;
    let response = world.get("49983-i999.example.com", "/health").await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
    assert_eq!(response.headers()["should-retry"], "false");
    assert_eq!(text(response).await, r#"{"sandboxId":"i999","message":"The sandbox was not found","code":502}"#);

    let browser = Request::get("/").header("host", "8080-i999.example.com").header("accept", "text/html,*/*;q=0.8");
    let browser = browser.header("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0");
    let response = world.send(browser.body(body::empty()).expect("a request")).await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    assert!(text(response).await.contains("<h1>The sandbox was not found</h1>"));
}

#[tokio::test]
async fn reserved_routes_of_the_daemon_are_rejected_in_every_spelling() {
    const EXPECTED: &str = r#"{"message":"This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL","path":"/init","code":404}"#;
    let world = World::with_guest(guest(mirror).await).await;
    for method in ["GET", "POST", "OPTIONS", "PROPFIND"] {
        for path in [
            "/init",
            "/init?x=y",
            "/init/",
            "//init",
            "/./init",
            "/files/../init",
            "/../init",
            "/%69nit",
            "/%2569nit",
            "/files%2f..%2finit",
            "/%2e%2e/init",
            "http://49983-i123.example.com/init",
            "http://49983-i123.example.com//init",
        ] {
            let mut client = world.raw().await;
            let request = format!("{method} {path} HTTP/1.1\r\nhost: 49983-i123.example.com\r\n\r\n");
            client.write_all(request.as_bytes()).await.expect("the edge reads");
            let head = read_head(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{method} {path}: {head}");
            let mut page = vec![0; EXPECTED.len()];
            client.read_exact(&mut page).await.expect("the page");
            assert_eq!(String::from_utf8_lossy(&page), EXPECTED, "{method} {path}");
        }
    }
    // A user's server may have such routes, and the daemon has others.
    assert_eq!(text(world.get("8080-i123.example.com", "/init").await).await.lines().next(), Some("GET /init"));
    assert_eq!(text(world.get("49983-i123.example.com", "/files").await).await.lines().next(), Some("GET /files"));
}

#[tokio::test]
async fn both_proxies_forward_chunks_without_delay() {
    let echo = |request: Request<Incoming>| async move { Response::new(boxed(request.into_body())) };
    let world = World::with_guest(guest(echo).await).await;
    let io = TokioIo::new(world.raw().await);
    let (mut http2, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
    tokio::spawn(connection);
    for by_http2 in [false, true] {
        let (mut sender, upload) = body_channel();
        let mut response = if by_http2 {
            let request = Request::post("http://8080-i123.example.com/").body(upload).expect("a request");
            with_timeout("a response", http2.send_request(request)).await.expect("a response")
        } else {
            let request = Request::post("/").header("host", "8080-i123.example.com").body(upload);
            world.send(request.expect("a request")).await
        };
        for chunk in ["one", "two", "three"] {
            sender.send(data(chunk)).await.expect("the body is read");
            let frame =
                with_timeout("a chunk", response.body_mut().frame()).await.expect("a frame").expect("not aborted");
            assert_eq!(frame.into_data().expect("data"), chunk);
        }
    }
}

/// Guest that upgrades, echoes, and says goodbye when the client half-closes.
async fn upgrade_and_echo(mut request: Request<Incoming>) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.expect("upgraded"));
        let mut buffer = [0; 64];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..bytes]).await.expect("the client reads");
        }
        let _ = stream.write_all(b"goodbye").await;
        let _ = stream.shutdown().await;
    });
    let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
    response.body(body::empty()).expect("a response")
}

async fn connect_upgraded(world: &World) -> TcpStream {
    let mut client = world.raw().await;
    let request = "GET / HTTP/1.1\r\nhost: 8080-i123.example.com\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(request.as_bytes()).await.expect("the edge reads");
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
    client.write_all(b"hello").await.expect("the edge reads");
    let mut echo = [0; 5];
    with_timeout("the echo", client.read_exact(&mut echo)).await.expect("the echo");
    assert_eq!(&echo, b"hello");
    client
}

#[tokio::test]
async fn a_websocket_is_half_closed_through_both_proxies() {
    let world = World::with_guest(guest(upgrade_and_echo).await).await;
    let mut client = connect_upgraded(&world).await;
    client.shutdown().await.expect("half-close");
    let mut rest = String::new();
    with_timeout("the goodbye", client.read_to_string(&mut rest)).await.expect("a proper end");
    assert_eq!(rest, "goodbye");
}

#[tokio::test]
async fn killing_a_sandbox_aborts_its_streams() {
    let (mut sender, download) = body_channel();
    let download = std::sync::Arc::new(std::sync::Mutex::new(Some(download)));
    let world = World::with_guest(
        guest(move |request| {
            let download = download.clone();
            async move {
                if request.headers().contains_key("upgrade") {
                    return upgrade_and_echo(request).await;
                }
                Response::new(download.lock().expect("not poisoned").take().expect("there is one download"))
            }
        })
        .await,
    )
    .await;
    let mut socket = connect_upgraded(&world).await;
    let mut stream = world.get("8080-i123.example.com", "/").await;
    sender.send(data("part")).await.expect("the body is read");
    let part = with_timeout("the part", stream.body_mut().frame()).await.expect("a frame").expect("not aborted");
    assert_eq!(part.into_data().expect("data"), "part");

    // The order of a kill: the route is removed, then the streams are aborted.
    assert!(world.catalog.remove(&world.route.sandbox_id, world.route.execution_id).await.expect("in memory"));
    world.node.close(&world.route.execution_id);
    assert!(with_timeout("the abort", stream.body_mut().frame()).await.expect("there is no proper end").is_err());
    let mut rest = Vec::new();
    let _ = with_timeout("the end", socket.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    let response = world.get("49983-i123.example.com", "/health").await;
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (502, NOT_FOUND));
}

#[tokio::test]
async fn an_outdated_route_never_reaches_another_execution() {
    let world = World::with_guest(guest(mirror).await).await;
    let outdated = Route { execution_id: ExecutionId::generate(), ..world.route.clone() };
    let replaced = world.catalog.publish(outdated, LEASE, Some(world.route.execution_id)).await;
    replaced.expect("the current execution is named");
    let response = world.get("8080-i123.example.com", "/").await;
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (502, NOT_FOUND));
}

#[tokio::test]
async fn a_closed_port_and_an_unreachable_node_have_different_pages() {
    let (listener, closed) = listen().await;
    drop(listener);
    let world = World::with_guest(closed).await;
    let page = text(world.get("8080-i123.example.com", "/").await).await;
    assert_eq!(
        page,
        r#"{"sandboxId":"i123","message":"The sandbox is running but port is not open","port":8080,"code":502}"#
    );

    drop(world.node_end);
    let NodeAddress::Unix(path) = &world.route.node_proxy else { panic!("the node listens on a Unix socket") };
    with_timeout("the node to stop", async {
        while tokio::net::UnixStream::connect(path).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let io = TokioIo::new(TcpStream::connect(world.edge_address).await.expect("the edge listens"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("a handshake");
    tokio::spawn(connection);
    let request = Request::get("/").header("host", "8080-i123.example.com").body(body::empty()).expect("a request");
    let response: Response<Incoming> =
        with_timeout("a response", sender.send_request(request)).await.expect("a response");
    assert_eq!(response.status(), 502);
    let page = text(response).await;
    assert!(!page.contains("was not found") && !page.contains("port is not open"), "{page}");
}

#[tokio::test]
async fn shutdown_drains_requests_and_closes_upgraded_streams() {
    let world = World::with_guest(guest(upgrade_and_echo).await).await;
    let mut socket = connect_upgraded(&world).await;
    world.edge_shutdown.cancel();
    assert_eq!(with_timeout("the drain", world.edge_served).await.expect("the task does not panic"), 0);
    // Upgraded streams no longer belong to the server's connections, and continue until the shutdown.
    socket.write_all(b"still").await.expect("the edge reads");
    let mut echo = [0; 5];
    with_timeout("the echo", socket.read_exact(&mut echo)).await.expect("the echo");
    world.edge.shutdown().await;
    let mut rest = Vec::new();
    let _ = with_timeout("the end", socket.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn every_generated_id_is_a_valid_host() {
    let world = World::with_guest(guest(mirror).await).await;
    for _ in 0..20 {
        let sandbox_id = SandboxId::generate();
        let route = Route { sandbox_id: sandbox_id.clone(), ..world.route.clone() };
        world.catalog.publish(route, LEASE, None).await.expect("there is room");
        let response = world.get(&format!("{DAEMON_PORT}-{sandbox_id}.example.com"), "/health").await;
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test]
async fn sequential_requests_use_one_connection_to_the_guest() {
    let (listener, address) = listen().await;
    let world = World::with_guest(address).await;
    let responses = async {
        // All requests use the first connection; a second one would never be accepted.
        let (mut stream, _) = listener.accept().await.expect("the listener works");
        for _ in 0..100 {
            assert!(read_head(&mut stream).await.starts_with("GET / HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await.expect("the node reads");
        }
    };
    let mut client = world.raw().await;
    let requests = async {
        for _ in 0..100 {
            client.write_all(b"GET / HTTP/1.1\r\nhost: 8080-i123.example.com\r\n\r\n").await.expect("the edge reads");
            assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
            with_timeout("the response", client.read_exact(&mut [0; 4])).await.expect("the response");
        }
    };
    tokio::join!(responses, requests);
}
