//! What a sandbox is doing on its node, and which moves are legal.

use std::fmt;
use std::sync::Arc;

use crate::Error;

/// Why a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// It was asked to.
    Killed,
    /// The guest powered off, or the VMM died.
    VmEnded,
    /// The node's disk had no room for what it wrote.
    DiskFull,
    /// The node shuts down.
    NodeStopped,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::VmEnded => f.write_str("the guest powered off or its VMM died"),
            Self::DiskFull => f.write_str("the node's disk is full, and the sandbox took more than its share of it"),
            Self::NodeStopped => f.write_str("the node was stopped"),
        }
    }
}

/// The state of a sandbox on its node.
#[derive(Debug, Clone)]
pub enum State {
    /// Its parts are being put together.
    Assembling,
    /// The guest daemon has accepted its identity.
    Running {
        /// Version of the guest daemon.
        envd_version: String,
    },
    /// It is being taken apart.
    Stopping,
    /// Nothing is left of it.
    Stopped(EndReason),
    /// It never ran, and nothing is left of the attempt.
    Failed(Arc<Error>),
}

impl State {
    /// Whether nothing of the sandbox is left.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Failed(_))
    }

    /// Whether the move to `next` is legal; `Err` says why not.
    pub(crate) fn may_become(&self, next: &Self) -> Result<(), &'static str> {
        match (self, next) {
            (Self::Assembling, Self::Running { .. } | Self::Stopping | Self::Failed(_))
            | (Self::Running { .. }, Self::Stopping)
            | (Self::Stopping, Self::Stopped(_)) => Ok(()),
            (Self::Stopped(_) | Self::Failed(_), _) => Err("the sandbox has ended"),
            (_, Self::Assembling) => Err("a sandbox is assembled once"),
            (Self::Stopping, _) => Err("the sandbox is being taken apart"),
            (Self::Assembling, Self::Stopped(_)) => Err("what was assembled must be taken apart first"),
            (Self::Running { .. }, _) => Err("a running sandbox must be taken apart first"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_legal_moves() {
        let running = || State::Running { envd_version: "0.6.13".to_owned() };
        let stopped = || State::Stopped(EndReason::Killed);
        assert!(State::Assembling.may_become(&running()).is_ok());
        assert!(State::Assembling.may_become(&State::Stopping).is_ok());
        assert!(running().may_become(&State::Stopping).is_ok());
        assert!(State::Stopping.may_become(&stopped()).is_ok());
        for (from, to) in [
            (State::Assembling, stopped()),
            (running(), stopped()),
            (running(), running()),
            (stopped(), running()),
            (State::Stopping, running()),
            (running(), State::Assembling),
        ] {
            assert!(from.may_become(&to).is_err(), "{from:?} to {to:?}");
        }
    }
}
