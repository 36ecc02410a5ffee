//! State of a sandbox on its node, and the legal transitions.

use std::fmt;
use std::sync::Arc;

use crate::Error;

/// Reason why a running sandbox stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// A kill was requested.
    Killed,
    /// The guest powered off, or the VMM exited.
    VmExited,
    /// The node's disk is full, and the sandbox used more than its share.
    DiskFull,
    /// The node is shutting down.
    NodeStopped,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::VmExited => f.write_str("the guest powered off or its VMM died"),
            Self::DiskFull => f.write_str("the node's disk is full, and the sandbox took more than its share of it"),
            Self::NodeStopped => f.write_str("the node was stopped"),
        }
    }
}

/// State of a sandbox on its node.
#[derive(Debug, Clone)]
pub enum State {
    /// Resources are being acquired and the VM restored.
    Assembling,
    /// The guest daemon has accepted the sandbox's identity.
    Running { envd_version: String },
    /// Resources are being released.
    Stopping,
    /// All resources are released, or their removal is being retried.
    Stopped(EndReason),
    /// It never ran. All resources are released, or their removal is being retried.
    Failed(Arc<Error>),
}

impl State {
    /// Returns true if the sandbox has released its resources.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Failed(_))
    }

    /// Checks that the transition to `next` is legal.
    ///
    /// # Errors
    /// The reason why it is not.
    pub(crate) fn check_transition(&self, next: &Self) -> Result<(), &'static str> {
        match (self, next) {
            (Self::Assembling, Self::Running { .. } | Self::Stopping | Self::Failed(_))
            | (Self::Running { .. }, Self::Stopping)
            | (Self::Stopping, Self::Stopped(_)) => Ok(()),
            (Self::Stopped(_) | Self::Failed(_), _) => Err("the sandbox has ended"),
            (_, Self::Assembling) => Err("a sandbox is assembled once"),
            (Self::Stopping, _) => Err("the sandbox is being stopped"),
            (Self::Assembling, Self::Stopped(_)) => Err("a sandbox that is being assembled must become Stopping first"),
            (Self::Running { .. }, _) => Err("a running sandbox must become Stopping first"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_transitions_are_rejected() {
        let running = || State::Running { envd_version: "0.6.13".to_owned() };
        let stopped = || State::Stopped(EndReason::Killed);
        assert!(State::Assembling.check_transition(&running()).is_ok());
        assert!(State::Assembling.check_transition(&State::Stopping).is_ok());
        assert!(running().check_transition(&State::Stopping).is_ok());
        assert!(State::Stopping.check_transition(&stopped()).is_ok());
        for (from, to) in [
            (State::Assembling, stopped()),
            (running(), stopped()),
            (running(), running()),
            (stopped(), running()),
            (State::Stopping, running()),
            (running(), State::Assembling),
        ] {
            assert!(from.check_transition(&to).is_err(), "{from:?} to {to:?}");
        }
    }
}
