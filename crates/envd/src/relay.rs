//! Relays from the guest's interface to services on other addresses, which make them reachable for the host.
//!
//! The host connects to the address of the guest's interface, where a service on loopback does not listen. Every second
//! (less often in an idle guest) the daemon lists the ports that are open on other addresses (`127.0.0.1`, `::1`, the
//! host name's `127.0.1.1`, a bridge's), and listens on the same ports of the interface; a visitor's connection is
//! joined with one to the service. When a service stops listening, its relay is removed; when it listens again, a new
//! one is created. A port that cannot be bound, because another program listens on all addresses, is tried again at the
//! next scan.
//!
//! A service on `::` may or may not serve IPv4 too (IPV6_V6ONLY, ipv6(7)); if not, the port can be bound. Many of those
//! then also bind `0.0.0.0` and must not find the port taken: such a service is relayed from the second scan on.
//!
//! Joined connections continue until one side closes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::state::State;

mod listening;

/// Interval of scans.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval of scans in an idle guest, after [`IDLE_AFTER`]: scans are the most expensive part of an idle daemon.
const INTERVAL_IDLE: Duration = Duration::from_secs(5);
/// Time without a process start or exit and without a change of the relayed ports, after which the guest is idle.
const IDLE_AFTER: Duration = Duration::from_secs(30);
/// Limit of relayed ports.
const PORTS_MAX: usize = 512;
/// Limit of concurrent visitors over all ports; further ones wait.
const VISITORS_MAX: usize = 2048;
/// Pause after a failed accept, which is usually caused by a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs the relays on `address`; never returns.
pub(crate) async fn run(address: Ipv4Addr, state: Arc<State>) {
    let mut relays = Relays::new(address);
    let mut ports: Vec<u16> = Vec::new();
    let mut last_change = Instant::now();
    loop {
        relays.update(listening::not_reachable_at(address));
        if !relays.running.keys().eq(&ports) {
            ports = relays.running.keys().copied().collect();
            last_change = Instant::now();
        }
        let pause = if last_change.elapsed() < IDLE_AFTER { INTERVAL } else { INTERVAL_IDLE };
        // Both arms are cancel safe. A new process needs time until it listens, so the next scan is not immediate.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = state.activity.notified() => {
                last_change = Instant::now();
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }
}

/// The current relays, by port.
#[derive(Debug)]
struct Relays {
    address: Ipv4Addr,
    running: BTreeMap<u16, Relay>,
    /// Ports on which an IPv6 service listened on all addresses at the last scan.
    wildcards: BTreeSet<u16>,
    visitors: Arc<Semaphore>,
}

/// A relay. Dropping it closes the listener.
#[derive(Debug)]
struct Relay {
    service: IpAddr,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relays {
    fn new(address: Ipv4Addr) -> Self {
        let visitors = Arc::new(Semaphore::new(VISITORS_MAX));
        Self { address, running: BTreeMap::new(), wildcards: BTreeSet::new(), visitors }
    }

    /// Updates the relays to the listening services. Must run inside a Tokio runtime.
    fn update(&mut self, listening: BTreeMap<u16, IpAddr>) {
        self.running.retain(|port, relay| listening.get(port) == Some(&relay.service) && !relay.task.is_finished());
        let is_wildcard = |service: &IpAddr| service.is_unspecified();
        let wildcards = listening.iter().filter(|(_, service)| is_wildcard(service)).map(|(port, _)| *port).collect();
        let before = std::mem::replace(&mut self.wildcards, wildcards);
        for (port, service) in listening {
            let is_new_wildcard = is_wildcard(&service) && !before.contains(&port);
            if self.running.contains_key(&port) || self.running.len() >= PORTS_MAX || is_new_wildcard {
                continue;
            }
            // Taken by a service that listens on all addresses, which needs no relay.
            let Ok(listener) = self.listen(port) else { continue };
            let reached = if is_wildcard(&service) { Ipv6Addr::LOCALHOST.into() } else { service };
            let target = SocketAddr::new(reached, port);
            let task = tokio::spawn(accept(listener, target, Arc::clone(&self.visitors)));
            self.running.insert(port, Relay { service, task });
        }
    }

    fn listen(&self, port: u16) -> io::Result<TcpListener> {
        // SO_REUSEADDR, set by the standard library, permits a new relay while old connections are closing.
        let listener = std::net::TcpListener::bind((self.address, port))?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }
}

async fn accept(listener: TcpListener, service: SocketAddr, visitors: Arc<Semaphore>) {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&visitors).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((visitor, _)) => {
                tokio::spawn(async move {
                    // An error on either side closes both.
                    let _ = join(visitor, service).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn join(mut visitor: TcpStream, service: SocketAddr) -> io::Result<()> {
    let mut service = TcpStream::connect(service).await?;
    visitor.set_nodelay(true)?;
    service.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut visitor, &mut service).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Stands for the guest's interface: an address of the loopback network that no service uses.
    const INTERFACE: Ipv4Addr = Ipv4Addr::new(127, 83, 1, 2);
    const LOOPBACK: [IpAddr; 4] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, 5)),
        IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1)),
    ];

    async fn service(address: IpAddr, port: u16) -> (u16, JoinHandle<()>) {
        serve(TcpListener::bind((address, port)).await.expect("bind"))
    }

    /// Opens a listener on all IPv6 addresses.
    fn wildcard(serves_ipv4: bool) -> TcpListener {
        use rustix::net::{AddressFamily, SocketAddrV6, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None).expect("IPv6");
        sockopt::set_ipv6_v6only(&socket, !serves_ipv4).expect("set");
        bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)).expect("bind");
        listen(&socket, 8).expect("listen");
        TcpListener::from_std(socket.into()).expect("convert the listener")
    }

    fn serve(listener: TcpListener) -> (u16, JoinHandle<()>) {
        let port = listener.local_addr().expect("bound").port();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut name = [0; 4];
                stream.read_exact(&mut name).await.expect("read from the visitor");
                stream.write_all(&[&name[..], b" was here"].concat()).await.expect("write to the visitor");
            }
        });
        (port, task)
    }

    async fn visit(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect((INTERFACE, port)).await?;
        stream.write_all(b"test").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    // envd: X1
    #[tokio::test]
    async fn relays_follow_services_that_start_and_stop() {
        let mut relays = Relays::new(INTERFACE);
        for address in LOOPBACK {
            let (port, task) = service(address, 0).await;
            let listening = BTreeMap::from([(port, address)]);
            assert!(visit(port).await.is_err(), "no relay yet");
            relays.update(listening.clone());
            relays.update(listening.clone());
            assert_eq!(visit(port).await.expect("a reply"), "test was here");
            task.abort();
            let _ = task.await;
            relays.update(BTreeMap::new());
            tokio::task::yield_now().await;
            assert!(visit(port).await.is_err(), "the relay is removed");
            let (_, again) = service(address, port).await;
            relays.update(listening);
            assert_eq!(visit(port).await.expect("a reply again"), "test was here");
            again.abort();
        }
    }

    #[tokio::test]
    async fn an_ipv6_wildcard_service_is_relayed_unless_it_serves_ipv4() {
        for serves_ipv4 in [false, true] {
            let mut relays = Relays::new(INTERFACE);
            let (port, _service) = serve(wildcard(serves_ipv4));
            let look = || BTreeMap::from([(port, listening::not_reachable_at(INTERFACE)[&port])]);
            relays.update(look());
            assert!(relays.running.is_empty(), "the service may bind all IPv4 addresses next");
            relays.update(look());
            assert_eq!(relays.running.contains_key(&port), !serves_ipv4);
            assert_eq!(visit(port).await.expect("a reply"), "test was here");
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_retried() {
        let mut relays = Relays::new(INTERFACE);
        let (port, _service) = service(LOOPBACK[0], 0).await;
        let taken = TcpListener::bind((INTERFACE, port)).await.expect("bind");
        let listening = BTreeMap::from([(port, LOOPBACK[0])]);
        relays.update(listening.clone());
        assert!(relays.running.is_empty());
        drop(taken);
        relays.update(listening);
        assert_eq!(visit(port).await.expect("a reply"), "test was here");
    }
}
