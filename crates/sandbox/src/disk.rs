//! Disk space for what sandboxes write.
//!
//! Every sandbox has a *share*: the part of its disk that it is certain to get, `1 / overcommit` of it. The share is allocated
//! when its overlay is made, so that neither other sandboxes nor other programs can take it. What it writes beyond comes from
//! the free space that all have in common. A *reserve* belongs to nobody: rows and logs of the daemon are written there.
//!
//! ```text
//!  | base images, rows … | share | share | share | free space in common | reserve |
//! ```
//!
//! A new sandbox is refused when its share would come out of the reserve. When the space in common is used up, the sandboxes
//! that took from it are held ([`DiskRoom::over_share`]) until there is room again; those within their shares notice nothing.
//! One that was held for [`PATIENCE`] ends, the largest first.

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

/// Between two looks at the disk. A guest writes less than the smallest reserve in this time.
const LOOK_PERIOD: Duration = Duration::from_millis(250);
/// How long a sandbox waits for room. Its clients' requests, which wait as well, have given up by then.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at who is the largest of those that wait.
const TURN: Duration = Duration::from_secs(2);
/// How long what a sandbox took may take to be free after its end, before the next one has to go.
const RELEASE: Duration = Duration::from_secs(10);
/// Besides the blocks, an overlay has its tables: less than a thousandth of what it holds, and this.
const METADATA_BYTES: u64 = 1 << 20;

/// How disk space is shared.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// A folder on the disk.
    pub folder: PathBuf,
    /// Bytes that sandboxes never get.
    pub reserve_bytes: u64,
    /// A sandbox's disk is this many times its share.
    pub overcommit: u32,
}

/// There is no room for another sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a sandbox needs {share_mib} MiB of disk, and {free_mib} MiB are free besides the reserve: end sandboxes, free some space, \
     or raise --disk-overcommit"
)]
pub struct NoRoom {
    /// What it would get for certain.
    pub share_mib: u64,
    /// What is free.
    pub free_mib: u64,
}

/// The disk space of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DiskRoom {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: DiskConfig,
    /// Held from the look at what is free until the share is taken: two overlays must not count on the same space. Only
    /// blocking threads wait for it.
    admission: Mutex<()>,
    overlays: Mutex<BTreeMap<PathBuf, Overlay>>,
    /// Bytes neither reserved nor promised, at the last look.
    unpromised_bytes: AtomicU64,
    is_short: watch::Sender<bool>,
    /// When a sandbox ended last to make room.
    last_to_go: Mutex<Option<Instant>>,
}

/// An overlay that was made, until its file is gone.
#[derive(Debug)]
struct Overlay {
    share_bytes: u64,
    /// Its sandbox waits for room; how much it takes.
    waits_with: Option<u64>,
}

impl DiskRoom {
    /// The room on a disk; [`run`](Self::run) has to be spawned for those that wait for it. Blocks for as long as the file
    /// system takes to answer.
    pub fn open(config: DiskConfig) -> io::Result<Self> {
        let (is_short, _) = watch::channel(false);
        let unpromised_bytes = AtomicU64::new(0);
        let inner = Inner {
            config,
            admission: Mutex::default(),
            overlays: Mutex::default(),
            unpromised_bytes,
            is_short,
            last_to_go: Mutex::default(),
        };
        let room = Self { inner: Arc::new(inner) };
        room.look()?;
        Ok(room)
    }

    fn overlays(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Overlay>> {
        // Every section is one step on a valid map, so a panic elsewhere leaves it valid.
        self.inner.overlays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a sandbox with a disk of this size is certain to get.
    fn share_bytes(&self, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(u64::from(self.inner.config.overcommit.max(1))) + METADATA_BYTES
    }

    /// Bytes that are neither reserved nor promised: where the file system cannot allocate, or a guest has given blocks back,
    /// a share is not taken yet.
    fn unpromised(&self) -> io::Result<u64> {
        let shares: Vec<(PathBuf, u64)> =
            self.overlays().iter().map(|(path, overlay)| (path.clone(), overlay.share_bytes)).collect();
        let mut promised = self.inner.config.reserve_bytes;
        for (path, share) in shares {
            match allocated_bytes(&path) {
                Ok(allocated) => promised = promised.saturating_add(share.saturating_sub(allocated)),
                // It was removed with its sandbox.
                Err(_) => drop(self.overlays().remove(&path)),
            }
        }
        Ok(free_bytes(&self.inner.config.folder)?.saturating_sub(promised))
    }

    /// How many more sandboxes with disks of this size had room at the last look.
    #[must_use]
    pub fn more(&self, disk_bytes: u64) -> usize {
        let unpromised = self.inner.unpromised_bytes.load(Ordering::Relaxed);
        usize::try_from(unpromised / self.share_bytes(disk_bytes)).unwrap_or(usize::MAX)
    }

    /// Refuses what has no room. Blocks.
    pub fn check(&self, disk_bytes: u64) -> Result<(), Error> {
        self.admit(disk_bytes).map(drop)
    }

    fn admit(&self, disk_bytes: u64) -> Result<u64, Error> {
        let error = |source| Error::File { action: "asking for the free space of", path: self.folder(), source };
        let (share, free) = (self.share_bytes(disk_bytes), self.unpromised().map_err(error)?);
        if share > free {
            return Err(Error::NoRoom(NoRoom { share_mib: share >> 20, free_mib: free >> 20 }));
        }
        Ok(share)
    }

    fn folder(&self) -> PathBuf {
        self.inner.config.folder.clone()
    }

    /// Makes an overlay with its share. Blocks. What fails leaves nothing but a file that its owner removes.
    pub fn create_overlay(&self, path: &Path, disk_bytes: u64) -> Result<(), Error> {
        let _admission = self.inner.admission.lock().unwrap_or_else(PoisonError::into_inner);
        let share_bytes = self.admit(disk_bytes)?;
        create_overlay(path, disk_bytes).map_err(Error::Overlay)?;
        allocate(path, share_bytes).map_err(|source| Error::File {
            action: "allocating a sandbox's share of",
            path: path.to_owned(),
            source,
        })?;
        self.overlays().insert(path.to_owned(), Overlay { share_bytes, waits_with: None });
        Ok(())
    }

    /// Looks at the disk until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_PERIOD)).await.is_some() {
            let room = self.clone();
            // A file system may take its time to answer.
            match tokio::task::spawn_blocking(move || room.look()).await {
                Ok(Ok(free)) => self.note(free),
                Ok(Err(error)) => tracing::warn!(%error, "the free space of the disk cannot be found out"),
                // The runtime stops.
                Err(_) => return,
            }
        }
    }

    /// Returns what is free, the reserve included.
    fn look(&self) -> io::Result<u64> {
        let unpromised = self.unpromised()?;
        self.inner.unpromised_bytes.store(unpromised, Ordering::Relaxed);
        free_bytes(&self.inner.config.folder)
    }

    fn note(&self, free_bytes: u64) {
        let reserve = self.inner.config.reserve_bytes;
        self.inner.is_short.send_if_modified(|is_short| {
            // Room for a while, and not for the next moment only.
            let was = std::mem::replace(is_short, free_bytes < if *is_short { reserve + reserve / 8 } else { reserve });
            if was != *is_short {
                tracing::warn!(
                    free_mib = free_bytes >> 20,
                    reserve_mib = reserve >> 20,
                    short = *is_short,
                    "disk space"
                );
            }
            was != *is_short
        });
    }

    /// Waits until the disk is short and this overlay takes more than its share. Cancel safe.
    pub(crate) async fn over_share(&self, path: &Path) {
        let mut is_short = self.inner.is_short.subscribe();
        loop {
            // The sender lives as long as this.
            let _ = is_short.wait_for(|is_short| *is_short).await;
            let share = self.overlays().get(path).map(|overlay| overlay.share_bytes);
            let allocated = allocated_bytes(path).unwrap_or(0);
            if share.is_some_and(|share| allocated > share) {
                return;
            }
            // It may grow while the disk is short.
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    /// Waits until the disk has room again; `false` when it is this overlay that has to go for it. Cancel safe.
    pub(crate) async fn room(&self, path: &Path) -> bool {
        let waiting = Waiting { room: self, path };
        waiting.set(Some(allocated_bytes(path).unwrap_or(0)));
        let mut is_short = self.inner.is_short.subscribe();
        // One look at least: a write that found no space came before the look that says so.
        let until = Instant::now() + PATIENCE;
        tokio::time::sleep(2 * LOOK_PERIOD).await;
        loop {
            let turn = until.max(Instant::now() + TURN);
            if tokio::time::timeout_at(turn, is_short.wait_for(|is_short| !*is_short)).await.is_ok() {
                return true;
            }
            if self.has_to_go(path) {
                return false;
            }
        }
    }

    /// Whether this one ends to make room: the largest of those that wait, and one at a time.
    fn has_to_go(&self, path: &Path) -> bool {
        let mut last = self.inner.last_to_go.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < RELEASE) {
            return false;
        }
        let overlays = self.overlays();
        let waiting = overlays.iter().filter_map(|(path, overlay)| Some((overlay.waits_with?, path)));
        let goes = waiting.max().is_none_or(|(_, largest)| largest == path);
        if goes {
            *last = Some(Instant::now());
        }
        goes
    }
}

/// A sandbox that waits for room, until dropped.
struct Waiting<'a> {
    room: &'a DiskRoom,
    path: &'a Path,
}

impl Waiting<'_> {
    fn set(&self, waits_with: Option<u64>) {
        if let Some(overlay) = self.room.overlays().get_mut(self.path) {
            overlay.waits_with = waits_with;
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
