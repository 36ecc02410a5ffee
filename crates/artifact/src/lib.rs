//! Artifact sets: the on-disk form of builds.
//!
//! A build owns an *artifact set*: root filesystem, memory image, device state and a manifest, in one folder named by
//! the build id. The [`ArtifactStore`] holds the sets of a node. A set appears as a whole or not at all: it is written
//! as a [`Draft`], every file is fsynced, and one rename makes it visible. Sets never change afterwards; a sandbox
//! writes its blocks to an [overlay](create_overlay) over the set's root filesystem, and its pages to private memory of
//! its VMM.
//!
//! Neighbours: `builder` writes sets, `orchestrator` gets them from the store, `sandbox` and `vmm` read their files.
//! All calls block on the disk for as long as an fsync takes, so async callers use a blocking thread.

#![forbid(unsafe_code)]

mod manifest;
mod overlay;
mod store;

pub use manifest::{Manifest, ManifestError};
pub use overlay::{OverlayError, create_overlay};
pub use store::{ArtifactSet, ArtifactStore, Draft, Error};
