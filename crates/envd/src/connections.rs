//! Registry of the open connections, which allows dead ones to be dropped.
//!
//! After a restore every earlier connection is dead without notice: the peer's host has no state of it. A stream to
//! such a peer would block a process's output until the kernel gives up, a quarter of an hour later.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// All open connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    next: AtomicU64,
    open: Mutex<HashMap<u64, CancellationToken>>,
}

/// An open connection; requests carry it as an extension.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    id: u64,
    /// The daemon's address.
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl Connection {
    /// Returns true if a program in this guest connected through a loopback address.
    pub(crate) fn is_from_inside(self) -> bool {
        self.local.ip().is_loopback()
    }
}

/// Registration of an open connection. Dropping it removes the connection from the registry.
#[derive(Debug)]
pub(crate) struct Registration {
    connections: Arc<Connections>,
    id: u64,
    pub(crate) dropped: CancellationToken,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
    }
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, CancellationToken>> {
        // Every section is one step on a valid map.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection.
    pub(crate) fn register(self: &Arc<Self>, local: SocketAddr, peer: SocketAddr) -> (Connection, Registration) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let dropped = CancellationToken::new();
        self.open().insert(id, dropped.clone());
        (Connection { id, local, peer }, Registration { connections: Arc::clone(self), id, dropped })
    }

    /// Drops all connections except `kept`, and returns the number of dropped ones.
    pub(crate) fn drop_others(&self, kept: Option<Connection>) -> usize {
        let open = self.open();
        let others = open.iter().filter(|(id, _)| kept.is_none_or(|kept| kept.id != **id));
        others.map(|(_, dropped)| dropped.cancel()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_but_one_are_dropped() {
        let connections = Arc::new(Connections::default());
        let local = SocketAddr::from(([127, 0, 0, 1], 1));
        let (kept, kept_registration) = connections.register(local, local);
        let (_, other) = connections.register(SocketAddr::from(([10, 0, 0, 1], 1)), local);
        assert_eq!(connections.drop_others(Some(kept)), 1);
        assert!(other.dropped.is_cancelled() && !kept_registration.dropped.is_cancelled());
        drop(other);
        assert_eq!(connections.open().len(), 1);
        assert!(kept.is_from_inside());
    }
}
