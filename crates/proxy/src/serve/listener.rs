//! Where connections come from.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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
    /// On a network, encrypted.
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

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// On a network.
    Tcp(SocketAddr),
    /// On this machine, and allowed to open our socket.
    Unix,
}

impl Peer {
    /// Its address, if it has one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl Listener {
    /// Cancel safe. What comes in is not read yet: a slow client must not keep others waiting.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                prepare(&stream);
                Ok((Accepted::Clear(Stream::Tcp(stream)), Peer::Tcp(address)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Clear(Stream::Unix(stream)), Peer::Unix))
            }
            Self::Tls(listener, acceptor) => {
                let (stream, address) = listener.accept().await?;
                prepare(&stream);
                Ok((Accepted::Encrypted(stream, acceptor.clone()), Peer::Tcp(address)))
            }
        }
    }
}

/// A connection that nothing was read from.
pub(super) enum Accepted {
    Clear(Stream),
    Encrypted(TcpStream, Acceptor),
}

impl Accepted {
    pub(super) fn scheme(&self) -> Scheme {
        match self {
            Self::Clear(_) => Scheme::Http,
            Self::Encrypted(..) => Scheme::Https,
        }
    }

    /// The connection in clear. The handshake may take as long as a head may. Dropped before the end, it closes the connection.
    pub(super) async fn open(self) -> io::Result<Stream> {
        match self {
            Self::Clear(stream) => Ok(stream),
            Self::Encrypted(stream, acceptor) => {
                let handshake = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream));
                Ok(Stream::Tls(Box::new(handshake.await.map_err(|_| io::ErrorKind::TimedOut)??)))
            }
        }
    }
}

/// Whether a failure to accept says something about one connection only, which ended before it was accepted (accept(2)).
pub(super) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

fn prepare(stream: &TcpStream) {
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
