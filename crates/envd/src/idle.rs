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
const FORGOTTEN: Duration = RETENTION.saturating_add(Duration::from_secs(1));

/// Notification of finished work.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    stirred: Notify,
}

impl Idle {
    /// Reports that work with memory has finished.
    pub(crate) fn stir(&self) {
        self.stirred.notify_one();
    }
}

/// Releases memory after each burst of work; never returns. `forget` drops expired records.
pub(crate) async fn run(state: Arc<State>, forget: impl Fn()) {
    loop {
        state.idle.stirred.notified().await;
        for quiet in [QUIET, FORGOTTEN] {
            while tokio::time::timeout(quiet, state.idle.stirred.notified()).await.is_ok() {}
            forget();
            // Takes milliseconds with a large heap, and holds the allocator's lock.
            let _ = tokio::task::spawn_blocking(sys::give_memory_back).await;
        }
    }
}
