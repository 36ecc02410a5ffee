//! HTTP server: accepts connections and serves requests on them until they are drained.
//!
//! ```text
//! accept ─▶ first byte … head ─▶ exchange(s) ─▶ idle ─▶ head ─▶ …        shutdown: idle connections close immediately, others
//!           └ HEAD_TIMEOUT ┘     └ no limit ┘   └ IDLE_TIMEOUT           after their exchanges; at the drain timeout they are
//!                                                                        aborted; new ones may still send a first request
//! ```
//!
//! All listeners speak HTTP/1.1 (with upgrades) and HTTP/2. The first bytes of a connection decide: over TLS they
//! follow from ALPN, in plain text from prior knowledge. A listener with TLS also serves clients without TLS, whose
//! first byte is not that of a handshake. An exchange never times out, since streams may be silent for days. Clients
//! that send no request, or send it very slowly, are disconnected; so are peers that disappeared (TCP keep-alive).
//!
//! A handler may respond without having read the request's body. The rest is read and discarded for a limited time, so
//! that a client that reads the response only after it has sent everything does not find a reset connection.
//!
//! Tasks: one for each connection, each HTTP/2 stream and each discarded body, all owned by [`serve`]. An upgraded
//! stream belongs to the handler that took it.

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
use hearth_stdx::{TaskSet, WakeGated};
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

/// Maximum number of headers of a message. Clients put metadata of files into headers, a few hundred of them.
pub const HEADERS_MAX: usize = 512;
/// Idle timeout of connections to sandboxes.
///
/// Clients may rely on 610 s, and a proxy in front of the edge on 620 s.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(640);
/// Time for the head of a request, from its first byte on or from the start of the connection.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum size of a connection's read and write buffers, each; a head has to fit into it.
const BUFFER_BYTES_MAX: usize = 256 << 10;
/// Maximum size of the headers of an HTTP/2 request, as in HTTP/1.1.
const HTTP2_HEADER_BYTES_MAX: u32 = 256 << 10;
/// Maximum number of concurrent streams of an HTTP/2 connection. A client may hold hundreds of silent ones.
const HTTP2_STREAMS_MAX: u32 = 1024;
/// Flow-control window of an HTTP/2 stream: bytes held here while the handler does not read them.
///
/// It keeps a link of 40 Mbit/s and 50 ms busy.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Flow-control window of an HTTP/2 connection, and so the maximum held of its bodies: four unread streams.
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Maximum buffer of an HTTP/2 stream's bytes that the client has not read.
const HTTP2_SEND_BYTES_MAX: usize = 64 << 10;
/// Interval of pings on a silent HTTP/2 connection, and the time for the response.
const HTTP2_PING_PERIOD: Duration = Duration::from_secs(60);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after an accept failure that persists, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for a new client to complete the handshake and send a request after a drain has begun.
///
/// Its request most likely is in transit, and closing the connection would lose it.
const LAST_HEAD_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval between searches for an idle connection while the server is full.
const EVICTION_PERIOD: Duration = Duration::from_millis(100);
/// Time for tasks to finish after they were aborted; each has to be polled only once.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Maximum number of connections.
    ///
    /// For a further one, the connection that was idle for longest is closed; while all are busy, it waits. One address
    /// (one /64 of IPv6) may have half of them. Each takes a file descriptor here, and usually one towards its
    /// upstream.
    pub connections_max: u32,
    /// Time until an idle connection is closed.
    pub idle_timeout: Duration,
    /// Time for requests in flight to finish after shutdown began.
    pub drain_timeout: Duration,
}

/// Serves until `shutdown`, drains, and returns the number of aborted connections after the last one has closed.
///
/// The handler finds the [`Peer`] in the request's extensions. Responses are streamed; an error in a response's body is
/// passed on as an abort: a reset stream in HTTP/2, the missing end of the message in HTTP/1.1.
///
/// Cancelling it aborts all connections.
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
                let Some(permit) = acquire_permit(&permits, &limit, &shutdown).await else { break };
                let connection_state = Arc::new(ConnectionState::new(config.idle_timeout));
                let abort = tasks.token().child_token();
                let Some(registration) = ConnectionLimit::admit(&limit, peer.ip(), &connection_state, &abort) else {
                    tracing::debug!(peer = ?peer.ip(), "connection rejected: all connections of the network are busy");
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
                tracing::warn!(%error, "accept failed");
                let _ = shutdown.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    // New connections are rejected while the open ones are drained.
    drop(listener);
    let all_closed = permits.acquire_many(config.connections_max);
    let aborted = match tokio::time::timeout(config.drain_timeout, all_closed).await {
        Ok(_) => 0,
        Err(_) => config.connections_max as usize - permits.available_permits(),
    };
    tasks.shutdown(ABORT_TIMEOUT).await;
    aborted
}

/// Waits for a permit, and closes the longest idle connection if there is none.
///
/// Returns `None` if the shutdown begins while it waits. A free permit is returned even then: the client of an accepted
/// connection may have sent its request already, and would see a reset. Cancel safe.
async fn acquire_permit(
    permits: &Arc<Semaphore>,
    limit: &ConnectionLimit,
    shutdown: &CancellationToken,
) -> Option<OwnedSemaphorePermit> {
    loop {
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Some(permit);
        }
        limit.evict_idle();
        let permit = tokio::time::timeout(EVICTION_PERIOD, Arc::clone(permits).acquire_owned());
        if let Ok(permit) = shutdown.run_until_cancelled(permit).await? {
            return Some(permit.expect("the semaphore is never closed"));
        }
    }
}

/// `half_close`: a client may close its half of the connection after a request; [`Socket`] decides if that is an abort.
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
    let handshake_deadline = async {
        drain.cancelled().await;
        tokio::time::sleep(LAST_HEAD_TIMEOUT).await;
    };
    let opened = tokio::select! {
        opened = abort.run_until_cancelled(accepted.open()) => opened,
        () = handshake_deadline => None,
    };
    let connection_state = Arc::clone(&service.connection_state);
    let socket = match opened {
        Some(Ok(stream)) => {
            service.peer = service.peer.with_scheme(stream.scheme());
            Socket::new(stream, Arc::clone(&connection_state))
        }
        Some(Err(error)) => {
            tracing::debug!(%error, "client handshake failed");
            return;
        }
        None => return,
    };
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(socket), service));
    let drain_begun = WakeGated::new(async {
        drain.cancelled().await;
        let _ = tokio::time::timeout(LAST_HEAD_TIMEOUT, connection_state.wait_for_head()).await;
    });
    let served = async {
        tokio::select! {
            result = poll_fn(|cx| connection_state.poll_connection(|| connection.as_mut().poll(cx))) => result,
            () = drain_begun => {
                connection.as_mut().graceful_shutdown();
                poll_fn(|cx| connection_state.poll_connection(|| connection.as_mut().poll(cx))).await
            }
        }
    };
    let served = tokio::select! {
        served = served => served,
        () = WakeGated::new(abort.cancelled()) => return,
    };
    if let Err(error) = served {
        // Clients may disconnect at any time, and a failed response was logged by its handler.
        tracing::debug!(error = %hearth_stdx::chain(&*error), "client connection failed");
    }
}

/// Spawns HTTP/2 streams, so that their requests are served concurrently.
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

/// Adapter between hyper and the handler.
///
/// It reports exchanges to the [connection state](ConnectionState) and adds the peer to requests.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_accepted_connection_is_served_although_the_shutdown_has_begun() {
        let (permits, limit, shutdown) =
            (Arc::new(Semaphore::new(1)), ConnectionLimit::new(1), CancellationToken::new());
        shutdown.cancel();
        let permit = acquire_permit(&permits, &limit, &shutdown).await;
        assert!(permit.is_some());
        assert!(acquire_permit(&permits, &limit, &shutdown).await.is_none(), "a full server accepts no more");
    }
}
