//! What should be, against what this server looks after.
//!
//! The owners of sandboxes and the comparisons with nodes do the daily work. This closes the gaps that they leave when
//! something in this process goes wrong: a row without an owner (which failed), a route without a sandbox, a timer that
//! slept while the wall clock went on. Takes no input and may be repeated at any time.

use std::sync::Arc;

use hearth_catalog::Error as CatalogError;
use hearth_stdx::chain;
use hearth_store::Error as StoreError;
use tokio::time::MissedTickBehavior;

use crate::control::Control;
use crate::live;
use crate::live::expiry::now;

#[derive(Debug, thiserror::Error)]
enum ReconcileError {
    #[error("reading which sandboxes there should be")]
    Store(#[from] StoreError),
    #[error("reading or removing routes")]
    Catalog(#[from] CatalogError),
}

/// Reconciles until the server stops.
pub(crate) async fn run(control: Arc<Control>) {
    let stop = control.tasks.token();
    let mut timer = tokio::time::interval(control.config.reconcile_interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        if let Err(error) = pass(&control).await {
            tracing::warn!(error = %chain(&error), "a reconciliation was not finished");
        }
    }
}

async fn pass(control: &Arc<Control>) -> Result<(), ReconcileError> {
    let now = now();
    for row in control.store.sandboxes().await? {
        match control.live.find(&row.sandbox_id) {
            Some(handle) if row.end_at <= now => handle.look_at_clock(),
            Some(_) => {}
            None => {
                // An owner deletes its row before it leaves, so a row that is still there has none.
                if let Some(row) = control.store.sandbox(&row.sandbox_id).await? {
                    tracing::warn!(sandbox = %row.sandbox_id, "a sandbox had no owner");
                    live::adopt(control, row);
                }
            }
        }
    }
    for route in control.catalog.list().await? {
        if !control.is_known(&route.sandbox_id, route.execution_id).await? {
            tracing::warn!(sandbox = %route.sandbox_id, "a route led to no sandbox");
            control.catalog.remove(&route.sandbox_id, route.execution_id).await?;
        }
    }
    control.store.forget_expired_named(now).await?;
    control.store.forget_expired_logins(now).await?;
    Ok(())
}
