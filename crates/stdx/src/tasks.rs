//! Tasks with an owner.
//!
//! No task in Hearth is detached: the code that starts tasks owns a [`TaskSet`] and passes its token to them. At
//! shutdown it cancels the set, waits for its tasks, and logs the names of those that did not stop in time.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type Names = BTreeMap<u64, &'static str>;

/// Set of named tasks that are cancelled together.
///
/// Clones share the set and are cheap: a proxy makes some for each request.
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

/// Removes a task's name from the set when the task ends, also by panic or abort.
struct NameGuard {
    set: Arc<Inner>,
    key: u64,
}

impl Drop for NameGuard {
    fn drop(&mut self) {
        self.set.names().remove(&self.key);
    }
}

impl Inner {
    fn names(&self) -> MutexGuard<'_, Names> {
        // The map stays valid when a holder of the lock panics: every change of it is a single call.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskSet {
    /// Creates an empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty set that is also cancelled when `parent` is.
    #[must_use]
    pub fn child_of(parent: &CancellationToken) -> Self {
        Self { inner: Arc::new(Inner { token: parent.child_token(), ..Inner::default() }) }
    }

    /// Token that is cancelled when the set shuts down. Tasks watch it.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.inner.token.clone()
    }

    /// Starts a task of this set. `name` is logged if the task does not stop in time.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let key = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.inner.names().insert(key, name);
        let guard = NameGuard { set: Arc::clone(&self.inner), key };
        self.inner.tracker.spawn(async move {
            let _guard = guard;
            future.await
        })
    }

    /// Returns the number of running tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.tracker.len()
    }

    /// Returns `true` if no task runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.tracker.is_empty()
    }

    /// Cancels the tasks, then waits at most `patience`. Returns, and logs, the names of the tasks that still run.
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
        tasks.spawn("cooperative", async move { token.cancelled().await });
        tasks.spawn("stuck", std::future::pending::<()>());
        assert_eq!(tasks.shutdown(Duration::from_secs(1)).await, ["stuck"]);
    }

    #[tokio::test]
    async fn a_parent_cancels_the_set() {
        let parent = CancellationToken::new();
        let tasks = TaskSet::child_of(&parent);
        let token = tasks.token();
        let task = tasks.spawn("child", async move { token.cancelled().await });
        parent.cancel();
        task.await.expect("the task ends");
        assert!(tasks.shutdown(Duration::from_secs(1)).await.is_empty());
    }
}
