//! Accepting connections and serving HTTP on them, until they are drained.
//!
//! ```text
//! accept ─▶ first byte … head ─▶ exchange(s) ─▶ idle ─▶ head ─▶ …        shutdown: idle ones close at once, the others after
//!           └ HEAD_TIMEOUT ┘     └ no limit ┘   └ IDLE_TIMEOUT           their exchanges, and those that take longer are cut;
//!                                                                        those that have just come are given a moment to ask
//! ```
//!
//! All kinds of listeners speak HTTP/1.1 (with upgrades) and HTTP/2; the first bytes tell, which over TLS follow from ALPN and in
//! clear from prior knowledge. A listener with TLS serves clients without TLS, too: their first byte is no handshake's. While a request is being answered nothing times out: streams are silent for days. Whoever connects
//! and says nothing, or says it very slowly, is disconnected; so are peers that vanished without a word (TCP keep-alive).
//!
//! A handler may answer without having read the request's body: the rest is read and thrown away for a while, so that a client
//! that looks for the answer only after it has sent everything finds it, and not a reset connection.
//!
//! Tasks: one for each connection, each HTTP/2 stream and each body that is thrown away, all owned by [`serve`]. An upgraded
//! stream belongs to whoever took it.

mod body;
mod connection_limit;
mod connection_state;
mod framing;
mod listener;
mod socket;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryFutureExt;
use hearth_stdx::{Seldom, TaskSet};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::body::{Body, BoxError, boxed, empty};
use crate::serve::body::{RequestBody, ResponseBody};
use crate::serve::connection_limit::ConnectionLimit;
use crate::serve::connection_state::{ConnectionState, Exchange};
use crate::serve::listener::Accepted;
use crate::serve::socket::Socket;

pub use listener::{Listener, Peer, Scheme};

/// Most headers of a message. Clients put metadata of files into headers, a few hundred of them.
pub const HEADERS_MAX: usize = 512;
/// How long a connection to sandboxes may be idle. Clients may count on 610 s, and a proxy in front of us on 620 s.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(640);
/// How long the head of a request may take, from its first byte on; or from the start of the connection on.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that are read or written at once for a connection at most; a head has to fit into it.
const BUFFER_BYTES_MAX: usize = 256 << 10;
/// Bytes of headers of one HTTP/2 request, as much as fits into an HTTP/1.1 head.
const HTTP2_HEADER_BYTES_MAX: u32 = 256 << 10;
/// StreamExecutor of one HTTP/2 connection at a time. A client may hold hundreds of silent ones.
const HTTP2_STREAMS_MAX: u32 = 1024;
/// Bytes on their way in one HTTP/2 stream, which are held here when the handler does not read them. A link of 40 Mbit/s and 50 ms
/// is full with it.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Bytes on their way in one HTTP/2 connection, and so most that it holds of bodies. Four streams that nobody reads fill it.
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes of one HTTP/2 stream that wait for the client to read them.
const HTTP2_SEND_BYTES_MAX: usize = 64 << 10;
/// How often a silent HTTP/2 peer is asked whether it is there, and how long it has to answer.
const HTTP2_PING_PERIOD: Duration = Duration::from_secs(60);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failure to accept that does not go away at once: out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client that has just connected may take to greet and to ask, once a drain began. Its request is on its way,
/// most likely, and a closed connection would lose it.
const LAST_HEAD_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a connection that acquired no permits looks for an idle one again.
const ROOM_PERIOD: Duration = Duration::from_millis(100);
/// How long tasks may take to end after they were cut. They only have to be polled once.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most connections at a time. For a further one, the connection that was idle for longest is closed; it waits while all are
    /// busy. One address (one /64 of IPv6) has at most half of them. Each takes a file descriptor here, and usually one towards
    /// its upstream.
    pub connections_max: u32,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long requests under way may take after shutdown began.
    pub drain_timeout: Duration,
}

/// Serves until `shutdown`, then drains. Returns how many connections had to be cut, when none is left.
///
/// The handler finds the [`Peer`] in the request's extensions. Answers are streamed; an error in an answer's
/// body is passed on as an abort: a reset stream in HTTP/2, an end without the proper end in HTTP/1.1.
///
/// Cancelling it cuts everything.
pub async fn serve<S, B>(
    listener: impl Into<Listener>,
    handler: S,
    config: Config,
    shutdown: CancellationToken,
) -> usize
where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let listener = listener.into();
    let tasks = TaskSet::new();
    let _abort_on_drop = tasks.token().drop_guard();
    let builder = Arc::new(protocols(&tasks, !matches!(listener, Listener::Unix(_))));
    let permits = Arc::new(Semaphore::new(config.connections_max as usize));
    let limit = Arc::new(ConnectionLimit::new(config.connections_max));
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((accepted, peer)) => {
                let acquired = shutdown.run_until_cancelled(acquire_permit(&permits, &limit)).await;
                let Some(permit) = acquired else { break };
                let connection_state = Arc::new(ConnectionState::new(config.idle_timeout));
                let abort = tasks.token().child_token();
                let Some(registration) = ConnectionLimit::admit(&limit, peer.ip(), &connection_state, &abort) else {
                    tracing::debug!(peer = ?peer.ip(), "closed a connection: its address has its share, and uses all of it");
                    continue;
                };
                let service = HandlerService { handler: handler.clone(), peer, connection_state, tasks: tasks.clone() };
                let served = connection(Arc::clone(&builder), accepted, service, shutdown.clone(), abort);
                tasks.spawn("connection", async move {
                    served.await;
                    drop((permit, registration));
                });
            }
            Err(error) if listener::is_connection_error(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                let _ = shutdown.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    // New connections are refused while the others end.
    drop(listener);
    let all_ended = permits.acquire_many(config.connections_max);
    let abort = match tokio::time::timeout(config.drain_timeout, all_ended).await {
        Ok(_) => 0,
        Err(_) => config.connections_max as usize - permits.available_permits(),
    };
    tasks.shutdown(ABORT_TIMEOUT).await;
    abort
}

/// Waits for a registration, for which the connection that was idle for longest is closed. Cancel safe.
async fn acquire_permit(permits: &Arc<Semaphore>, limit: &ConnectionLimit) -> OwnedSemaphorePermit {
    loop {
        if permits.available_permits() == 0 {
            limit.evict_idle();
        }
        if let Ok(permit) = tokio::time::timeout(ROOM_PERIOD, Arc::clone(permits).acquire_owned()).await {
            return permit.expect("the semaphore is never closed");
        }
    }
}

/// `half_close`: clients may close their half of a connection behind a request, which [`Socket`] judges.
fn protocols(tasks: &TaskSet, half_close: bool) -> auto::Builder<StreamExecutor> {
    let mut builder = auto::Builder::new(StreamExecutor { tasks: tasks.clone() });
    builder.http1().max_headers(HEADERS_MAX).max_buf_size(BUFFER_BYTES_MAX).half_close(half_close);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HTTP2_HEADER_BYTES_MAX)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
        .keep_alive_interval(HTTP2_PING_PERIOD)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    builder
}

async fn connection<S, B>(
    builder: Arc<auto::Builder<StreamExecutor>>,
    accepted: Accepted,
    mut service: HandlerService<S>,
    drain: CancellationToken,
    abort: CancellationToken,
) where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let too_late = async {
        drain.cancelled().await;
        tokio::time::sleep(LAST_HEAD_TIMEOUT).await;
    };
    let opened = tokio::select! {
        opened = abort.run_until_cancelled(accepted.open()) => opened,
        () = too_late => None,
    };
    let connection_state = Arc::clone(&service.connection_state);
    let socket = match opened {
        Some(Ok(stream)) => {
            service.peer = service.peer.with_scheme(stream.scheme());
            Socket::new(stream, Arc::clone(&connection_state))
        }
        Some(Err(error)) => {
            tracing::debug!(%error, "a client gave no proper greeting");
            return;
        }
        None => return,
    };
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(socket), service));
    let winding_down = Seldom::new(async {
        drain.cancelled().await;
        let _ = tokio::time::timeout(LAST_HEAD_TIMEOUT, connection_state.wait_for_head()).await;
    });
    let served = async {
        tokio::select! {
            result = poll_fn(|cx| connection_state.poll_connection(|| connection.as_mut().poll(cx))) => result,
            () = winding_down => {
                connection.as_mut().graceful_shutdown();
                poll_fn(|cx| connection_state.poll_connection(|| connection.as_mut().poll(cx))).await
            }
        }
    };
    let served = tokio::select! {
        served = served => served,
        () = Seldom::new(abort.cancelled()) => return,
    };
    if let Err(error) = served {
        // Clients leave as they like, and whoever broke off an answer has said why.
        tracing::debug!(error = %hearth_stdx::chain(&*error), "a client's connection ended");
    }
}

/// Runs HTTP/2 streams: their requests are answered at the same time.
#[derive(Clone)]
struct StreamExecutor {
    tasks: TaskSet,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let abort = self.tasks.token();
        self.tasks.spawn("stream", async move {
            abort.run_until_cancelled(stream).await;
        });
    }
}

/// Between hyper and the handler: tells the connection what happens, and the handler who asks.
struct HandlerService<S> {
    handler: S,
    peer: Peer,
    connection_state: Arc<ConnectionState>,
    tasks: TaskSet,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for HandlerService<S>
where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let version = request.version();
        let has_body = !http_body::Body::is_end_stream(request.body());
        let exchange = Arc::new(Exchange::begin(Arc::clone(&self.connection_state), version, has_body));
        if framing::has_conflicting_hosts(&request) {
            let mut response = Response::new(ResponseBody::new(None, exchange, false));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return Box::pin(std::future::ready(Ok(response)));
        }
        request.extensions_mut().insert(self.peer.clone());
        let (parts, incoming) = request.into_parts();
        let body = match has_body {
            false => empty(),
            true => boxed(RequestBody::new(incoming, &parts, Arc::clone(&exchange), self.tasks.clone())),
        };
        let handled = self.handler.clone().oneshot(Request::from_parts(parts, body));
        Box::pin(handled.map_ok(move |response| {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                exchange.switch_protocols();
            }
            response.map(|body| ResponseBody::new(Some(body), exchange, version == Version::HTTP_10))
        }))
    }
}
