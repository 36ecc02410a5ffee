//! Test set-up: an edge, a node with one sandbox, and a client.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use hearth_catalog::Catalog;
use hearth_edge::{Config, Edge};
use hearth_proxy::body::{self, Body, boxed};
use hearth_proxy::dial::Stream;
use hearth_proxy::headers::TargetHeader;
use hearth_proxy::pages::{Audience, Page};
use hearth_proxy::serve::Listener;
use hearth_proxy::tls::{Acceptor, Connector};
use hearth_proxy::{Engine, Key, UpstreamRequest, dial, serve};
use hearth_types::{ExecutionId, NodeAddress, Route, TeamId, Visitors};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Time until a test fails because an operation hangs.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const LEASE: Duration = Duration::from_secs(3600);

pub(crate) async fn with_timeout<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(TEST_TIMEOUT, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// An edge and a node with one sandbox. The guest's server serves all of its ports.
pub(crate) struct World {
    pub(crate) edge_address: SocketAddr,
    pub(crate) edge: Edge,
    pub(crate) edge_served: JoinHandle<usize>,
    pub(crate) edge_shutdown: CancellationToken,
    pub(crate) catalog: Catalog,
    pub(crate) route: Route,
    pub(crate) node: Engine<ExecutionId>,
    pub(crate) node_end: DropGuard,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn with_guest(guest: SocketAddr) -> Self {
        Self::with(guest, Config::default()).await
    }

    pub(crate) async fn with(guest: SocketAddr, config: Config) -> Self {
        Self::with_tls(guest, config, None).await
    }

    /// On a node with a limit of requests per sandbox.
    pub(crate) async fn with_request_limit(guest: SocketAddr, requests_max: usize) -> Self {
        let node = hearth_proxy::Config { requests_per_group_max: requests_max, ..hearth_proxy::Config::for_guests() };
        Self::build(guest, Config::default(), None, node).await
    }

    /// With an edge that may speak TLS.
    pub(crate) async fn with_tls(guest: SocketAddr, config: Config, tls: Option<Acceptor>) -> Self {
        Self::build(guest, config, tls, hearth_proxy::Config::for_guests()).await
    }

    async fn build(guest: SocketAddr, config: Config, tls: Option<Acceptor>, node: hearth_proxy::Config) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node");
        let route = Route {
            sandbox_id: "i123".parse().expect("an id"),
            execution_id: ExecutionId::generate(),
            team_id: TeamId::generate(),
            node_id: "node-1".parse().expect("an id"),
            node_proxy: NodeAddress::Unix(path.clone()),
            visitors: Visitors::All,
            host_mask: None,
            https_ports: BTreeSet::new(),
        };
        let node = Engine::new(node);
        let node_end = serve_node(path, node.clone(), route.execution_id, guest).drop_guard();
        let catalog = Catalog::in_memory();
        catalog.publish(route.clone(), LEASE, None).await.expect("there is room");

        let edge = Edge::new(config, catalog.clone());
        let (listener, edge_address) = listen().await;
        let listener = match tls {
            Some(acceptor) => Listener::Tls(listener, acceptor),
            None => Listener::Tcp(listener),
        };
        let edge_shutdown = CancellationToken::new();
        let (serving, token) = (edge.clone(), edge_shutdown.clone());
        let edge_served = tokio::spawn(async move { serving.serve(listener, token).await });
        Self { edge_address, edge, edge_served, edge_shutdown, catalog, route, node, node_end, _folder: folder }
    }

    pub(crate) async fn raw(&self) -> TcpStream {
        let stream = TcpStream::connect(self.edge_address).await.expect("the edge listens");
        stream.set_nodelay(true).expect("a TCP socket");
        stream
    }

    /// Sends one request on a new connection.
    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        let io = TokioIo::new(self.raw().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("a handshake");
        tokio::spawn(connection.with_upgrades());
        with_timeout("a response", sender.send_request(request)).await.expect("a response")
    }

    pub(crate) async fn get(&self, host: &str, path: &str) -> Response<Incoming> {
        self.send(Request::get(path).header("host", host).body(body::empty()).expect("a request")).await
    }
}

/// Starts a node's proxy as the orchestrator does.
pub(crate) fn serve_node(
    path: PathBuf,
    engine: Engine<ExecutionId>,
    running: ExecutionId,
    guest: SocketAddr,
) -> CancellationToken {
    let handler = tower::service_fn(move |mut request: Request<Body>| {
        let engine = engine.clone();
        async move {
            let audience = Audience::of(request.headers());
            let address = TargetHeader::take(request.headers_mut()).expect("sent by an edge");
            let sandbox_id = &address.sandbox_id;
            if address.execution_id != running {
                return Ok::<_, Infallible>(Page::NotFound { sandbox_id }.response(audience));
            }
            let key = Key { group: address.execution_id, port: Some(address.port) };
            let tls = address.tls;
            let dial = |best| async move {
                let stream = dial::retry_refused(|| TcpStream::connect(guest)).await?;
                let connector = Connector::unverified();
                let stream = if tls { connector.connect(stream, best).await? } else { Stream::Tcp(stream) };
                Ok(stream.into())
            };
            let forwarded = engine.forward(UpstreamRequest { key: &key, dial, request, guard: None }).await;
            Ok(forwarded.unwrap_or_else(|error| error.page(sandbox_id, address.port).response(audience)))
        }
    });
    let shutdown = CancellationToken::new();
    let serve_config =
        serve::Config { connections_max: 100, idle_timeout: serve::IDLE_TIMEOUT, drain_timeout: Duration::ZERO };
    let listener = UnixListener::bind(path).expect("a free path");
    tokio::spawn(serve::serve(listener, handler, serve_config, shutdown.clone()));
    shutdown
}

/// Starts a guest's server.
pub(crate) async fn guest<H, F>(handler: H) -> SocketAddr
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("the listener works");
            let handler = handler.clone();
            let service = hyper::service::service_fn(move |request| {
                let response = handler(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    address
}

/// Responds with the request line and the headers of the request.
pub(crate) async fn mirror(request: Request<Incoming>) -> Response<Body> {
    let mut lines: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    lines.insert(0, format!("{} {}", request.method(), request.uri()));
    Response::new(body::full(lines.join("\n")))
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let bytes = with_timeout("a body", response.into_body().collect()).await.expect("the body ends").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match with_timeout("a head", stream.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("heads are ASCII")
}

/// Returns a body and the sender of its chunks.
pub(crate) fn body_channel() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>, Body) {
    let (sender, receiver) = mpsc::unbounded();
    (sender, boxed(StreamBody::new(receiver)))
}

pub(crate) fn data(text: &'static str) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}
