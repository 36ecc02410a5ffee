//! Bounds on bytes without content that a guest may send, and on the time that one read may take.
//!
//! hyper skips informational responses (1xx) and leading zeros of a chunk's size without a bound, and parses for as
//! long as its socket has bytes. A guest can send them faster than they are parsed.

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

/// Bytes that a guest may send before the end of a reply's head, and between two frames of its body.
///
/// The daemon's heads have a few hundred bytes; a frame has at most the bytes of one read.
const UNPRODUCTIVE_BYTES_MAX: usize = 128 << 10;
/// Bytes that are read before other tasks run. Parsing them takes about a millisecond at worst.
const YIELD_BYTES: usize = 32 << 10;

/// Bytes that may still be read before the next frame.
#[derive(Debug, Clone)]
struct Allowance(Arc<AtomicUsize>);

impl Allowance {
    fn renew(&self) {
        self.0.store(UNPRODUCTIVE_BYTES_MAX, Ordering::Relaxed);
    }
}

/// The body of a guest's reply.
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

/// Sends a request on its own connection and returns the reply.
pub(crate) async fn exchange<S>(io: S, request: Request<Full<Bytes>>) -> hyper::Result<Response<GuestBody>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let allowance = Allowance(Arc::new(AtomicUsize::new(UNPRODUCTIVE_BYTES_MAX)));
    let bounded = BoundedConnection { io: io.take(0), allowance: allowance.clone(), read_since_yield: 0 };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(bounded)).await?;
    // The task ends with the connection, which is closed once the sender and the response are dropped.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    Ok(response.map(|incoming| GuestBody { incoming, allowance }))
}

/// A connection to a guest, for one request.
#[derive(Debug)]
struct BoundedConnection<S> {
    /// The limit is set for each read.
    io: Take<S>,
    allowance: Allowance,
    /// Bytes read since other tasks last ran.
    read_since_yield: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedConnection<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read_since_yield >= YIELD_BYTES {
            this.read_since_yield = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let left = this.allowance.0.load(Ordering::Relaxed);
        if left == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many bytes without content")));
        }
        let before = buffer.filled().len();
        this.io.set_limit(left.min(YIELD_BYTES) as u64);
        let result = Pin::new(&mut this.io).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        this.read_since_yield = if result.is_pending() { 0 } else { this.read_since_yield + read };
        // Unless the allowance was renewed meanwhile.
        let less = left.saturating_sub(read);
        let _ = this.allowance.0.compare_exchange(left, less, Ordering::Relaxed, Ordering::Relaxed);
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for BoundedConnection<S> {
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

    /// Timeout of an operation that a test considers as hung.
    const TEST_TIMEOUT: Duration = Duration::from_secs(30);
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    /// Sends a request to a guest that replies with `first` and then endlessly with `endless`.
    ///
    /// Returns the bytes of the reply's body, or `None` without a reply. The guest stops only when the exchange has
    /// ended.
    async fn body_of(first: &'static str, endless: &'static str) -> Option<usize> {
        let (io, mut guest) = tokio::io::duplex(64 << 10);
        let guest = tokio::spawn(async move {
            let read = guest.read(&mut [0; 1024]).await.expect("a request");
            assert!(read > 0);
            guest.write_all(first.as_bytes()).await.expect("write the reply");
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
        // As a task, the exchange runs in turn with the others.
        let bytes = tokio::time::timeout(TEST_TIMEOUT, tokio::spawn(exchange))
            .await
            .expect("the exchange ends")
            .expect("no panic");
        tokio::time::timeout(TEST_TIMEOUT, guest).await.expect("the connection is closed").expect("no panic");
        bytes
    }

    #[tokio::test]
    async fn a_reply_without_content_is_aborted_and_other_tasks_run() {
        for endless in ["HTTP/1.1 100 Continue\r\n\r\n", "\r\n"] {
            assert_eq!(body_of("", endless).await, None);
        }
        assert_eq!(body_of("HTTP/1.1 200 OK\r\nx: ", "y").await, None);
        // Each chunk of the second reply has one byte of content.
        assert_eq!(body_of(HEAD, "0").await, Some(0));
        assert_eq!(body_of(HEAD, "1\r\nx\r\n").await, Some(UNPRODUCTIVE_BYTES_MAX + 1));
    }
}
