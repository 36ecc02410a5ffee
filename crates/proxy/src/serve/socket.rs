//! A client's connection, as bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Instant, Sleep};

use crate::dial::Stream;
use crate::serve::conversation::Conversation;
use crate::serve::framing::Framing;
use crate::turn::Turn;

/// The bytes of a connection that ends when its [conversation](Conversation) has been silent for too long.
pub(super) struct Socket {
    /// Limited for each read to what is left of the turn.
    stream: Take<Stream>,
    conversation: Arc<Conversation>,
    turn: Turn,
    framing: Framing,
    /// Runs out at the deadline that was last asked for; made when there is first something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: Stream, conversation: Arc<Conversation>) -> Self {
        // Only proxies of ours may open our sockets, which frame what they send.
        let framing = if stream.as_tcp().is_some() { Framing::new() } else { Framing::lenient() };
        Self { stream: stream.take(0), conversation, turn: Turn::default(), framing, timer: None }
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
        if let Poll::Ready(result) = this.turn.poll_read(&mut this.stream, cx, buffer) {
            if buffer.filled().len() > before {
                let is_busy = this.conversation.bytes_arrived();
                this.framing.check(&mut buffer.filled_mut()[before..], is_busy);
            }
            return Poll::Ready(result);
        }
        match this.conversation.deadline(cx.waker()) {
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
        ready!(this.turn.poll(cx));
        let result = Pin::new(this.stream.get_mut()).poll_write(cx, bytes);
        this.turn.written(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.turn.poll(cx));
        let result = Pin::new(this.stream.get_mut()).poll_write_vectored(cx, slices);
        this.turn.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.conversation.is_broken() {
            // It is reset when it is dropped. A proper end first would hide that.
            return Poll::Ready(Ok(()));
        }
        Pin::new(this.stream.get_mut()).poll_shutdown(cx)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.conversation.is_broken()
            && let Some(stream) = self.stream.get_ref().as_tcp()
            && let Err(error) = stream.set_zero_linger()
        {
            tracing::debug!(%error, "a broken answer may look whole to its client");
        }
    }
}
