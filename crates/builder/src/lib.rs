//! Builds templates from recipes.
//!
//! - [`ensure_kernel`]: the guest's kernel (Debian's, unpacked and not installed), and an initramfs with Hearth's guest
//!   programs.
//! - [`Recipe`]: the contents of a template as data, embedded in the binary.
//! - [`ensure_template`]: the root filesystem of a recipe from Debian's packages, booted, warmed up and saved as an
//!   artifact set.
//! - [`write_bundle`] and [`read_bundle`] carry kernel and root filesystems to machines without network.
//!
//! All are idempotent and resumable: current results are reused, leftovers of an interrupted run are removed. Every
//! result is written under another name and then renamed. Neighbours: `host` and the distribution's own tools work on
//! files, `vmm` runs the VM in which a template is prepared, `artifact` stores the result.
//!
//! The guest programs (PID 1, the daemon and the interpreter) are in the initramfs, and PID 1 copies them into the root
//! filesystem at boot. So a root filesystem, which takes minutes and the network to make, does not depend on them; a
//! new version of a program requires only the boot and the snapshot again.

#![forbid(unsafe_code)]

mod apt;
mod build_folder;
mod bundle;
mod config;
mod cpio;
mod error;
mod files;
mod kernel;
mod mirror;
mod progress;
mod recipe;
mod registries;
mod rootfs;
mod stored;
mod template;
mod tool;

pub use bundle::{Bundle, BundleError, read_bundle, write_bundle};
pub use config::{Config, GuestPrograms, NAMESERVER, SUITE};
pub use error::Error;
pub use kernel::ensure_kernel;
pub use progress::{NoProgress, Progress, Unit};
pub use recipe::{BASE, Recipe};
pub use stored::stored_sets;
pub use template::{BuiltTemplate, Costs, ensure_template};

/// Checks that the disk has enough free space for the work.
fn require_space(folder: &std::path::Path, needed_bytes: u64, purpose: &'static str) -> Result<(), Error> {
    let free = hearth_host::disk::free_bytes(folder);
    let free_bytes = free.map_err(Error::file("reading the free space of", folder))?;
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(Error::NoSpace { path: folder.to_owned(), free_bytes, needed_bytes, purpose })
}
