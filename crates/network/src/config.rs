//! Configuration of a pool, and its errors.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

/// Kind of network that guests get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Namespaces if this process may create them, the VMM's user-mode network otherwise.
    #[default]
    Auto,
    /// Namespaces, or an error if they cannot be created.
    Namespaces,
    User,
}

/// Configuration of a pool.
#[derive(Debug, Clone)]
pub struct Config {
    pub mode: Mode,
    /// Text in the lock file, for operators: the data directory of the daemon.
    pub owner: String,
    /// First address of the /16 from which uplinks get addresses.
    ///
    /// The size is fixed: 16 instances of 2048 slots with two addresses each.
    pub block: Ipv4Addr,
    /// Number of slots that the pool prepares in advance.
    pub prepared_target: usize,
    /// Maximum number of guests at a time; they share the host's connection tracking.
    pub guests_max: usize,
    /// Destinations that are denied to guests, in addition to private, link-local and reserved ranges.
    pub egress_denied: Vec<Ipv4Net>,
}

/// Failure of a pool or of one of its slots.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces are required, but cannot be created.
    #[error("network namespaces cannot be created: {missing} (run as root, or set network.mode to `user`)")]
    NotPermitted {
        /// Missing privilege or device.
        missing: String,
    },
    /// Destinations are denied, which works only with namespaces.
    #[error("destinations are denied to guests (--egress-deny), which needs network namespaces: {missing}")]
    DenialNotPossible {
        /// Missing privilege or device.
        missing: String,
    },
    /// Other daemons hold all instance numbers.
    #[error("all {0} instance numbers of this machine are in use: stop another hearth")]
    InstancesExhausted(u32),
    #[error("all {0} network slots are in use")]
    SlotsExhausted(u32),
    /// The block is not the first address of a private /16.
    #[error("the network block {0} is not the first address of a private /16, such as 10.11.0.0")]
    Block(Ipv4Addr),
    #[error("locking an instance number")]
    Lock(#[source] hearth_host::lock::Error),
    #[error("creating the lock folder `{}`", path.display())]
    LockFolder { path: PathBuf, source: std::io::Error },
    /// The record of a changed interface cannot be written.
    #[error("recording a changed interface in `{}`", path.display())]
    Record { path: PathBuf, source: std::io::Error },
    /// A network operation of the host failed.
    #[error("{action}")]
    Setup {
        /// Attempted action.
        action: &'static str,
        source: hearth_host::namespace::Error,
    },
    /// The tracked connections of a slot cannot be deleted.
    #[error("deleting the tracked connections of a slot")]
    Conntrack(#[source] std::io::Error),
    #[error("the network pool is shut down")]
    Closed,
}

impl Error {
    /// Returns true if the host has temporarily run out of a resource: the same request may succeed later.
    #[must_use]
    pub fn is_exhaustion(&self) -> bool {
        matches!(self, Self::SlotsExhausted(_)) || hearth_host::exhaustion::is_exhaustion(self)
    }
}
