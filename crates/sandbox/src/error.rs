//! Errors of running a sandbox.

use std::io;
use std::path::PathBuf;

/// Failure to run a sandbox. Its resources are released before this is returned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot was taken on another platform.
    #[error("the build was made with {property} {theirs}, this node has {ours}: build the template again here")]
    Platform {
        /// Differing property.
        property: &'static str,
        /// Value of this node.
        ours: String,
        /// Value of the snapshot.
        theirs: String,
    },
    /// No network slot was acquired.
    #[error("acquiring a network slot")]
    Network(#[source] hearth_network::Error),
    /// No control group was created.
    #[error("creating a control group")]
    Cgroup(#[source] hearth_host::cgroup::Error),
    /// The disk lacks space for the sandbox's share.
    #[error("reserving disk space")]
    InsufficientDisk(#[source] crate::InsufficientDisk),
    /// No overlay was created.
    #[error("creating the disk overlay")]
    Overlay(#[source] hearth_artifact::OverlayError),
    /// A file operation failed.
    #[error("{action} `{}`", path.display())]
    File {
        /// Attempted action.
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The VM could not be restored.
    #[error("restoring the VM")]
    Vm(#[source] hearth_vmm::Error),
    /// The guest daemon did not accept the sandbox's identity.
    #[error("the guest did not become ready")]
    Guest(#[source] hearth_envd_api::Error),
    /// The VM exited before the guest was ready.
    #[error("the VM exited before its guest was ready")]
    VmExited,
    /// A kill was requested during assembly.
    #[error("the sandbox was killed while it was started")]
    Killed,
}

impl Error {
    /// Returns true if the host has temporarily run out of a resource: the same request may succeed later.
    #[must_use]
    pub fn is_exhaustion(&self) -> bool {
        hearth_host::exhaustion::is_exhaustion(self)
    }
}
