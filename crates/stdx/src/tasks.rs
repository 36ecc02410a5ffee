//! Tasks with an owner.
//!
//! Nothing in Hearth is spawned loose: whoever starts tasks holds a [`TaskSet`], hands its token to them, and at shutdown
//! cancels, waits, and names those who did not come back.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type Names = BTreeMap<u64, &'static str>;

/// A set of named tasks that end together. Clones share the set and cost little: a proxy makes some for each request.
#[derive(Debug, Clone, Default)]
pub struct TaskSet {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tracker: TaskTracker,
    token: CancellationToken,
    names: Mutex<Names>,
    next: AtomicU64,
}

/// Forgets a task's name when the task ends, also by panic or abort.
struct Named {
    set: Arc<Inner>,
    key: u64,
}

impl Drop for Named {
    fn drop(&mut self) {
        self.set.names().remove(&self.key);
    }
}

impl Inner {
    fn names(&self) -> MutexGuard<'_, Names> {
        // The map is valid after a panic of another holder: every change of it is one call.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        Self { inner: Arc::new(Inner { token: parent.child_token(), ..Inner::default() }) }
    }

    /// Cancelled when the set shuts down. Tasks watch it.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.inner.token.clone()
    }

    /// Starts a task of this set. `name` tells people who did not stop in time.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let key = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.inner.names().insert(key, name);
        let named = Named { set: Arc::clone(&self.inner), key };
        self.inner.tracker.spawn(async move {
            let _named = named;
            future.await
        })
    }

    /// How many tasks run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.tracker.len()
    }

    /// Whether no task runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.tracker.is_empty()
    }

    /// Cancels, then waits at most `patience`; returns the names of the tasks that still run, which is logged too.
    pub async fn shutdown(&self, patience: Duration) -> Vec<&'static str> {
        self.inner.token.cancel();
        self.inner.tracker.close();
        if tokio::time::timeout(patience, self.inner.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let laggards: Vec<&'static str> = self.inner.names().values().copied().collect();
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
