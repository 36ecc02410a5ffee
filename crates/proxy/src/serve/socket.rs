//! A client's connection, as bytes.
//!
//! A client may close its half of the connection behind its request and wait for the answer (`nc -N`), and one that has gone
//! closes the same half: TCP does not tell the two apart until something is written. While an HTTP/1 exchange lasts the end of
//! the client's bytes is therefore looked for here and not by hyper, and judged by its time: right behind the request it is half
//! a close, later it means that the client has gone.

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

/// Longest time between a request and the end of the client's bytes that still counts as half a close. Programs that half-close
/// do it at once, in the same packet or the next one; those that give up wait longer first, and their upstream is closed at once.
const HALF_CLOSE_DELAY_MAX: Duration = Duration::from_millis(100);
/// How long a half-closed connection may be without a byte of the answer. Longer answers in one piece are rare, and a client that
/// has gone in truth holds its upstream for no longer than this.
const HALF_CLOSED_SILENCE_MAX: Duration = Duration::from_secs(10);

/// The bytes of a connection that ends when its [connection_state](ConnectionState) has been silent for too long.
pub(super) struct Socket {
    /// Limited for each read to what is left of the turn.
    stream: Take<Stream>,
    connection_state: Arc<ConnectionState>,
    budget: ByteBudget,
    framing: FramingCheck,
    /// The client's half may be closed before the answer is over.
    may_half_close: bool,
    /// hyper waits for bytes, so it sees their end itself.
    hyper_reads: bool,
    /// A byte of the next request, read while looking for the end.
    read_ahead: Option<u8>,
    /// Since when a request is read whole and nothing came behind it.
    complete_since: Option<Instant>,
    /// When the last byte of the answer was written since the client's half was closed, or when it was closed.
    half_closed: Option<Instant>,
    /// Runs out at the deadline that was last asked for; made when there is first something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: Stream, connection_state: Arc<ConnectionState>) -> Self {
        let is_client = stream.as_tcp().is_some();
        Self {
            // Only proxies of ours may open our sockets, which frame what they send.
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

    /// Fails when the client has gone while its request is being answered.
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
            let looked = Pin::new(self.stream.get_mut()).poll_read(cx, &mut buffer)?;
            let complete_since = *self.complete_since.get_or_insert_with(Instant::now);
            if looked.is_pending() {
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
            // A failure behind the byte that was read read_ahead is there for the next read, too.
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
        // hyper flushes whenever it is polled, after it has read what it wants.
        this.check_client(cx)?;
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.connection_state.needs_reset() {
            // It is reset when it is dropped. A proper end first would hide that.
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
            tracing::debug!(%error, "a broken answer may look whole to its client");
        }
    }
}
