//! Reconciler of rows, routes and timers.
//!
//! In normal operation the owners of sandboxes and the comparisons with nodes maintain the state. The reconciler
//! repairs the result of a fault in this process: a row whose owner has failed, a route without a sandbox, or a timer
//! that did not advance with the wall clock. It takes no input and is idempotent.

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
    #[error("reading sandboxes or deleting expired rows")]
    Store(#[from] StoreError),
    #[error("reading or removing routes")]
    Catalog(#[from] CatalogError),
}

/// Reconciles periodically until the server stops.
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
            tracing::warn!(error = %chain(&error), "reconciliation failed");
        }
    }
}

async fn pass(control: &Arc<Control>) -> Result<(), ReconcileError> {
    let now = now();
    for row in control.store.sandboxes().await? {
        match control.live.find(&row.sandbox_id) {
            Some(handle) if row.end_at <= now => handle.check_clock(),
            Some(_) => {}
            None => {
                // An owner deletes its row before it exits, so a row that still exists has no owner.
                if let Some(row) = control.store.sandbox(&row.sandbox_id).await? {
                    tracing::warn!(sandbox = %row.sandbox_id, "adopting sandbox without owner");
                    live::adopt(control, row);
                }
            }
        }
    }
    for route in control.catalog.list().await? {
        if !control.is_known(&route.sandbox_id, route.execution_id).await? {
            tracing::warn!(sandbox = %route.sandbox_id, "removing route without sandbox");
            control.catalog.remove(&route.sandbox_id, route.execution_id).await?;
        }
    }
    control.store.delete_expired_idempotent(now).await?;
    control.store.delete_expired_logins(now).await?;
    Ok(())
}
