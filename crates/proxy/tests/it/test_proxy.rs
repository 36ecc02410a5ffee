//! A proxy between a client and an upstream, connected by sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt};
use hearth_proxy::body::{Body, boxed};
use hearth_proxy::pages::Audience;
use hearth_proxy::{Config, Engine, Error, Key, UpstreamRequest, dial, serve};
use hearth_types::{NodeAddress, SandboxId};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Time until a test fails because an operation hangs.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The group of all requests to a test proxy.
pub(crate) const GROUP: &str = "sandbox";

pub(crate) fn sandbox_id() -> SandboxId {
    "i123".parse().expect("an id")
}

/// Panics if `future` takes longer than the test timeout.
#[track_caller]
pub(crate) fn with_timeout<F: Future>(what: &'static str, future: F) -> impl Future<Output = F::Output> {
    let hangs = move |_| panic!("timed out waiting for {what}");
    async move { tokio::time::timeout(TEST_TIMEOUT, future).await.unwrap_or_else(hangs) }
}

/// Waits until a condition that other tasks change is true.
pub(crate) async fn wait_until(what: &'static str, so: impl Fn() -> bool) {
    let poll = async {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    with_timeout(what, poll).await;
}

pub(crate) struct TestProxy {
    pub(crate) address: SocketAddr,
    pub(crate) engine: Engine<&'static str>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<usize>,
    pub(crate) dials: Arc<AtomicUsize>,
}

impl TestProxy {
    pub(crate) async fn start(upstream: NodeAddress) -> Self {
        Self::start_with(upstream, Config::for_guests(), serve_config()).await
    }

    /// Starts a proxy that works like a node's.
    pub(crate) async fn start_with(upstream: NodeAddress, config: Config, serve_config: serve::Config) -> Self {
        let engine = Engine::new(config);
        let dials = Arc::new(AtomicUsize::new(0));
        let (listener, address) = listen().await;
        let shutdown = CancellationToken::new();
        let forward = {
            let (engine, dials) = (engine.clone(), Arc::clone(&dials));
            move |request: Request<Body>| {
                let (engine, dials, upstream) = (engine.clone(), Arc::clone(&dials), upstream.clone());
                async move { Ok::<_, Infallible>(respond(&engine, &dials, &upstream, request).await) }
            }
        };
        let served = tokio::spawn(serve::serve(listener, tower::service_fn(forward), serve_config, shutdown.clone()));
        Self { address, engine, shutdown, served, dials }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    pub(crate) async fn client_of(&self, http2: bool) -> Client {
        if http2 { Client::connect_http2(self.address).await } else { self.client().await }
    }

    pub(crate) async fn raw(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the proxy listens")
    }

    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    pub(crate) async fn requests_finished(&self) {
        wait_until("requests to finish", || self.engine.requests(&GROUP) == 0).await;
    }
}

async fn respond(
    engine: &Engine<&'static str>,
    dials: &AtomicUsize,
    upstream: &NodeAddress,
    request: Request<Body>,
) -> Response<Body> {
    let audience = Audience::of(request.headers());
    let connect = || {
        dials.fetch_add(1, Ordering::SeqCst);
        dial::node(upstream)
    };
    let key = Key { group: GROUP, port: Some(8080) };
    let dial = |_| async { Ok(dial::retry_refused(connect).await?.into()) };
    let forwarded = engine.forward(UpstreamRequest { key: &key, dial, request, guard: None }).await;
    forwarded.unwrap_or_else(|error: Error| error.page(&sandbox_id(), 8080).response(audience))
}

pub(crate) fn serve_config() -> serve::Config {
    serve::Config { connections_max: 1000, idle_timeout: serve::IDLE_TIMEOUT, drain_timeout: TEST_TIMEOUT }
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// Returns the address of a port that refuses connections.
pub(crate) async fn closed_port() -> SocketAddr {
    let (_, address) = listen().await;
    address
}

/// Starts a server for `handler`, which stops when the guard is dropped.
pub(crate) async fn serve_handler<H, F>(handler: H) -> (SocketAddr, DropGuard)
where
    H: FnMut(Request<Body>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (listener, address) = listen().await;
    let shutdown = CancellationToken::new();
    let mut handler = handler;
    let service = tower::service_fn(move |request| {
        let response = handler(request);
        async move { Ok(response.await) }
    });
    tokio::spawn(serve::serve(listener, service, serve_config(), shutdown.clone()));
    (address, shutdown.drop_guard())
}

/// Advances the paused clock, so that no test waits for real timeouts.
pub(crate) async fn advance_time(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Starts an upstream whose response bodies the test sends.
pub(crate) async fn streaming_upstream() -> (NodeAddress, Channel<BodySender>) {
    let sources = Channel::new();
    let send = sources.sender();
    let upstream = upstream(move |_| {
        let (source, body) = BodySender::body();
        send(source);
        std::future::ready(Response::new(body))
    });
    (upstream.await, sources)
}

/// Starts an upstream that serves HTTP/1.1 with hyper.
pub(crate) async fn upstream<H, F>(handler: H) -> NodeAddress
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("the listener works");
            tokio::spawn(serve_http1(stream, handler.clone()));
        }
    });
    NodeAddress::Tcp(address)
}

/// Starts an upstream on a Unix socket.
pub(crate) async fn unix_upstream<H, F>(path: PathBuf, handler: H) -> NodeAddress
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = UnixListener::bind(&path).expect("a free path");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("the listener works");
            tokio::spawn(serve_http1(stream, handler.clone()));
        }
    });
    NodeAddress::Unix(path)
}

async fn serve_http1<S, H, F>(stream: S, handler: H)
where
    S: dial::Io,
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let response = handler(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Tests abort connections on purpose.
    let _ = connection.with_upgrades().await;
}

/// Starts an upstream that runs `script` with the number of each connection.
pub(crate) async fn raw_upstream<H, F>(script: H) -> NodeAddress
where
    H: Fn(usize, TcpStream) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.expect("the listener works");
            tokio::spawn(script(number, stream));
        }
    });
    NodeAddress::Tcp(address)
}

/// Reads a head byte by byte, so that nothing after it is read.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("heads are ASCII")
}

pub(crate) async fn write(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("the peer reads");
}

/// Sender of a body's chunks.
pub(crate) struct BodySender(mpsc::UnboundedSender<Result<Frame<Bytes>, std::io::Error>>);

impl BodySender {
    pub(crate) fn body() -> (Self, Body) {
        let (sender, receiver) = mpsc::unbounded();
        (Self(sender), boxed(StreamBody::new(receiver)))
    }

    pub(crate) async fn send(&mut self, chunk: &'static str) {
        self.0.send(Ok(Frame::data(Bytes::from_static(chunk.as_bytes())))).await.expect("the body is read");
    }

    pub(crate) async fn send_trailers(&mut self, trailers: http::HeaderMap) {
        self.0.send(Ok(Frame::trailers(trailers))).await.expect("the body is read");
    }

    /// Returns true if the body was dropped.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    pub(crate) fn end(self) {}
}

/// Channel between tasks of a test.
pub(crate) struct Channel<T> {
    sender: mpsc::UnboundedSender<T>,
    receiver: mpsc::UnboundedReceiver<T>,
}

impl<T: Send> Channel<T> {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded();
        Self { sender, receiver }
    }

    pub(crate) fn sender(&self) -> impl Fn(T) + Clone + Send + Sync + use<T> {
        let sender = self.sender.clone();
        move |value| sender.unbounded_send(value).expect("the test holds the receiver")
    }

    pub(crate) async fn recv(&mut self) -> T {
        with_timeout("a message", self.receiver.next()).await.expect("the channel holds a sender")
    }
}

/// Returns the next chunk of a body as text, or `None` at its end.
///
/// HTTP/2 may end with an empty chunk, which is skipped.
pub(crate) async fn chunk(body: &mut Incoming) -> Option<String> {
    loop {
        let frame = with_timeout("a chunk", body.frame()).await?.expect("the body is not aborted");
        let data = frame.into_data().expect("no trailers");
        if !data.is_empty() {
            return Some(String::from_utf8(data.to_vec()).expect("text"));
        }
    }
}

/// Waits for the abort of a body that has no more chunks.
pub(crate) async fn expect_abort(body: &mut Incoming) {
    match with_timeout("an abort", body.frame()).await {
        Some(Err(_)) => {}
        other => panic!("expected an abort, got {other:?}"),
    }
}

/// Reads a whole body as text.
pub(crate) async fn text(response: Response<Incoming>) -> String {
    let bytes = with_timeout("a body", response.into_body().collect()).await.expect("the body ends").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Client with one connection, of either HTTP version.
pub(crate) enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the proxy listens");
        stream.set_nodelay(true).expect("a TCP socket");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection.with_upgrades());
        Self::Http1(sender)
    }

    pub(crate) async fn connect_http2(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the proxy listens");
        stream.set_nodelay(true).expect("a TCP socket");
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.max_header_list_size(256 << 10);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub(crate) async fn try_send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::Http1(sender) => {
                with_timeout("the connection", sender.ready()).await?;
                with_timeout("a response", sender.send_request(request)).await
            }
            Self::Http2(sender) => {
                let uri = format!("http://8080-i123.example.com{}", request.uri());
                *request.uri_mut() = uri.parse().expect("a URI");
                request.headers_mut().remove("host");
                with_timeout("a response", sender.send_request(request)).await
            }
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.try_send(request).await.expect("a response")
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response<Incoming> {
        self.send(get(path)).await
    }
}

pub(crate) fn get(path: &str) -> Request<Body> {
    let request = Request::get(path).header("host", "8080-i123.example.com");
    request.body(hearth_proxy::body::empty()).expect("a request")
}

pub(crate) fn post(path: &str, body: Body) -> Request<Body> {
    Request::post(path).header("host", "8080-i123.example.com").body(body).expect("a request")
}
