//! Tasks with an owner.
//!
//! Nothing in Hearth is spawned loose: whoever starts tasks holds a [`TaskSet`], hands its token to them, and at shutdown
//! cancels, waits, and names those who did not come back.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type Names = BTreeMap<u64, &'static str>;

/// A set of named tasks that end together. Clones share the set.
#[derive(Debug, Clone, Default)]
pub struct TaskSet {
    tracker: TaskTracker,
    token: CancellationToken,
    names: Arc<Mutex<Names>>,
    next: Arc<std::sync::atomic::AtomicU64>,
}

/// Forgets a task's name when the task ends, also by panic or abort.
struct Named {
    names: Arc<Mutex<Names>>,
    key: u64,
}

impl Drop for Named {
    fn drop(&mut self) {
        lock(&self.names).remove(&self.key);
    }
}

fn lock(names: &Mutex<Names>) -> MutexGuard<'_, Names> {
    // The map is valid after a panic of another holder: every change of it is one call.
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TaskSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty set that `parent` cancels too.
    #[must_use]
    pub fn below(parent: &CancellationToken) -> Self {
        Self { token: parent.child_token(), ..Self::default() }
    }

    /// Cancelled when the set shuts down. Tasks watch it.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task of this set. `name` tells people who did not stop in time.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let key = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        lock(&self.names).insert(key, name);
        let named = Named { names: Arc::clone(&self.names), key };
        self.tracker.spawn(async move {
            let _named = named;
            future.await
        })
    }

    /// How many tasks run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Cancels, then waits at most `patience`; returns the names of the tasks that still run, which is logged too.
    pub async fn shutdown(&self, patience: Duration) -> Vec<&'static str> {
        self.token.cancel();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let laggards: Vec<&'static str> = lock(&self.names).values().copied().collect();
        tracing::warn!(?laggards, patience_ms = patience.as_millis(), "tasks did not stop in time");
        laggards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_and_names_the_laggard() {
        let tasks = TaskSet::new();
        let token = tasks.token();
        tasks.spawn("obedient", async move { token.cancelled().await });
        tasks.spawn("stubborn", std::future::pending::<()>());
        assert_eq!(tasks.shutdown(Duration::from_secs(1)).await, ["stubborn"]);
    }

    #[tokio::test]
    async fn a_parent_cancels_the_set() {
        let parent = CancellationToken::new();
        let tasks = TaskSet::below(&parent);
        let token = tasks.token();
        let task = tasks.spawn("child", async move { token.cancelled().await });
        parent.cancel();
        task.await.expect("ends");
        assert!(tasks.shutdown(Duration::from_secs(1)).await.is_empty());
    }
}
