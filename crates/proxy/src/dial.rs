//! Connecting to an upstream.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hearth_types::NodeAddress;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use crate::serve::Scheme;

/// Pauses between attempts to connect to a port that refuses connections.
///
/// They prevent that a server that is just starting is reported as closed. By the contract, each pause is 100 ms longer than the
/// previous one.
pub const REFUSED_PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(300), Duration::from_millis(400)];

/// Time for a node to accept a connection. Nodes are in the same network, so a slower one counts as unreachable.
const NODE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// HTTP version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http1,
    Http2,
}

/// A new connection and its negotiated HTTP version.
pub struct NewConnection {
    pub(crate) io: Box<dyn Io>,
    /// `None` if nothing was negotiated, as without TLS.
    pub(crate) protocol: Option<Protocol>,
}

impl From<Stream> for NewConnection {
    fn from(stream: Stream) -> Self {
        let protocol = match &stream {
            Stream::Tcp(_) | Stream::Unix(_) => None,
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Some(Protocol::Http2),
            Stream::Tls(_) => Some(Protocol::Http1),
        };
        Self { io: Box::new(stream), protocol }
    }
}

/// Connects, and retries after each of [`REFUSED_PAUSES`] while the connection is refused.
///
/// Other errors are returned immediately: a host that does not respond has already taken its time.
///
/// Cancel safe if `dial` is.
///
/// # Errors
/// The error of the last attempt.
pub async fn retry_refused<D, F, S>(dial: D) -> io::Result<S>
where
    D: Fn() -> F,
    F: Future<Output = io::Result<S>>,
{
    for pause in REFUSED_PAUSES {
        match dial().await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => tokio::time::sleep(pause).await,
            result => return result,
        }
    }
    dial().await
}

/// Connects to a node's proxy. Cancel safe.
///
/// # Errors
/// The error of the operating system, or [`io::ErrorKind::TimedOut`].
pub async fn node(address: &NodeAddress) -> io::Result<Stream> {
    let connect = async {
        match address {
            NodeAddress::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            NodeAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // Frames are small: a keystroke must not be delayed until the next one.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    };
    tokio::time::timeout(NODE_CONNECT_TIMEOUT, connect).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Connection of a listener or to an upstream.
#[derive(Debug)]
pub enum Stream {
    /// TCP without TLS.
    Tcp(TcpStream),
    /// Unix socket.
    Unix(UnixStream),
    /// TCP with TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Returns the scheme of its requests.
    pub(crate) fn scheme(&self) -> Scheme {
        if matches!(self, Self::Tls(_)) { Scheme::Https } else { Scheme::Http }
    }

    /// Returns the TCP socket; `None` for a Unix socket.
    pub(crate) fn as_tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Unix(_) => None,
        }
    }
}

/// Delegates a method to the stream of each variant.
macro_rules! delegate {
    ($self:ident, $stream:ident => $action:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $action,
            Stream::Unix($stream) => $action,
            Stream::Tls($stream) => $action,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Returns the number of attempts, the time that they took, and the last error. The first attempts are refused.
    async fn check(refused_first: usize, then: io::ErrorKind) -> (usize, Duration, io::ErrorKind) {
        let attempts = AtomicUsize::new(0);
        let began = tokio::time::Instant::now();
        let result: io::Result<()> = retry_refused(|| {
            let refused = attempts.fetch_add(1, Ordering::Relaxed) < refused_first;
            async move { Err(if refused { io::ErrorKind::ConnectionRefused } else { then }.into()) }
        })
        .await;
        (attempts.into_inner(), began.elapsed(), result.expect_err("it never connects").kind())
    }

    #[tokio::test(start_paused = true)]
    async fn five_refused_attempts_are_an_error() {
        let (attempts, waited, error) = check(usize::MAX, io::ErrorKind::Other).await;
        assert_eq!((attempts, waited.as_millis(), error), (5, 1000, io::ErrorKind::ConnectionRefused));
    }

    #[tokio::test(start_paused = true)]
    async fn other_errors_are_returned_immediately() {
        assert_eq!(check(0, io::ErrorKind::TimedOut).await, (1, Duration::ZERO, io::ErrorKind::TimedOut));
        let (attempts, waited, error) = check(2, io::ErrorKind::TimedOut).await;
        assert_eq!((attempts, waited.as_millis(), error), (3, 300, io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_starting_server_is_reached() {
        let attempts = AtomicUsize::new(0);
        let connected = retry_refused(|| {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            async move { if attempt < 4 { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(attempt) } }
        });
        assert_eq!(connected.await.expect("the fifth attempt succeeds"), 4);
    }
}
