//! A recipe becomes a template build. So far there is one recipe: the base template.
//!
//! - [`ensure_kernel`]: the guest's kernel (Debian's, unpacked and not installed) and the first root filesystem with our
//!   programs in it.
//! - [`ensure_base`]: the root filesystem of the base template from Debian's packages, booted, warmed up and saved as an
//!   artifact set.
//!
//! Both are idempotent and resumable: what is there and current is used, what an interrupted run left is removed. Everything
//! that is kept is written under another name and renamed. Neighbours: `host` and the distribution's own tools do the work
//! on files, `vmm` runs the VM in which a template gets ready, `artifact` keeps the result.
//!
//! Our two guest programs come with the initramfs, and PID 1 puts the daemon into the root filesystem when it boots. So a
//! root filesystem, which takes minutes and the network to make, does not depend on them; a build of a new daemon repeats
//! only the boot and the snapshot.

#![forbid(unsafe_code)]

mod apt;
mod base;
mod config;
mod cpio;
mod error;
mod files;
mod kernel;
mod mirror;
mod progress;
mod rootfs;
mod tool;
mod workshop;

pub use base::{Base, ensure_base};
pub use config::{Config, GuestPrograms, NAMESERVER, RESOURCES, SUITE};
pub use error::Error;
pub use kernel::ensure_kernel;
pub use progress::{Progress, Silent, Unit};

/// Refuses to begin what would fill the disk.
fn require_space(folder: &std::path::Path, needed_bytes: u64, purpose: &'static str) -> Result<(), Error> {
    let free = hearth_host::disk::free_bytes(folder);
    let free_bytes = free.map_err(Error::file("looking at the free space of", folder))?;
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(Error::NoSpace { path: folder.to_owned(), free_bytes, needed_bytes, purpose })
}
