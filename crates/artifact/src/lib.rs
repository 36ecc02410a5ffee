//! The on-disk form of a build and how it is served.
//!
//! A build owns an *artifact set*: root filesystem, memory image, device state and a manifest, in one folder named by the
//! build's id. The [`Cache`] holds the sets of a node. A set appears whole or not at all: it is written as a [`Draft`],
//! every file is fsynced, and one rename makes it visible. Sets are never changed afterwards; a sandbox's own blocks go to
//! an [overlay](create_overlay) over the set's root filesystem, its own pages to private memory of its VMM.
//!
//! Neighbours: `builder` and `sandbox` write sets, `sandbox` reads them, `vmm` gets paths. All calls block on the disk for
//! as long as an fsync takes: async callers use a blocking thread.

#![forbid(unsafe_code)]

mod cache;
mod manifest;
mod overlay;

pub use cache::{ArtifactSet, Cache, Draft, Error};
pub use manifest::{Manifest, ManifestError};
pub use overlay::{OverlayError, create_overlay};
