//! Release of free memory after a burst of work.
//!
//! The allocator retains freed memory in holes between live allocations. A guest is idle most of the time, and its
//! daemon's memory is in every snapshot: once no work has finished for a while, the holes are released to the kernel.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::process::RETENTION;
use crate::state::State;
use crate::sys;

/// Time without finished work before memory is released.
const QUIET: Duration = Duration::from_secs(2);
/// Time after which retained process exits have expired, so that their memory is free too.
const EXPIRED: Duration = RETENTION.saturating_add(Duration::from_secs(1));

/// Notification of finished work.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    finished: Notify,
}

impl Idle {
    /// Reports that work with memory has finished.
    pub(crate) fn work_finished(&self) {
        self.finished.notify_one();
    }
}

/// Releases memory after each burst of work; never returns. `drop_expired` drops expired records.
pub(crate) async fn run(state: Arc<State>, drop_expired: impl Fn()) {
    loop {
        state.idle.finished.notified().await;
        for quiet in [QUIET, EXPIRED] {
            while tokio::time::timeout(quiet, state.idle.finished.notified()).await.is_ok() {}
            drop_expired();
            // Takes milliseconds with a large heap, and holds the allocator's lock.
            let _ = tokio::task::spawn_blocking(sys::release_free_memory).await;
        }
    }
}
