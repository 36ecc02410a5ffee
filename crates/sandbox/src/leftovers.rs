//! Folders and control groups that could not be removed when their sandbox ended.
//!
//! The obstacle, such as too many open descriptors, usually passes. Everything else of the sandbox is released
//! meanwhile, and its end is not delayed. At shutdown the removal is retried for a short time; the next start removes
//! the remaining leftovers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_host::cgroup::Group;
use hearth_stdx::Backoff;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pauses between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Limit for retries at shutdown.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Folders and control groups whose removal failed. Cheap to clone.
///
/// Their number is bounded by the number of network slots, because each sandbox had one.
#[derive(Debug, Clone, Default)]
pub struct Leftovers {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    list: Mutex<Vec<Leftover>>,
    added: Notify,
}

#[derive(Debug)]
enum Leftover {
    Folder(PathBuf),
    Group(Group),
}

impl Leftovers {
    fn list(&self) -> MutexGuard<'_, Vec<Leftover>> {
        // Every critical section is one step on a valid list, so a panic elsewhere leaves it valid.
        self.inner.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of leftovers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list().len()
    }

    /// Removes a folder. If that fails, it is retried in the background.
    pub(crate) async fn remove_folder(&self, path: PathBuf) {
        self.remove(Leftover::Folder(path)).await;
    }

    /// Kills the processes in a group and removes it. If that fails, it is retried in the background.
    pub(crate) async fn remove_group(&self, group: Group) {
        self.remove(Leftover::Group(group)).await;
    }

    async fn remove(&self, leftover: Leftover) {
        if let Err((leftover, error)) = leftover.remove().await {
            tracing::warn!(?leftover, %error, "could not remove a leftover of a sandbox, retrying");
            self.list().push(leftover);
            self.inner.added.notify_one();
        }
    }

    /// Tries once to remove each leftover.
    async fn retry_once(&self) {
        let all = std::mem::take(&mut *self.list());
        for leftover in all {
            if let Err((leftover, error)) = leftover.remove().await {
                tracing::debug!(?leftover, %error, "could not remove a leftover of a sandbox again");
                self.list().push(leftover);
            }
        }
    }

    /// Retries removals until `stop`, and then for at most [`STOP_LIMIT`].
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        loop {
            let pause = backoff.advance();
            let wait = async {
                if self.count() == 0 {
                    self.inner.added.notified().await;
                }
                tokio::time::sleep(pause).await;
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                break;
            }
            self.retry_once().await;
            if self.count() == 0 {
                backoff.reset();
            }
        }
        let until = Instant::now() + STOP_LIMIT;
        while self.count() > 0 && Instant::now() < until {
            self.retry_once().await;
            tokio::time::sleep(PAUSE_MIN).await;
        }
        if self.count() > 0 {
            tracing::warn!(count = self.count(), "leftovers of sandboxes remain, the next start removes them");
        }
    }
}

impl Leftover {
    async fn remove(self) -> Result<(), (Self, io::Error)> {
        match self {
            Self::Folder(path) => match remove_folder(&path).await {
                Ok(()) => Ok(()),
                Err(error) => Err((Self::Folder(path), error)),
            },
            Self::Group(group) => group.remove().await.map_err(|(group, error)| (Self::Group(group), error)),
        }
    }
}

/// Removes a folder. A missing folder is success.
async fn remove_folder(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    // Removing a large overlay takes the file system some time.
    match spawn_blocking(move || fs::remove_dir_all(path)).await {
        Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(_) => Ok(()),
        Err(_) => Err(io::ErrorKind::Interrupted.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failed_removal_is_retried_until_it_succeeds() {
        let folder = tempfile::tempdir().expect("temporary folder");
        // A file at the folder's path makes the removal fail, also for root.
        let path = folder.path().join("sandbox");
        fs::write(&path, "").expect("writes");
        let leftovers = Leftovers::default();
        leftovers.remove_folder(path.clone()).await;
        assert_eq!(leftovers.count(), 1);
        let stop = CancellationToken::new();
        let running = tokio::spawn(leftovers.clone().run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(leftovers.count(), 1);
        fs::remove_file(&path).expect("removes");
        fs::create_dir(&path).expect("creates");
        tokio::time::sleep(PAUSE_MAX * 2).await;
        assert_eq!(leftovers.count(), 0);
        assert!(!path.exists());

        fs::write(&path, "").expect("writes");
        leftovers.remove_folder(path).await;
        stop.cancel();
        // The retries at shutdown are limited.
        running.await.expect("ends");
        assert_eq!(leftovers.count(), 1);
    }
}
