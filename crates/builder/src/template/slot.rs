//! The network slot of a template's VM, for a build that may be dropped at any time.

use std::ops::Deref;

use hearth_network::{Pool, Slot};

use crate::Error;

/// A slot that is removed in the background if the build is dropped before it released it.
pub(super) struct BuildSlot<'a> {
    pool: &'a Pool,
    /// Present until the release.
    slot: Option<Slot>,
}

impl<'a> BuildSlot<'a> {
    pub(super) async fn acquire(pool: &'a Pool) -> Result<Self, Error> {
        let slot = pool.acquire(true).await.map_err(Error::Network)?;
        Ok(Self { pool, slot: Some(slot) })
    }

    /// Releases the slot; returns when it is removed. The VM in it must have exited.
    pub(super) async fn release(mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.release(slot).await;
        }
    }
}

impl Deref for BuildSlot<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        self.slot.as_ref().expect("only the release, which consumes this, takes it")
    }
}

impl Drop for BuildSlot<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.abandon(&slot);
        }
    }
}
