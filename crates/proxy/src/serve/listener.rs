//! Where connections come from.

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

/// When a silent peer is first asked whether it is there, how often then, and how often in vain. A client that vanished is
/// gone after two minutes.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEP_ALIVE_PERIOD: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TRIES: u32 = 4;

/// A bound socket of one of the kinds we know.
#[derive(Debug)]
pub enum Listener {
    /// On a network.
    Tcp(TcpListener),
    /// On this machine.
    Unix(UnixListener),
    /// On a network, encrypted; clients that speak without TLS are served, too.
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

/// How requests come in, as services behind us are told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As URIs and `X-Forwarded-Proto` have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Who is at the other end of a connection, and how it speaks. Cheap to clone: all requests of a connection share it.
#[derive(Debug, Clone)]
pub struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: Option<SocketAddr>,
    scheme: Scheme,
    /// The address as `X-Forwarded-For` has it.
    forwarded_for: Option<HeaderValue>,
}

impl Peer {
    /// On a network.
    ///
    /// # Panics
    /// Never: an address is visible ASCII.
    #[must_use]
    pub fn tcp(address: SocketAddr, scheme: Scheme) -> Self {
        // An address of IPv4 that was accepted on an IPv6 socket is known by its IPv4 form.
        let text = address.ip().to_canonical().to_string();
        let forwarded_for = Some(HeaderValue::try_from(text).expect("an address is ASCII"));
        Self(Arc::new(Inner { address: Some(address), scheme, forwarded_for }))
    }

    /// On this machine, and allowed to open our socket.
    #[must_use]
    pub fn unix() -> Self {
        Self(Arc::new(Inner { address: None, scheme: Scheme::Http, forwarded_for: None }))
    }

    /// Its address, if it has one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.address.map(|address| address.ip())
    }

    /// How it speaks to us.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.0.scheme
    }

    /// The same client, as one that speaks so.
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
    /// Cancel safe. What comes in is not read yet: a slow client must not keep others waiting.
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

/// First byte of a TLS connection: a record of the handshake (RFC 8446, 5.1). No HTTP request begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection that nothing was read from.
pub(super) enum Accepted {
    Clear(Stream),
    /// Or in clear: its first byte tells.
    MaybeTls(TcpStream, Acceptor),
}

impl Accepted {
    /// The connection, ready for HTTP. First byte and handshake may take as long as a head may. Dropped before the end, it
    /// closes the connection.
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

/// Clients may take an explicit port for one without TLS, and are answered there as well.
async fn detect_tls(stream: TcpStream, acceptor: Acceptor) -> io::Result<Stream> {
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ if first == [TLS_HANDSHAKE] => Ok(Stream::Tls(Box::new(acceptor.accept(stream).await?))),
        _ => Ok(Stream::Tcp(stream)),
    }
}

/// Whether a failure to accept says something about one connection only, which ended before it was accepted (accept(2)).
pub(super) fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

fn set_options(stream: &TcpStream) {
    let set = || {
        // Small frames go both ways: a keystroke must not wait for the next.
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_AFTER)?;
        sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_PERIOD)?;
        sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_TRIES)?;
        sockopt::set_socket_keepalive(stream, true)
    };
    if let Err(error) = set() {
        // The client may be gone already, which the next read tells.
        tracing::debug!(%error, "could not set a connection's options");
    }
}
