//! Bounds of what a guest may send without content, and for how long at a time it is read.
//!
//! hyper reads over informational answers (1xx) and the zeros before a chunk's size without a bound, and parses for as long as its
//! socket has bytes. A guest can send them faster than they are parsed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::task::coop;

/// Most bytes of an answer up to the end of its head, and between two frames of its body. The daemon's heads have a few hundred
/// bytes; a frame has at most what one read brings.
const UNPRODUCTIVE_BYTES_MAX: usize = 128 << 10;
/// Bytes that are read before other tasks get their turn. Parsing so many takes about a millisecond at the worst.
const TURN_BYTES: usize = 32 << 10;

/// Bytes that may still come before the next frame does.
#[derive(Debug, Clone)]
struct Allowance(Arc<AtomicUsize>);

impl Allowance {
    fn renew(&self) {
        self.0.store(UNPRODUCTIVE_BYTES_MAX, Ordering::Relaxed);
    }
}

/// The body of a guest's answer.
#[derive(Debug)]
pub(crate) struct GuestBody {
    incoming: Incoming,
    allowance: Allowance,
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let budget = ready!(coop::poll_proceed(cx));
        let frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        budget.made_progress();
        this.allowance.renew();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// The answer to one request, which is sent on a connection of its own.
pub(crate) async fn exchange<S>(io: S, request: Request<Full<Bytes>>) -> hyper::Result<Response<GuestBody>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let allowance = Allowance(Arc::new(AtomicUsize::new(UNPRODUCTIVE_BYTES_MAX)));
    let bounded = Bounded { io: io.take(0), allowance: allowance.clone(), turn: 0 };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(bounded)).await?;
    // Ends with the connection, which ends when the sender and the response are dropped.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    Ok(response.map(|incoming| GuestBody { incoming, allowance }))
}

/// A connection to a guest, for one request.
#[derive(Debug)]
struct Bounded<S> {
    /// Limited for each read.
    io: Take<S>,
    allowance: Allowance,
    /// Bytes that were read since others had their turn.
    turn: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.turn >= TURN_BYTES {
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let left = this.allowance.0.load(Ordering::Relaxed);
        if left == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many bytes without content")));
        }
        let before = buffer.filled().len();
        this.io.set_limit(left.min(TURN_BYTES) as u64);
        let result = Pin::new(&mut this.io).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        this.turn = if result.is_pending() { 0 } else { this.turn + read };
        // Unless it was renewed meanwhile.
        let less = left.saturating_sub(read);
        let _ = this.allowance.0.compare_exchange(left, less, Ordering::Relaxed, Ordering::Relaxed);
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().io.get_mut()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().io.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().io.get_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// How long anything may take before a test says that it hangs.
    const PATIENCE: Duration = Duration::from_secs(30);
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    /// What becomes of an exchange with a guest that sends `first` and then `endless`: the bytes of its body, or `None` without
    /// an answer. Nothing but the end of the exchange ends the guest.
    async fn body_of(first: &'static str, endless: &'static str) -> Option<usize> {
        let (io, mut guest) = tokio::io::duplex(64 << 10);
        let guest = tokio::spawn(async move {
            let read = guest.read(&mut [0; 1024]).await.expect("a request");
            assert!(read > 0);
            guest.write_all(first.as_bytes()).await.expect("it is read");
            let block = endless.repeat(1000);
            while guest.write_all(block.as_bytes()).await.is_ok() {}
        });
        let exchange = async {
            let mut response = exchange(io, Request::new(Full::default())).await.ok()?;
            let mut bytes = 0;
            while let Some(Ok(frame)) = response.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > UNPRODUCTIVE_BYTES_MAX {
                    break;
                }
            }
            Some(bytes)
        };
        // As a task it has its turn after each of the others'.
        let bytes = tokio::time::timeout(PATIENCE, tokio::spawn(exchange)).await.expect("it ends").expect("no panic");
        tokio::time::timeout(PATIENCE, guest).await.expect("the connection is closed").expect("no panic");
        bytes
    }

    #[tokio::test]
    async fn an_answer_without_content_is_ended_and_others_get_their_turn() {
        for endless in ["HTTP/1.1 100 Continue\r\n\r\n", "\r\n"] {
            assert_eq!(body_of("", endless).await, None);
        }
        assert_eq!(body_of("HTTP/1.1 200 OK\r\nx: ", "y").await, None);
        // One byte of content comes with each chunk of the last.
        assert_eq!(body_of(HEAD, "0").await, Some(0));
        assert_eq!(body_of(HEAD, "1\r\nx\r\n").await, Some(UNPRODUCTIVE_BYTES_MAX + 1));
    }
}
