//! What a pool is opened with, and why it may not open.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

/// How guests are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Namespaces when this process may make them, the VMM's user-mode network otherwise.
    #[default]
    Auto,
    /// Namespaces or an error.
    Namespaces,
    /// The VMM's user-mode network.
    User,
}

/// How a pool works.
#[derive(Debug, Clone)]
pub struct Config {
    /// How guests are connected.
    pub mode: Mode,
    /// Who opens the pool, for people who find its lock: the data directory.
    pub owner: String,
    /// The first address of the range that uplinks get addresses from. Its size is fixed: 16 instances of 2048 slots with
    /// two addresses each, a /16.
    pub block: Ipv4Addr,
    /// Slots kept ready.
    pub prepared_target: usize,
    /// Guests at once: they share the host's connection tracking.
    pub guests_max: usize,
    /// What no guest may send to, besides what none ever may (private, link-local and reserved ranges).
    pub egress_denied: Vec<Ipv4Net>,
}

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces were demanded, but cannot be made.
    #[error("network namespaces cannot be made: {missing} (run as root, or set network.mode to `user`)")]
    NotPermitted {
        /// What is missing.
        missing: String,
    },
    /// Destinations are denied, but without namespaces nothing can deny them.
    #[error("destinations are denied to guests (--egress-deny), which needs network namespaces: {missing}")]
    DenialNotPossible {
        /// What is missing.
        missing: String,
    },
    /// All numbers are taken.
    #[error("all {0} instance numbers of this machine are in use: stop another hearth")]
    InstancesExhausted(u32),
    /// All slots are taken.
    #[error("all {0} network slots are in use")]
    SlotsExhausted(u32),
    /// The block is not the first address of a /16.
    #[error("the network block {0} is not the first address of a private /16, such as 10.11.0.0")]
    Block(Ipv4Addr),
    /// The lock folder cannot be used.
    #[error("locking an instance number")]
    Lock(#[source] hearth_host::lock::Error),
    /// The lock folder cannot be made.
    #[error("creating the lock folder `{}`", path.display())]
    LockFolder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The record of an interface cannot be written.
    #[error("recording a changed interface in `{}`", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The network cannot be set up.
    #[error("{action}")]
    Setup {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: hearth_host::namespace::Error,
    },
    /// What the host remembers of a slot's connections cannot be deleted.
    #[error("deleting the tracked connections of a slot")]
    Conntrack(#[source] std::io::Error),
    /// The pool is shut down.
    #[error("the network pool is shut down")]
    Closed,
}

impl Error {
    /// Whether the host has run out of something that comes back: the same request may succeed later.
    #[must_use]
    pub fn is_exhaustion(&self) -> bool {
        matches!(self, Self::SlotsExhausted(_)) || hearth_host::exhaustion::is_exhaustion(self)
    }
}
