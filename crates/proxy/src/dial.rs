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

/// Pauses between attempts to reach a port that refuses: a server that is just starting is not reported closed. Each further
/// attempt waits 100 ms longer, as the contract says.
pub const REFUSED_PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(300), Duration::from_millis(400)];

/// How long a node may take to accept a connection. It is on our own network: a slower one is as good as gone.
const NODE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Anything that bytes go in and out of.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Version of HTTP on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A connection, and the version that was agreed on.
pub struct NewConnection {
    pub(crate) io: Box<dyn Io>,
    /// `None`: nothing was agreed on, as without TLS.
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

/// Connects; while the other side refuses, tries again after each of [`REFUSED_PAUSES`]. Other failures are returned at once:
/// a host that does not answer was waited for already.
///
/// Cancel safe if `dial` is.
///
/// # Errors
/// The last attempt's.
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
/// As the operating system says, or [`io::ErrorKind::TimedOut`].
pub async fn node(address: &NodeAddress) -> io::Result<Stream> {
    let connect = async {
        match address {
            NodeAddress::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            NodeAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // Small frames go both ways: a keystroke must not wait for the next.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    };
    tokio::time::timeout(NODE_CONNECT_TIMEOUT, connect).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// A connection of one of the kinds we know.
#[derive(Debug)]
pub enum Stream {
    /// Over a network.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
    /// Over a network, encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// How requests on it come in.
    pub(crate) fn scheme(&self) -> Scheme {
        if matches!(self, Self::Tls(_)) { Scheme::Https } else { Scheme::Http }
    }

    /// The socket below, where it is one of a network.
    pub(crate) fn as_tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Unix(_) => None,
        }
    }
}

/// Does the same on every kind.
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

    /// How many attempts it takes, and how long, until the first that is not refused, or all are.
    async fn check(refused_first: usize, then: io::ErrorKind) -> (usize, Duration, io::ErrorKind) {
        let attempts = AtomicUsize::new(0);
        let began = tokio::time::Instant::now();
        let result: io::Result<()> = retry_refused(|| {
            let refused = attempts.fetch_add(1, Ordering::Relaxed) < refused_first;
            async move { Err(if refused { io::ErrorKind::ConnectionRefused } else { then }.into()) }
        })
        .await;
        (attempts.into_inner(), began.elapsed(), result.expect_err("never connects").kind())
    }

    #[tokio::test(start_paused = true)]
    async fn refused_five_times_is_closed() {
        let (attempts, waited, error) = check(usize::MAX, io::ErrorKind::Other).await;
        assert_eq!((attempts, waited.as_millis(), error), (5, 1000, io::ErrorKind::ConnectionRefused));
    }

    #[tokio::test(start_paused = true)]
    async fn anything_else_counts_at_once() {
        assert_eq!(check(0, io::ErrorKind::TimedOut).await, (1, Duration::ZERO, io::ErrorKind::TimedOut));
        let (attempts, waited, error) = check(2, io::ErrorKind::TimedOut).await;
        assert_eq!((attempts, waited.as_millis(), error), (3, 300, io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_comes_up_is_reached() {
        let attempts = AtomicUsize::new(0);
        let connected = retry_refused(|| {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            async move { if attempt < 4 { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(attempt) } }
        });
        assert_eq!(connected.await.expect("the fifth attempt succeeds"), 4);
    }
}
