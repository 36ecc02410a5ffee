//! Disk space for the overlays of sandboxes.
//!
//! Every sandbox has a *share*: the guaranteed part of its disk, `1 / overcommit` of it. The share is allocated with
//! the overlay, so that neither other sandboxes nor other programs can take it. Writes beyond the share use free space
//! that all sandboxes have in common. Sandboxes never get the *reserve*: the daemon writes its rows and logs there.
//!
//! ```text
//!  | base images, rows … | share | share | share | free space in common | reserve |
//! ```
//!
//! A new sandbox is rejected if its share would come out of the reserve. When the common space is used up, the CPUs of
//! sandboxes that exceed their share are stopped ([`DiskSpace::exceeds_share`]) until space is free again; other
//! sandboxes are not affected. A sandbox that has waited for [`WAIT_LIMIT`] is killed, the largest first.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_artifact::create_overlay;
use hearth_host::disk::{allocate, allocated_bytes, free_bytes};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Pause between two measurements of the disk. A guest writes less than the smallest reserve in this time.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Limit for a sandbox to wait for space. Requests of its clients have timed out by then.
const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two checks of which waiting sandbox is the largest.
const LARGEST_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Limit for the space of a killed sandbox to become free, before the next one is killed.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an overlay's tables, in addition to its blocks: less than a thousandth of its data, plus this.
const METADATA_BYTES: u64 = 1 << 20;

/// Configuration of the division of disk space.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Folder on the disk.
    pub folder: PathBuf,
    /// Bytes that sandboxes never get.
    pub reserve_bytes: u64,
    /// Ratio of a sandbox's disk to its share.
    pub overcommit: u32,
}

/// Lack of disk space for another sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a sandbox needs {share_mib} MiB of disk, and {free_mib} MiB are free besides the reserve: kill sandboxes, free some space, \
     or raise --disk-overcommit"
)]
pub struct InsufficientDisk {
    /// Share of the sandbox.
    pub share_mib: u64,
    /// Free space outside of the reserve.
    pub free_mib: u64,
}

/// Disk space of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DiskSpace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: DiskConfig,
    /// Locked from the measurement of free space until the share is allocated, so that two overlays cannot use the same
    /// space.
    ///
    /// Only blocking threads wait for it.
    admission: Mutex<()>,
    overlays: Mutex<BTreeMap<PathBuf, Overlay>>,
    /// Bytes neither reserved nor committed, at the last measurement.
    uncommitted_bytes: AtomicU64,
    is_short: watch::Sender<bool>,
    /// Time at which a sandbox was last selected to be killed for space.
    last_selected: Mutex<Option<Instant>>,
}

/// An overlay, from its creation until its file is removed.
#[derive(Debug)]
struct Overlay {
    share_bytes: u64,
    /// Allocated bytes, if its sandbox waits for space.
    waiting_bytes: Option<u64>,
}

impl DiskSpace {
    /// Opens the disk space below the folder of `config`. Blocks on the file system.
    ///
    /// [`run`](Self::run) must be spawned for sandboxes to notice a lack of space.
    pub fn open(config: DiskConfig) -> io::Result<Self> {
        let (is_short, _) = watch::channel(false);
        let uncommitted_bytes = AtomicU64::new(0);
        let inner = Inner {
            config,
            admission: Mutex::default(),
            overlays: Mutex::default(),
            uncommitted_bytes,
            is_short,
            last_selected: Mutex::default(),
        };
        let space = Self { inner: Arc::new(inner) };
        space.measure()?;
        Ok(space)
    }

    fn overlays(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Overlay>> {
        // Every critical section is one step on a valid map, so a panic elsewhere leaves it valid.
        self.inner.overlays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the share of a sandbox with a disk of this size, with its tables.
    fn share_bytes(&self, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(u64::from(self.inner.config.overcommit.max(1))) + METADATA_BYTES
    }

    /// Returns the bytes that are neither reserved nor committed.
    ///
    /// Part of a share is committed but not allocated if the file system cannot allocate or a guest has discarded
    /// blocks.
    fn uncommitted(&self) -> io::Result<u64> {
        let shares: Vec<(PathBuf, u64)> =
            self.overlays().iter().map(|(path, overlay)| (path.clone(), overlay.share_bytes)).collect();
        let mut committed = self.inner.config.reserve_bytes;
        for (path, share) in shares {
            match allocated_bytes(&path) {
                Ok(allocated) => committed = committed.saturating_add(share.saturating_sub(allocated)),
                // The file was removed with its sandbox.
                Err(_) => drop(self.overlays().remove(&path)),
            }
        }
        Ok(free_bytes(&self.inner.config.folder)?.saturating_sub(committed))
    }

    /// Returns how many more sandboxes with disks of this size would have fit at the last measurement.
    #[must_use]
    pub fn fitting_sandboxes(&self, disk_bytes: u64) -> usize {
        let uncommitted = self.inner.uncommitted_bytes.load(Ordering::Relaxed);
        usize::try_from(uncommitted / self.share_bytes(disk_bytes)).unwrap_or(usize::MAX)
    }

    /// Checks that there is space for the share of a sandbox. Blocks.
    ///
    /// # Errors
    /// [`Error::InsufficientDisk`] if there is not.
    pub fn check(&self, disk_bytes: u64) -> Result<(), Error> {
        self.admit(disk_bytes).map(drop)
    }

    fn admit(&self, disk_bytes: u64) -> Result<u64, Error> {
        let error = |source| Error::File { action: "reading the free space of", path: self.folder(), source };
        let (share, free) = (self.share_bytes(disk_bytes), self.uncommitted().map_err(error)?);
        if share > free {
            return Err(Error::InsufficientDisk(InsufficientDisk { share_mib: share >> 20, free_mib: free >> 20 }));
        }
        Ok(share)
    }

    fn folder(&self) -> PathBuf {
        self.inner.config.folder.clone()
    }

    /// Creates an overlay and allocates its share. Blocks.
    ///
    /// After an error the file may exist; the caller removes it.
    pub fn create_overlay(&self, path: &Path, disk_bytes: u64) -> Result<(), Error> {
        let _admission = self.inner.admission.lock().unwrap_or_else(PoisonError::into_inner);
        let share_bytes = self.admit(disk_bytes)?;
        create_overlay(path, disk_bytes).map_err(Error::Overlay)?;
        allocate(path, share_bytes).map_err(|source| Error::File {
            action: "allocating a sandbox's share of",
            path: path.to_owned(),
            source,
        })?;
        self.overlays().insert(path.to_owned(), Overlay { share_bytes, waiting_bytes: None });
        Ok(())
    }

    /// Measures the disk until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await.is_some() {
            let space = self.clone();
            // A file system may be slow to reply.
            match tokio::task::spawn_blocking(move || space.measure()).await {
                Ok(Ok(free)) => self.update_shortage(free),
                Ok(Err(error)) => tracing::warn!(%error, "could not read the free space of the disk"),
                // The runtime is shutting down.
                Err(_) => return,
            }
        }
    }

    /// Updates the number of available bytes; returns the free bytes, including the reserve.
    fn measure(&self) -> io::Result<u64> {
        let uncommitted = self.uncommitted()?;
        self.inner.uncommitted_bytes.store(uncommitted, Ordering::Relaxed);
        free_bytes(&self.inner.config.folder)
    }

    fn update_shortage(&self, free_bytes: u64) {
        let reserve = self.inner.config.reserve_bytes;
        self.inner.is_short.send_if_modified(|is_short| {
            // A shortage ends only with an eighth of the reserve more, so that it does not return immediately.
            let was = std::mem::replace(is_short, free_bytes < if *is_short { reserve + reserve / 8 } else { reserve });
            if was != *is_short {
                tracing::warn!(
                    free_mib = free_bytes >> 20,
                    reserve_mib = reserve >> 20,
                    short = *is_short,
                    "disk space shortage changed"
                );
            }
            was != *is_short
        });
    }

    /// Waits until the disk is short of space and this overlay exceeds its share. Cancel safe.
    pub(crate) async fn exceeds_share(&self, path: &Path) {
        let mut is_short = self.inner.is_short.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = is_short.wait_for(|is_short| *is_short).await;
            let share = self.overlays().get(path).map(|overlay| overlay.share_bytes);
            let allocated = allocated_bytes(path).unwrap_or(0);
            if share.is_some_and(|share| allocated > share) {
                return;
            }
            // The overlay may grow during the shortage.
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until the disk has space again; returns false if this sandbox must be killed for it. Cancel safe.
    pub(crate) async fn wait_for_space(&self, path: &Path) -> bool {
        let waiting = Waiting { space: self, path };
        waiting.set(Some(allocated_bytes(path).unwrap_or(0)));
        let mut is_short = self.inner.is_short.subscribe();
        // At least one measurement must follow: the write that found no space may precede the one that shows the
        // shortage.
        let until = Instant::now() + WAIT_LIMIT;
        tokio::time::sleep(2 * POLL_INTERVAL).await;
        loop {
            let turn = until.max(Instant::now() + LARGEST_CHECK_INTERVAL);
            if tokio::time::timeout_at(turn, is_short.wait_for(|is_short| !*is_short)).await.is_ok() {
                return true;
            }
            if self.must_stop(path) {
                return false;
            }
        }
    }

    /// Returns true if this sandbox must be killed for space: the largest that waits, one at a time.
    fn must_stop(&self, path: &Path) -> bool {
        let mut last = self.inner.last_selected.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < RELEASE_LIMIT) {
            return false;
        }
        let overlays = self.overlays();
        let waiting = overlays.iter().filter_map(|(path, overlay)| Some((overlay.waiting_bytes?, path)));
        let is_selected = waiting.max().is_none_or(|(_, largest)| largest == path);
        if is_selected {
            *last = Some(Instant::now());
        }
        is_selected
    }
}

/// Mark of a sandbox that waits for space, removed on drop.
struct Waiting<'a> {
    space: &'a DiskSpace,
    path: &'a Path,
}

impl Waiting<'_> {
    fn set(&self, waiting_bytes: Option<u64>) {
        if let Some(overlay) = self.space.overlays().get_mut(self.path) {
            overlay.waiting_bytes = waiting_bytes;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.set(None);
    }
}

#[cfg(test)]
mod tests;
