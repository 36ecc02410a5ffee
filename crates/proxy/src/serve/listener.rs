//! Listeners and their clients.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::dial::Stream;
use crate::serve::HEAD_TIMEOUT;
use crate::tls::Acceptor;

/// TCP keep-alive: idle time before the first probe, interval and number of probes.
///
/// A client that disappeared is disconnected after two minutes.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEP_ALIVE_PERIOD: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TRIES: u32 = 4;

/// Bound socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// TCP without TLS.
    Tcp(TcpListener),
    /// Unix socket, for clients on this machine.
    Unix(UnixListener),
    /// TCP with TLS; clients that speak without TLS are served, too.
    Tls(TcpListener, Acceptor),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// Scheme of a client's requests, as reported to upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// Returns the name used in URIs and in `X-Forwarded-Proto`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Client of a connection. Cheap to clone: all requests of a connection share it.
#[derive(Debug, Clone)]
pub struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: Option<SocketAddr>,
    scheme: Scheme,
    /// The address as an element of `X-Forwarded-For`.
    forwarded_for: Option<HeaderValue>,
}

impl Peer {
    /// Returns a client on a network.
    ///
    /// # Panics
    /// Never: an address is visible ASCII.
    #[must_use]
    pub fn tcp(address: SocketAddr, scheme: Scheme) -> Self {
        // An IPv4 address accepted on an IPv6 socket is reported in its IPv4 form.
        let text = address.ip().to_canonical().to_string();
        let forwarded_for = Some(HeaderValue::try_from(text).expect("an address is ASCII"));
        Self(Arc::new(Inner { address: Some(address), scheme, forwarded_for }))
    }

    /// Returns a client on this machine, which has permission to open the Unix socket.
    #[must_use]
    pub fn unix() -> Self {
        Self(Arc::new(Inner { address: None, scheme: Scheme::Http, forwarded_for: None }))
    }

    /// Returns its IP address; `None` for a Unix socket.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.address.map(|address| address.ip())
    }

    /// Returns the scheme of its requests.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.0.scheme
    }

    /// Returns the same client with another scheme.
    pub(super) fn with_scheme(self, scheme: Scheme) -> Self {
        match self.0.address {
            Some(address) if self.0.scheme != scheme => Self::tcp(address, scheme),
            _ => self,
        }
    }

    pub(crate) fn forwarded_for(&self) -> Option<&HeaderValue> {
        self.0.forwarded_for.as_ref()
    }
}

impl Listener {
    /// Accepts a connection. Cancel safe.
    ///
    /// It reads no bytes, since a slow client must not delay others.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                set_options(&stream);
                Ok((Accepted::Clear(Stream::Tcp(stream)), Peer::tcp(address, Scheme::Http)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Clear(Stream::Unix(stream)), Peer::unix()))
            }
            Self::Tls(listener, acceptor) => {
                let (stream, address) = listener.accept().await?;
                set_options(&stream);
                Ok((Accepted::MaybeTls(stream, acceptor.clone()), Peer::tcp(address, Scheme::Https)))
            }
        }
    }
}

/// First byte of a TLS connection: a handshake record (RFC 8446, 5.1). No HTTP request begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Accepted connection, of which no byte was read.
pub(super) enum Accepted {
    Clear(Stream),
    /// With TLS or without: the first byte decides.
    MaybeTls(TcpStream, Acceptor),
}

impl Accepted {
    /// Completes the handshake and returns the connection, ready for HTTP.
    ///
    /// The first byte and the handshake have the same time limit as a head. Dropping the future closes the connection.
    pub(super) async fn open(self) -> io::Result<Stream> {
        match self {
            Self::Clear(stream) => Ok(stream),
            Self::MaybeTls(stream, acceptor) => {
                let opened = tokio::time::timeout(HEAD_TIMEOUT, detect_tls(stream, acceptor));
                opened.await.map_err(|_| io::ErrorKind::TimedOut)?
            }
        }
    }
}

/// Returns a connection with or without TLS: clients may use `http` with the port for `https`.
async fn detect_tls(stream: TcpStream, acceptor: Acceptor) -> io::Result<Stream> {
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ if first == [TLS_HANDSHAKE] => Ok(Stream::Tls(Box::new(acceptor.accept(stream).await?))),
        _ => Ok(Stream::Tcp(stream)),
    }
}

/// Returns true if the error belongs to one connection, which closed before it was accepted (accept(2)).
pub(super) fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

fn set_options(stream: &TcpStream) {
    let set = || {
        // Frames are small: a keystroke must not be delayed until the next one.
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_AFTER)?;
        sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_PERIOD)?;
        sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_TRIES)?;
        sockopt::set_socket_keepalive(stream, true)
    };
    if let Err(error) = set() {
        // The client may have disconnected, which the next read reports.
        tracing::debug!(%error, "setting socket options failed");
    }
}
