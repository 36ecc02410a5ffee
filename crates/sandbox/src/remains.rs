//! Folders and control groups that could not be removed when their sandbox ended.
//!
//! What stands in the way, such as too many open descriptors, passes; until then everything else of the sandbox is gone, and
//! its end is not held up. A stop tries for a moment longer; the next start finds the rest.

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
/// How long a stop goes on trying.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What is left of sandboxes that have ended. Cheap to clone. At most as many as network slots: each sandbox had one.
#[derive(Debug, Clone, Default)]
pub struct Remains {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    left: Mutex<Vec<Remain>>,
    added: Notify,
}

#[derive(Debug)]
enum Remain {
    Folder(PathBuf),
    Group(Group),
}

impl Remains {
    fn left(&self) -> MutexGuard<'_, Vec<Remain>> {
        // Every section is one step on a valid list, so a panic elsewhere leaves it valid.
        self.inner.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.left().len()
    }

    /// Removes a folder, now or later.
    pub(crate) async fn remove_folder(&self, path: PathBuf) {
        self.remove(Remain::Folder(path)).await;
    }

    /// Kills what is in a group and removes it, now or later.
    pub(crate) async fn remove_group(&self, group: Group) {
        self.remove(Remain::Group(group)).await;
    }

    async fn remove(&self, remain: Remain) {
        if let Err((remain, error)) = remain.remove().await {
            tracing::warn!(?remain, %error, "could not remove a part of a sandbox, trying again");
            self.left().push(remain);
            self.inner.added.notify_one();
        }
    }

    /// One attempt at all that are left.
    async fn remove_again(&self) {
        let all = std::mem::take(&mut *self.left());
        for remain in all {
            if let Err((remain, error)) = remain.remove().await {
                tracing::debug!(?remain, %error, "could not remove a part of a sandbox again");
                self.left().push(remain);
            }
        }
    }

    /// Tries again until `stop`, and then for a moment longer.
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
            self.remove_again().await;
            if self.count() == 0 {
                backoff.reset();
            }
        }
        let until = Instant::now() + STOP_PATIENCE;
        while self.count() > 0 && Instant::now() < until {
            self.remove_again().await;
            tokio::time::sleep(PAUSE_MIN).await;
        }
        if self.count() > 0 {
            tracing::warn!(left = self.count(), "parts of sandboxes could not be removed: the next start removes them");
        }
    }
}

impl Remain {
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

/// Removes a folder. One that is gone is success.
async fn remove_folder(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    // A large overlay takes the file system a while.
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
    async fn what_cannot_be_removed_is_tried_until_it_can() {
        let folder = tempfile::tempdir().expect("temporary folder");
        // Not a folder: removing it as one fails, for root as well.
        let path = folder.path().join("sandbox");
        fs::write(&path, "").expect("writes");
        let remains = Remains::default();
        remains.remove_folder(path.clone()).await;
        assert_eq!(remains.count(), 1);
        let stop = CancellationToken::new();
        let running = tokio::spawn(remains.clone().run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(remains.count(), 1);
        fs::remove_file(&path).expect("removes");
        fs::create_dir(&path).expect("creates");
        tokio::time::sleep(PAUSE_MAX * 2).await;
        assert_eq!(remains.count(), 0);
        assert!(!path.exists());

        fs::write(&path, "").expect("writes");
        remains.remove_folder(path).await;
        stop.cancel();
        // The stop does not wait for ever.
        running.await.expect("ends");
        assert_eq!(remains.count(), 1);
    }
}
