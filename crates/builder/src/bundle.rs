//! Bundles: the inputs of templates in one file, for machines that reach no Debian mirror.
//!
//! ```text
//! hearth-bundle.json   manifest: version, templates, and path, size and BLAKE3 hash of every file below
//! kernel/...           files of the kernel package
//! rootfs/*.ext4        root filesystems, named by template and key
//! ```
//!
//! It is a tar archive, compressed with zstd, whose entries are regular files in the order of the manifest. Snapshots
//! are not in it: they depend on the processor, the VMM and Hearth's guest programs, and a machine takes them itself
//! without network. A holder of the file decides what runs in sandboxes: the hashes detect damage, not forgery.
//!
//! A bundle is unpacked into a scratch folder, checked, and only then moved to its place, the mark of the current kernel
//! last. Blocks of zeros become holes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::build_folder::BuildFolder;
use crate::kernel::current_version;
use crate::progress::{Progress, Unit};
use crate::rootfs::image_name;
use crate::{Config, Error, Recipe};

mod content;
mod manifest;
mod read;
mod write;

#[cfg(test)]
mod tests;

/// Pause between two progress reports.
const TICK: Duration = Duration::from_millis(200);

/// Failure to write or read a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file operation failed.
    #[error("{action} `{}`", path.display())]
    File {
        /// Attempted action.
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The file is not a bundle, is damaged, or exceeds a limit.
    #[error("`{}` cannot be used as a bundle: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    /// The bundle was written by a version with other templates.
    #[error(
        "the bundle of hearth {writer} has no current root filesystem of the template {template}: write a bundle with \
         the version that reads it"
    )]
    OtherVersion {
        /// Version that wrote the bundle.
        writer: String,
        template: &'static str,
    },
    /// The template does not exist here, so it cannot be bundled.
    #[error("the template {0} is not prepared: run `hearth setup --template {0}` first")]
    NotPrepared(&'static str),
    /// The builder's folder cannot be used.
    #[error(transparent)]
    Builder(#[from] Error),
    /// The command was interrupted.
    #[error("interrupted")]
    Cancelled,
}

impl BundleError {
    fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// Contents of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Version that wrote it.
    pub writer: String,
    /// Release of the kernel.
    pub kernel_version: String,
    /// Names of the templates.
    pub templates: Vec<String>,
    /// Size of all files, without holes.
    pub data_bytes: u64,
}

/// Writes the kernel and the root filesystems of these recipes to a file, and replaces an existing one.
///
/// `writer` is the version of this program. Cancel safe: an interrupted call leaves no file.
///
/// # Errors
/// A template is not prepared, or a file operation failed.
pub async fn write_bundle(
    config: &Config,
    recipes: &[&'static Recipe],
    writer: &str,
    target: &Path,
    progress: &dyn Progress,
) -> Result<Bundle, BundleError> {
    let build_folder = BuildFolder::open(config).await?;
    let inputs = write::Inputs::collect(&build_folder, config, recipes, writer)?;
    let (target, meter) = (target.to_owned(), Meter::default());
    let work = {
        let meter = meter.clone();
        move || inputs.write(&target, &meter)
    };
    watched("bundle", work, meter, progress).await
}

/// Unpacks a bundle, so that these recipes' templates can be made without network.
///
/// Returns `None`, without reading the file, if their root filesystems and the kernel exist already: a service may be
/// started with the bundle that it was set up from. Cancel safe: an interrupted or failed call leaves earlier results
/// unchanged, and nothing else.
///
/// # Errors
/// The file is damaged, lacks a template, or was written by a version with other recipes.
pub async fn read_bundle(
    config: &Config,
    recipes: &[&'static Recipe],
    source: &Path,
    progress: &dyn Progress,
) -> Result<Option<Bundle>, BundleError> {
    let build_folder = BuildFolder::open(config).await?;
    if is_complete(&build_folder, config, recipes) {
        return Ok(None);
    }
    let reader = read::Reader::open(source)?;
    let plan = reader.plan(&build_folder, config, recipes)?;
    let meter = Meter::default();
    let work = {
        let meter = meter.clone();
        move || plan.unpack(&meter)
    };
    watched("bundle", work, meter, progress).await.map(Some)
    // The lock is released here, after the work.
}

/// Returns true if the kernel and the root filesystems of these recipes exist.
fn is_complete(build_folder: &BuildFolder, config: &Config, recipes: &[&'static Recipe]) -> bool {
    let Some(kernel_version) = current_version(build_folder, &config.suite) else { return false };
    let images = recipes.iter().map(|recipe| image_name(config, recipe, &kernel_version));
    images.into_iter().all(|image| build_folder.root_filesystems().join(image).exists())
}

/// Progress of blocking work, and the request to stop it. Cheap to clone.
#[derive(Debug, Clone, Default)]
struct Meter {
    inner: Arc<MeterState>,
}

#[derive(Debug, Default)]
struct MeterState {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Meter {
    fn expect(&self, bytes: u64) {
        self.inner.total.store(bytes, Ordering::Relaxed);
    }

    /// Counts finished bytes.
    ///
    /// # Errors
    /// The caller is gone: [`BundleError::Cancelled`].
    fn count(&self, bytes: usize) -> Result<(), BundleError> {
        self.inner.done.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.inner.cancelled.load(Ordering::Relaxed) { Err(BundleError::Cancelled) } else { Ok(()) }
    }
}

/// Cancels the work on drop.
struct CancelOnDrop(Meter);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.inner.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Runs blocking work and reports its progress.
async fn watched<T: Send + 'static>(
    phase: &'static str,
    work: impl FnOnce() -> Result<T, BundleError> + Send + 'static,
    meter: Meter,
    progress: &dyn Progress,
) -> Result<T, BundleError> {
    progress.phase(phase, Unit::Bytes, None);
    let guard = CancelOnDrop(meter.clone());
    let mut task = spawn_blocking(work);
    let mut clock = tokio::time::interval(TICK);
    let result = loop {
        tokio::select! {
            result = &mut task => break result,
            _ = clock.tick() => {
                let total = meter.inner.total.load(Ordering::Relaxed);
                if total > 0 {
                    progress.advance(meter.inner.done.load(Ordering::Relaxed), total);
                }
            }
        }
    };
    drop(guard);
    progress.finished();
    match result {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(BundleError::Cancelled),
    }
}
