//! Connections from the host to a guest's ports.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// Limit for a guest to accept a connection. Its kernel replies in milliseconds; a paused or dead VM never does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of forwarded ports of one guest.
///
/// Each is a listener of the VMM on the host's loopback. A guest's visitors choose the ports, so they must not be able
/// to open all of them.
const FORWARDS_MAX: usize = 256;
/// Maximum number of queued requests for forwards. The sandbox's task handles each in milliseconds.
const FORWARD_REQUESTS_MAX: usize = 32;

/// Connector to the ports of one guest. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GuestConnector {
    access: Access,
}

#[derive(Debug, Clone)]
enum Access {
    /// Every port, at the slot's address.
    Direct(IpAddr),
    /// Single ports, through listeners of the VMM.
    Forwarded(Forwards),
}

/// Open listeners of the VMM by guest port, and a channel to request more.
#[derive(Debug, Clone)]
struct Forwards {
    open: Arc<Mutex<BTreeMap<u16, u16>>>,
    requests: mpsc::Sender<ForwardRequest>,
}

/// Request to the owner of the VM to forward a guest port. The reply is a port of the host's loopback.
pub(crate) struct ForwardRequest {
    pub(crate) guest_port: u16,
    pub(crate) reply: oneshot::Sender<Result<u16, hearth_vmm::Error>>,
}

impl GuestConnector {
    /// Creates a connector to a guest with an address that the host can connect to.
    pub(crate) fn direct(address: IpAddr) -> Self {
        Self { access: Access::Direct(address) }
    }

    /// Creates a connector to a guest behind the VMM's user-mode network, with one forward that exists already.
    ///
    /// Requests for other forwards arrive at the receiver.
    pub(crate) fn forwarded(guest_port: u16, host_port: u16) -> (Self, mpsc::Receiver<ForwardRequest>) {
        let (requests, receiver) = mpsc::channel(FORWARD_REQUESTS_MAX);
        let open = Arc::new(Mutex::new(BTreeMap::from([(guest_port, host_port)])));
        (Self { access: Access::Forwarded(Forwards { open, requests }) }, receiver)
    }

    /// Connects to a port of the guest. Cancel safe.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] if nothing listens there (behind user-mode network the connection is closed
    /// instead), [`io::ErrorKind::TimedOut`] if the guest does not reply, [`io::ErrorKind::NotConnected`] if the
    /// sandbox has ended.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let address = match &self.access {
            Access::Direct(address) => SocketAddr::new(*address, port),
            Access::Forwarded(forwards) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), forwards.host_port(port).await?),
        };
        let connect = TcpStream::connect(address);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| io::ErrorKind::TimedOut)??;
        // Small frames go both ways: a keystroke must not wait for the next one.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Forwards {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u16, u16>> {
        // Every change of the map is one call, so it is valid after a panic elsewhere.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn host_port(&self, guest_port: u16) -> io::Result<u16> {
        {
            let open = self.open();
            if let Some(host_port) = open.get(&guest_port) {
                return Ok(*host_port);
            }
            if open.len() >= FORWARDS_MAX {
                let text = format!("{FORWARDS_MAX} ports of this sandbox are forwarded already");
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
            }
        }
        let ended = || io::Error::from(io::ErrorKind::NotConnected);
        let (reply, answer) = oneshot::channel();
        self.requests.send(ForwardRequest { guest_port, reply }).await.map_err(|_| ended())?;
        let host_port = answer.await.map_err(|_| ended())?.map_err(io::Error::other)?;
        // Two concurrent requests both get a listener that works; the later one is stored.
        self.open().insert(guest_port, host_port);
        Ok(host_port)
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::guest::DAEMON_PORT;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn served() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"guest").await;
            }
        });
        port
    }

    async fn read(connector: &GuestConnector, port: u16) -> String {
        let mut text = String::new();
        connector.connect(port).await.expect("connects").read_to_string(&mut text).await.expect("reads");
        text
    }

    #[tokio::test]
    async fn a_forward_is_requested_once_and_their_number_is_limited() {
        let host_port = served().await;
        let (connector, mut requests) = GuestConnector::forwarded(DAEMON_PORT, host_port);
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            while let Some(ForwardRequest { guest_port, reply }) = requests.recv().await {
                asked.push(guest_port);
                reply.send(Ok(host_port)).expect("is awaited");
            }
            asked
        });
        for port in [DAEMON_PORT, 8000, 8000] {
            assert_eq!(read(&connector, port).await, "guest");
        }
        for port in 1..FORWARDS_MAX {
            let _ = connector.connect(u16::try_from(port).expect("small")).await;
        }
        let refused = connector.connect(9999).await.expect_err("too many");
        assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
        drop(connector);
        let asked = asked.await.expect("ends");
        assert_eq!(asked.iter().filter(|port| **port == 8000).count(), 1);
        assert!(!asked.contains(&DAEMON_PORT));
    }

    #[tokio::test]
    async fn an_ended_sandbox_is_not_connected() {
        let (connector, requests) = GuestConnector::forwarded(DAEMON_PORT, 1);
        drop(requests);
        assert_eq!(connector.connect(80).await.expect_err("ended").kind(), io::ErrorKind::NotConnected);
    }
}
