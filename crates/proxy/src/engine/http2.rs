//! HTTP/2 connection to an upstream, for one request at a time.
//!
//! Requests do not share connections: flow-control windows belong to one exchange, an unread body holds up no other,
//! and connections are aborted, closed and pooled like those of HTTP/1.1. Resets reach the other side with their error
//! code.
//!
//! ```text
//! open ─▶ preface and SETTINGS sent ─▶ the server's first frame is SETTINGS ─▶ requests, one after the other
//!                                       └ anything else, silence, the end: NotHttp2, and no request was sent
//! ```
//!
//! An HTTP/1.1 server takes the preface for a request with an unknown method and rejects it (RFC 9113, 3.4).
//!
//! Tasks: two for each connection and up to two for each exchange, spawned by hyper. They stop with the connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use hearth_stdx::TaskSet;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::dial::Io;
use crate::engine::http1::SendError;
use crate::engine::replay::{ReplayBody, SentFlag};
use crate::headers;

/// Flow-control window of a response, and of its connection.
///
/// Large enough for full throughput within a local network, and the maximum held for a client that does not read.
const WINDOW_BYTES: u32 = 256 << 10;
/// Maximum buffer of request bytes that the upstream has not read.
const SEND_BYTES_MAX: usize = 64 << 10;
/// Maximum size of a response's headers and of its trailers, as in HTTP/1.1.
const HEADER_BYTES_MAX: u32 = 256 << 10;
/// Time for a server to send its first frame.
///
/// HTTP/2 servers send it when they accept a connection; a silent one speaks another protocol.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connection to an upstream. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<ReplayBody>,
    /// Set when the body of the last request was read to its end.
    sent_flag: Option<SentFlag>,
    scheme: Scheme,
    _close: DropGuard,
}

/// Scheme of request URIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

/// Failure of opening an HTTP/2 connection to a server that may speak another protocol.
#[derive(Debug)]
pub(super) enum ProbeError {
    /// The server speaks another protocol. No request was sent.
    NotHttp2,
    Failed(hyper::Error),
}

impl Connection {
    /// Starts HTTP/2 on `io`, until either side closes it or `abort` is cancelled.
    pub(super) async fn open(
        io: Box<dyn Io>,
        scheme: Scheme,
        tasks: &TaskSet,
        abort: &CancellationToken,
    ) -> Result<Self, hyper::Error> {
        Self::start(io, scheme, tasks, abort).await.map(|(connection, _)| connection)
    }

    /// Starts HTTP/2 on `io` and checks that the server speaks it.
    ///
    /// Cancel safe: the connection closes.
    pub(super) async fn probe(
        io: Box<dyn Io>,
        scheme: Scheme,
        tasks: &TaskSet,
        abort: &CancellationToken,
    ) -> Result<Self, ProbeError> {
        let (connection, preface) = Self::start(io, scheme, tasks, abort).await.map_err(ProbeError::Failed)?;
        match tokio::time::timeout(PREFACE_TIMEOUT, preface.is_http2()).await {
            Ok(true) => Ok(connection),
            Ok(false) | Err(_) => Err(ProbeError::NotHttp2),
        }
    }

    async fn start(
        io: Box<dyn Io>,
        scheme: Scheme,
        tasks: &TaskSet,
        abort: &CancellationToken,
    ) -> Result<(Self, Arc<ServerPreface>), hyper::Error> {
        let preface = Arc::new(ServerPreface::default());
        let end = abort.child_token();
        let executor = Executor { tasks: tasks.clone(), end: end.clone() };
        let io = PrefaceReader { io, preface: Arc::clone(&preface), head: [0; FRAME_HEAD_BYTES], read: 0 };
        let mut builder = Builder::new(executor.clone());
        builder
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_send_buf_size(SEND_BYTES_MAX)
            .max_header_list_size(HEADER_BYTES_MAX);
        let close = end.drop_guard();
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
        hyper::rt::Executor::execute(&executor, async move {
            // The task that waits for the response or reads it gets the error, too.
            if let Err(error) = connection.await {
                tracing::debug!(error = %hearth_stdx::chain(&error), "upstream connection failed");
            }
        });
        Ok((Self { sender, sent_flag: None, scheme, _close: close }, preface))
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: Request<ReplayBody>) -> Result<Response<Incoming>, SendError> {
        let (mut parts, body) = request.into_parts();
        headers::to_http2(&mut parts, if self.scheme == Scheme::Https { "https" } else { "http" });
        self.sent_flag = Some(body.sent_flag());
        let result = self.sender.try_send_request(Request::from_parts(parts, body)).await;
        result.map_err(|mut error| SendError {
            nothing_written: error.take_message().is_some(),
            error: error.into_error(),
        })
    }

    /// Returns true if the next request can be sent now.
    ///
    /// The last request may still be in transit although its response has ended: its remainder is not waited for.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready() && self.sent_flag.as_ref().is_none_or(SentFlag::is_set)
    }
}

/// Runs a connection's tasks until it closes.
#[derive(Clone)]
struct Executor {
    tasks: TaskSet,
    end: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let end = self.end.clone();
        self.tasks.spawn("HTTP/2 upstream", async move {
            end.run_until_cancelled(future).await;
        });
    }
}

/// Size of a frame header (RFC 9113, 4.1).
const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// Returns true if these are the first bytes of an HTTP/2 server, or `None` if more bytes are needed.
///
/// A server begins with SETTINGS, or with GOAWAY if it rejects the connection.
pub(super) fn is_http2_preface(bytes: &[u8]) -> Option<bool> {
    let kind = *bytes.get(3)?;
    if kind != SETTINGS && kind != GOAWAY {
        return Some(false);
    }
    // Both belong to the connection: stream 0.
    bytes.get(5..FRAME_HEAD_BYTES).map(|stream| stream == [0; 4])
}

/// Result of checking the server's first frame.
#[derive(Debug, Default)]
struct ServerPreface {
    state: AtomicU8,
    waiting: AtomicWaker,
}

const HTTP2: u8 = 1;
const NOT_HTTP2: u8 = 2;

impl ServerPreface {
    fn settle(&self, is_http2: bool) {
        let state = if is_http2 { HTTP2 } else { NOT_HTTP2 };
        let _ = self.state.compare_exchange(0, state, Ordering::AcqRel, Ordering::Acquire);
        self.waiting.wake();
    }

    /// Waits for the result. Cancel safe.
    async fn is_http2(&self) -> bool {
        poll_fn(|cx| {
            self.waiting.register(cx.waker());
            match self.state.load(Ordering::Acquire) {
                0 => Poll::Pending,
                state => Poll::Ready(state == HTTP2),
            }
        })
        .await
    }
}

/// I/O of a connection that checks the first received bytes.
struct PrefaceReader {
    io: Box<dyn Io>,
    preface: Arc<ServerPreface>,
    head: [u8; FRAME_HEAD_BYTES],
    read: usize,
}

impl PrefaceReader {
    fn inspect(&mut self, bytes: &[u8]) {
        let taken = bytes.len().min(FRAME_HEAD_BYTES - self.read);
        self.head[self.read..][..taken].copy_from_slice(&bytes[..taken]);
        self.read += taken;
        if let Some(is_http2) = is_http2_preface(&self.head[..self.read]) {
            self.preface.settle(is_http2);
        }
    }
}

impl Drop for PrefaceReader {
    fn drop(&mut self) {
        self.preface.settle(false);
    }
}

impl AsyncRead for PrefaceReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buffer))?;
        if this.read < FRAME_HEAD_BYTES {
            let bytes = &buffer.filled()[before..];
            if bytes.is_empty() && buffer.remaining() > 0 {
                this.preface.settle(false);
            }
            this.inspect(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PrefaceReader {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_preface_is_recognized() {
        let settings = [0, 0, 12, SETTINGS, 0, 0, 0, 0, 0, 0, 3];
        for (bytes, expected) in [
            (&settings[..], Some(true)),
            (&settings[..8], None),
            (&settings[..3], None),
            (&[], None),
            (&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0], Some(true)),
            (&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 1], Some(false)),
            (b"HTT", None),
            (b"HTTP", Some(false)),
            (b"SSH-2.0-OpenSSH", Some(false)),
        ] {
            assert_eq!(is_http2_preface(bytes), expected, "{bytes:?}");
        }
    }
}
