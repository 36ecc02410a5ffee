//! Limit of concurrent connections.
//!
//! Idle connections cost their clients nothing, so they must not block other clients: when a server is full, the
//! connection that was idle for longest is closed for a new one. A connection is idle while no exchange is in progress,
//! also while it receives a head. One network may have half of the connections; for more, its own idle connections are
//! closed. So a client that keeps all its connections busy cannot occupy the whole server.
//!
//! The lock is held for a few map operations, and for a scan of all connections once in [`CANDIDATES_MAX`] evictions.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::serve::connection_state::ConnectionState;

/// Maximum number of connections selected by one scan.
const CANDIDATES_MAX: usize = 64;
/// Pause after a scan that found no idle connection.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);
/// Divisor of the limit for connections of one network.
const NETWORK_SHARE: usize = 2;

/// Addresses that count as one client: a subscriber of IPv6 has at least a /64 (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    V4(Ipv4Addr),
    V6([u16; 4]),
}

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// OpenConnection connections of a server.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    network_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    open: HashMap<u64, OpenConnection>,
    networks: HashMap<Network, usize>,
    /// Connections to close next: of all networks (`None`), and of networks that are at their limit.
    candidates: HashMap<Option<Network>, Candidates>,
}

#[derive(Debug)]
struct OpenConnection {
    connection_state: Arc<ConnectionState>,
    abort: CancellationToken,
    network: Option<Network>,
}

#[derive(Debug, Default)]
struct Candidates {
    /// Id and start of the idle time; the longest idle is last.
    idle: Vec<(u64, Instant)>,
    pause_until: Option<Instant>,
}

/// Registration of an open connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Registration {
    limit: Arc<ConnectionLimit>,
    id: u64,
}

impl ConnectionLimit {
    pub(super) fn new(connections_max: u32) -> Self {
        Self { network_max: (connections_max as usize).div_ceil(NETWORK_SHARE), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts change together with what they count, so a poisoned lock is usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection, which is closed by cancelling `abort`.
    ///
    /// Returns `None` if its network is at its limit and has no idle connection.
    pub(super) fn admit(
        limit: &Arc<Self>,
        address: Option<IpAddr>,
        connection_state: &Arc<ConnectionState>,
        abort: &CancellationToken,
    ) -> Option<Registration> {
        let network = address.map(Network::of);
        let mut state = limit.state();
        if let Some(network) = network {
            let count = state.networks.get(&network).copied().unwrap_or_default();
            if count >= limit.network_max && !state.evict(Some(network)) {
                return None;
            }
            *state.networks.entry(network).or_default() += 1;
        }
        let id = state.next_id;
        state.next_id += 1;
        let open = OpenConnection { connection_state: Arc::clone(connection_state), abort: abort.clone(), network };
        state.open.insert(id, open);
        Some(Registration { limit: Arc::clone(limit), id })
    }

    /// Closes the connection that was idle for longest. Returns false if all are busy.
    pub(super) fn evict_idle(&self) -> bool {
        self.state().evict(None)
    }
}

impl State {
    fn evict(&mut self, network: Option<Network>) -> bool {
        let now = Instant::now();
        let mut candidates = self.candidates.remove(&network).unwrap_or_default();
        if candidates.pause_until.is_some_and(|until| now < until) {
            self.candidates.insert(network, candidates);
            return false;
        }
        let mut evicted = self.evict_first(&mut candidates.idle);
        if !evicted {
            candidates.idle = self.longest_idle(network);
            evicted = self.evict_first(&mut candidates.idle);
        }
        candidates.pause_until = (!evicted).then(|| now + SEARCH_PAUSE);
        if network.is_none_or(|network| self.networks.contains_key(&network)) {
            self.candidates.insert(network, candidates);
        }
        evicted
    }

    /// Closes the first candidate that is still idle. Returns false if there is none.
    fn evict_first(&mut self, candidates: &mut Vec<(u64, Instant)>) -> bool {
        while let Some((id, since)) = candidates.pop() {
            if self.open.get(&id).is_some_and(|open| open.connection_state.idle_since() == Some(since)) {
                if let Some(open) = self.remove(id) {
                    open.abort.cancel();
                }
                return true;
            }
        }
        false
    }

    fn longest_idle(&self, network: Option<Network>) -> Vec<(u64, Instant)> {
        let of_network = self.open.iter().filter(|(_, open)| network.is_none() || open.network == network);
        let mut idle: Vec<_> =
            of_network.filter_map(|(id, open)| Some((*id, open.connection_state.idle_since()?))).collect();
        if idle.len() > CANDIDATES_MAX {
            idle.select_nth_unstable_by_key(CANDIDATES_MAX, |(_, since)| *since);
            idle.truncate(CANDIDATES_MAX);
        }
        idle.sort_unstable_by_key(|(_, since)| std::cmp::Reverse(*since));
        idle
    }

    fn remove(&mut self, id: u64) -> Option<OpenConnection> {
        let open = self.open.remove(&id)?;
        if let Some(network) = open.network
            && let Some(count) = self.networks.get_mut(&network)
        {
            *count -= 1;
            if *count == 0 {
                self.networks.remove(&network);
                self.candidates.remove(&open.network);
            }
        }
        Some(open)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.limit.state().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;
    use crate::serve::IDLE_TIMEOUT;
    use crate::serve::connection_state::Exchange;

    struct Client {
        connection_state: Arc<ConnectionState>,
        abort: CancellationToken,
        registration: Option<Registration>,
    }

    fn connect(limit: &Arc<ConnectionLimit>, address: &str) -> Client {
        let (connection_state, abort) = (Arc::new(ConnectionState::new(IDLE_TIMEOUT)), CancellationToken::new());
        let address = (!address.is_empty()).then(|| address.parse().expect("an address"));
        let registration = ConnectionLimit::admit(limit, address, &connection_state, &abort);
        Client { connection_state, abort, registration }
    }

    fn begin_exchange(client: &Client) -> Exchange {
        Exchange::begin(Arc::clone(&client.connection_state), Version::HTTP_11, false)
    }

    async fn pass_a_second() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_is_evicted() {
        let limit = Arc::new(ConnectionLimit::new(1000));
        let mut clients = Vec::new();
        for _ in 0..2 * CANDIDATES_MAX {
            clients.push(connect(&limit, ""));
            pass_a_second().await;
        }
        // Busy, idle since just now, and closed.
        let _busy = begin_exchange(&clients[0]);
        drop(begin_exchange(&clients[1]));
        clients[2].registration = None;
        pass_a_second().await;
        // An incomplete head does not count as activity.
        clients[3].connection_state.bytes_received();
        for expected in (3..clients.len()).chain([1]) {
            assert!(limit.evict_idle());
            assert!(clients[expected].abort.is_cancelled(), "{expected}");
            let evicted = clients.iter().filter(|client| client.abort.is_cancelled()).count();
            assert_eq!(evicted, if expected == 1 { clients.len() - 2 } else { expected - 2 });
        }
        assert!(!limit.evict_idle(), "all connections are busy");
        drop(clients);
        assert!(limit.state().open.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_may_have_half_of_the_connections() {
        let limit = Arc::new(ConnectionLimit::new(4));
        let others = connect(&limit, "2001:db8:0:1::1");
        pass_a_second().await;
        let first = connect(&limit, "2001:db8::1");
        pass_a_second().await;
        let second = connect(&limit, "2001:db8::ffff:2");
        // The network's own connection is closed, although another network's was idle for longer.
        let third = connect(&limit, "2001:db8::3");
        assert!(third.registration.is_some() && first.abort.is_cancelled() && !others.abort.is_cancelled());
        let busy = [&second, &third].map(begin_exchange);
        assert!(connect(&limit, "2001:db8::4").registration.is_none());
        drop(busy);
        assert!(connect(&limit, "2001:db8::4").registration.is_none(), "the last search was just now");
        pass_a_second().await;
        assert!(connect(&limit, "2001:db8::4").registration.is_some());
        // IPv4 addresses count separately, in both notations; Unix sockets do not count.
        let many = ["::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2", "", "", ""];
        assert!(many.map(|address| connect(&limit, address)).iter().all(|client| client.registration.is_some()));
        assert_eq!(
            Network::of("::ffff:10.0.0.1".parse().expect("an address")),
            Network::V4(Ipv4Addr::new(10, 0, 0, 1))
        );
        drop((others, first, second, third));
        let state = limit.state();
        assert!(state.open.is_empty() && state.networks.is_empty() && state.candidates.is_empty(), "{state:?}");
    }
}
