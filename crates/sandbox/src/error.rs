//! Why a sandbox could not be run.

use std::io;
use std::path::PathBuf;

/// Why a sandbox could not be run. Nothing of it is left when this is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot was taken on another kind of machine.
    #[error("the build was made with {property} {theirs}, this node has {ours}: build the template again here")]
    Platform {
        /// What differs.
        property: &'static str,
        /// This node's.
        ours: String,
        /// The snapshot's.
        theirs: String,
    },
    /// No network.
    #[error("getting a network slot")]
    Network(#[source] hearth_network::Error),
    /// No control group.
    #[error("making a control group")]
    Cgroup(#[source] hearth_host::cgroup::Error),
    /// No disk space.
    #[error("reserving disk space")]
    NoRoom(#[source] crate::NoRoom),
    /// No writable disk.
    #[error("making the disk overlay")]
    Overlay(#[source] hearth_artifact::OverlayError),
    /// A file could not be made.
    #[error("{action} `{}`", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The VM could not be restored.
    #[error("restoring the VM")]
    Vm(#[source] hearth_vmm::Error),
    /// The guest daemon did not accept the sandbox's identity.
    #[error("the guest did not become ready")]
    Guest(#[source] hearth_envd_api::Error),
    /// The VM ended before the guest was ready.
    #[error("the VM ended before its guest was ready")]
    VmEnded,
    /// It was killed while it was assembled.
    #[error("the sandbox was killed while it was started")]
    Killed,
}

impl Error {
    /// Whether the host has run out of something that comes back: the same request may succeed later.
    #[must_use]
    pub fn is_exhaustion(&self) -> bool {
        hearth_host::exhaustion::is_exhaustion(self)
    }
}
