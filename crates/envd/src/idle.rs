//! Giving back what a burst of work took.
//!
//! The allocator keeps the memory of what ended, in holes between what lives on. A guest is idle most of its life, and what its
//! daemon keeps is in every snapshot: once nothing has ended for a while, the holes go back to the kernel.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::process::RETENTION;
use crate::state::State;
use crate::sys;

/// How long it must have been quiet.
const QUIET: Duration = Duration::from_secs(2);
/// When the ends of processes have been forgotten, the memory of those is free as well.
const FORGOTTEN: Duration = RETENTION.saturating_add(Duration::from_secs(1));

/// Told of every end.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    stirred: Notify,
}

impl Idle {
    /// Something has ended that had memory.
    pub(crate) fn stir(&self) {
        self.stirred.notify_one();
    }
}

/// Waits for quiet after work, for ever. `forget` drops what has been remembered for long enough.
pub(crate) async fn run(state: Arc<State>, forget: impl Fn()) {
    loop {
        state.idle.stirred.notified().await;
        for quiet in [QUIET, FORGOTTEN] {
            while tokio::time::timeout(quiet, state.idle.stirred.notified()).await.is_ok() {}
            forget();
            // Takes milliseconds with a large heap, and the lock of the allocator.
            let _ = tokio::task::spawn_blocking(sys::give_memory_back).await;
        }
    }
}
