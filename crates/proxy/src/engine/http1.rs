//! HTTP/1.1 connection to an upstream.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use hearth_stdx::TaskSet;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio_util::sync::CancellationToken;

use crate::dial::Io;
use crate::engine::Destination;
use crate::engine::connection_io::ConnectionIo;
use crate::engine::http2;
use crate::engine::replay::ReplayBody;
use crate::engine::response_limits::{ResponseLimits, Shared};
use crate::serve::HEADERS_MAX;

/// Bytes of a request that are discarded after the upstream has stopped reading.
///
/// Without discarding, the client could not read the response. A client that sends more without reading the response
/// gets an error.
const DISCARDED_BYTES_MAX: usize = 64 << 20;

/// Maximum size of the write buffer for a request, and of a response's head.
const BUFFER_BYTES_MAX: usize = 128 << 10;

/// Connection to an upstream, for one request at a time.
///
/// Dropping it closes it, unless a response is still being read from it.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<ReplayBody>,
    connection_io: ConnectionIo,
    shared: Arc<Shared>,
    saw_http2: Arc<AtomicBool>,
}

/// Failure of sending a request or receiving its response's head.
#[derive(Debug)]
pub(super) struct SendError {
    pub(super) error: hyper::Error,
    /// No byte of the request was written.
    pub(super) nothing_written: bool,
}

impl Connection {
    /// Starts HTTP/1.1 on `io`.
    pub(super) async fn open(io: Box<dyn Io>, destination: Destination) -> Result<Self, hyper::Error> {
        let shared = Arc::new(Shared::default());
        let saw_http2 = Arc::new(AtomicBool::new(false));
        let limited = LimitedIo {
            io: io.take(0),
            shared: Arc::clone(&shared),
            limits: ResponseLimits::default(),
            first_bytes: Some(Arc::clone(&saw_http2)),
            discarded: None,
        };
        let mut builder = Builder::new();
        builder
            .max_headers(HEADERS_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .title_case_headers(destination == Destination::Guests);
        let (sender, connection) = builder.handshake(TokioIo::new(limited)).await?;
        let connection_io = ConnectionIo::new(Arc::clone(&shared), async move {
            // The task that waits for the response or reads it gets the error, too.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = %hearth_stdx::chain(&error), "upstream connection failed");
            }
        });
        Ok(Self { sender, connection_io, shared, saw_http2 })
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: Request<ReplayBody>) -> Result<Response<Incoming>, SendError> {
        self.shared.begin_exchange();
        let mut response = pin!(self.sender.try_send_request(request));
        let result = poll_fn(|cx| self.connection_io.poll(cx, |cx| response.as_mut().poll(cx))).await;
        result.map_err(|mut error: TrySendError<_>| SendError {
            nothing_written: error.take_message().is_some(),
            error: error.into_error(),
        })
    }

    /// Records that a frame of the response was received.
    pub(super) fn frame_received(&self) {
        self.shared.frame_received();
    }

    /// Records that the connection stops speaking HTTP.
    pub(super) fn switch_protocols(&self) {
        self.shared.switch_protocols();
    }

    /// Polls a request's progress together with the connection's I/O.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll_request: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.connection_io.poll(cx, poll_request)
    }

    /// Spawns a task for the connection's I/O until `abort`, so that the request continues even if the response is not
    /// read.
    pub(super) fn detach(&mut self, tasks: &TaskSet, abort: Arc<CancellationToken>) {
        self.connection_io.detach(tasks, abort);
    }

    /// Returns true if bytes were received since the last request was sent.
    pub(super) fn has_received(&self) -> bool {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Returns true if the first received bytes are those of an HTTP/2 server.
    pub(super) fn saw_http2(&self) -> bool {
        self.saw_http2.load(Ordering::Relaxed)
    }

    /// Returns true if the next request can be sent now.
    pub(super) fn is_ready(&mut self) -> bool {
        self.connection_io.poll_if_woken();
        self.sender.is_ready()
    }

    pub(super) fn is_open(&mut self) -> bool {
        self.connection_io.poll_if_woken();
        !self.sender.is_closed()
    }

    /// Waits until the request is sent and the response is read. Returns false if the connection closed instead.
    ///
    /// Cancel safe.
    pub(super) async fn ready(&mut self) -> bool {
        poll_fn(|cx| self.connection_io.poll(cx, |cx| self.sender.poll_ready(cx))).await.is_ok()
    }

    /// Drops the waker: no task waits for this connection until it is used again.
    pub(super) fn clear_waker(&self) {
        self.connection_io.clear_waker();
    }
}

/// I/O of a connection, with limits.
///
/// It records when a response begins, limits the bytes before it, yields to other tasks when the byte budget is used
/// up, and lets a response be read after the upstream has stopped reading the request.
///
/// A server that rejects an upload responds and closes the connection. Writing the rest of the upload then fails,
/// usually before the response was read. This failure is hidden from hyper, which would give up immediately: the next
/// read decides, either with the response or with the end of the connection.
struct LimitedIo {
    /// Limited before each read to the remaining byte budget.
    io: Take<Box<dyn Io>>,
    shared: Arc<Shared>,
    limits: ResponseLimits,
    /// Set until the first bytes are received, which servers write in one piece.
    first_bytes: Option<Arc<AtomicBool>>,
    /// Bytes discarded because the upstream has stopped reading; `None` while it reads.
    discarded: Option<usize>,
}

impl LimitedIo {
    fn discard(&mut self, bytes: usize) -> io::Result<usize> {
        self.shared.budget.charge(bytes);
        let discarded = self.discarded.unwrap_or(0).saturating_add(bytes);
        self.discarded = Some(discarded);
        if discarded > DISCARDED_BYTES_MAX { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes) }
    }

    fn handle_written(&mut self, result: Poll<io::Result<usize>>, bytes: usize) -> Poll<io::Result<usize>> {
        match self.shared.budget.charge_written(result) {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Poll::Ready(self.discard(bytes))
            }
            result => result,
        }
    }
}

impl AsyncRead for LimitedIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(this.shared.budget.poll_read(&mut this.io, cx, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            this.shared.received.store(true, Ordering::Relaxed);
            if let Some(saw_http2) = this.first_bytes.take() {
                saw_http2.store(http2::is_http2_preface(read) == Some(true), Ordering::Relaxed);
            }
            this.limits.check(&this.shared, read)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LimitedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.shared.budget.poll(cx));
        if this.discarded.is_some() {
            return Poll::Ready(this.discard(bytes.len()));
        }
        let result = Pin::new(this.io.get_mut()).poll_write(cx, bytes);
        this.handle_written(result, bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        ready!(this.shared.budget.poll(cx));
        if this.discarded.is_some() {
            return Poll::Ready(this.discard(bytes));
        }
        let result = Pin::new(this.io.get_mut()).poll_write_vectored(cx, slices);
        this.handle_written(result, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().io.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().io.get_mut()).poll_shutdown(cx)
    }
}
