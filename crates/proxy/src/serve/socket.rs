//! I/O of a client's connection.
//!
//! A client may close its half of the connection after its request and wait for the response (`nc -N`). A client that
//! disconnected closes the same half: TCP does not distinguish the two until something is written. So during an HTTP/1
//! exchange this module reads the end of the client's bytes instead of hyper, and judges it by its time: right after
//! the request it is a half-close, later it is a disconnect.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Instant, Sleep};

use crate::byte_budget::ByteBudget;
use crate::dial::Stream;
use crate::serve::connection_state::ConnectionState;
use crate::serve::framing::FramingCheck;

/// Maximum time between a request and the end of the client's bytes for a half-close.
///
/// Programs that half-close do it immediately, in the same packet or the next one. Clients that give up wait longer,
/// and their upstream is closed immediately.
const HALF_CLOSE_DELAY_MAX: Duration = Duration::from_millis(100);
/// Maximum time without a byte of the response on a half-closed connection.
///
/// Longer pauses are rare, and a client that has disconnected holds its upstream for at most this time.
const HALF_CLOSED_SILENCE_MAX: Duration = Duration::from_secs(10);

/// I/O of a connection that fails when the deadline of its [state](ConnectionState) has passed.
pub(super) struct Socket {
    /// Limited before each read to the remaining byte budget.
    stream: Take<Stream>,
    connection_state: Arc<ConnectionState>,
    budget: ByteBudget,
    framing: FramingCheck,
    /// The client may close its half before the response has ended.
    may_half_close: bool,
    /// hyper waits for bytes, so it reads their end itself.
    hyper_reads: bool,
    /// First byte of the next request, read while checking for the end.
    read_ahead: Option<u8>,
    /// Time since which a complete request was read and no byte followed.
    complete_since: Option<Instant>,
    /// Time of the last byte of the response since the client's half was closed, or of that close.
    half_closed: Option<Instant>,
    /// Fires at the deadline that was last read; created at the first wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: Stream, connection_state: Arc<ConnectionState>) -> Self {
        let is_client = stream.as_tcp().is_some();
        Self {
            // Only Hearth's proxies may open its Unix sockets, and their framing is valid.
            framing: if is_client { FramingCheck::new() } else { FramingCheck::disabled() },
            budget: ByteBudget::default(),
            may_half_close: is_client,
            hyper_reads: false,
            read_ahead: None,
            complete_since: None,
            half_closed: None,
            timer: None,
            stream: stream.take(0),
            connection_state,
        }
    }

    /// Fails if the client has disconnected while its response is pending.
    fn check_client(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if std::mem::take(&mut self.hyper_reads)
            || !self.may_half_close
            || !self.connection_state.is_awaiting_response(cx.waker())
        {
            return Ok(());
        }
        if self.half_closed.is_none() && self.read_ahead.is_none() {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            let polled = Pin::new(self.stream.get_mut()).poll_read(cx, &mut buffer)?;
            let complete_since = *self.complete_since.get_or_insert_with(Instant::now);
            if polled.is_pending() {
                return Ok(());
            }
            self.read_ahead = buffer.filled().first().copied();
            if self.read_ahead.is_none() {
                let now = Instant::now();
                if now.duration_since(complete_since) > HALF_CLOSE_DELAY_MAX {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                self.half_closed = Some(now);
            }
        }
        let Some(since) = self.half_closed else { return Ok(()) };
        if self.poll_timer(since + HALF_CLOSED_SILENCE_MAX, cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn note_written(&mut self, result: &Poll<io::Result<usize>>) {
        if self.half_closed.is_some() && matches!(result, Poll::Ready(Ok(1..))) {
            self.half_closed = Some(Instant::now());
        }
    }

    fn poll_timer(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if let Some(byte) = this.read_ahead.take() {
            buffer.put_slice(&[byte]);
        }
        let polled = this.budget.poll_read(&mut this.stream, cx, buffer);
        if buffer.filled().len() > before {
            this.complete_since = None;
            let is_busy = this.connection_state.bytes_received();
            this.framing.check(&mut buffer.filled_mut()[before..], is_busy);
            // The next read reports a failure after the byte that was read ahead.
            return Poll::Ready(Ok(()));
        }
        if polled.is_ready() {
            return polled;
        }
        this.hyper_reads = true;
        match this.connection_state.deadline(cx.waker()) {
            Some(until) => {
                ready!(this.poll_timer(until, cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.budget.poll(cx));
        let result = Pin::new(this.stream.get_mut()).poll_write(cx, bytes);
        this.note_written(&result);
        this.budget.charge_written(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.budget.poll(cx));
        let result = Pin::new(this.stream.get_mut()).poll_write_vectored(cx, slices);
        this.note_written(&result);
        this.budget.charge_written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(this.stream.get_mut()).poll_flush(cx);
        // hyper flushes whenever it is polled, after its reads.
        this.check_client(cx)?;
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.connection_state.needs_reset() {
            // The drop resets the connection. A proper end before that would hide the failure.
            return Poll::Ready(Ok(()));
        }
        Pin::new(this.stream.get_mut()).poll_shutdown(cx)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.connection_state.needs_reset()
            && let Some(stream) = self.stream.get_ref().as_tcp()
            && let Err(error) = stream.set_zero_linger()
        {
            // The aborted response may look complete to its client.
            tracing::debug!(%error, "setting zero linger failed");
        }
    }
}
