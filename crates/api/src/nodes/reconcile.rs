//! Reconciliation of one node: compares the sandboxes that run there with the desired ones.
//!
//! ```text
//!   desired, runs           confirmed: the owner renews the lease of its route
//!   not desired, runs       orphan: deleted on the node
//!   desired, does not run   ended: the owner tears it down
//! ```
//!
//! Takes no input and may be repeated at any time. The desired sandboxes are read before the node lists its own, so a
//! sandbox that starts in between is not taken for ended. The listed sandboxes are looked up among the desired ones
//! afterwards, so a sandbox that starts in between is not taken for an orphan.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt as _;
use hearth_cluster_api::{NodeError, RunningSandbox};
use hearth_stdx::chain;
use tokio::time::MissedTickBehavior;

use super::Member;
use crate::control::Control;

/// Orphans deleted concurrently on a node. Most of the time of a delete is spent waiting for the VMM to exit.
const ORPHAN_DELETES_MAX: usize = 8;

/// Reconciles the node until the server stops.
pub(crate) async fn run(control: Arc<Control>, member: Arc<Member>) {
    let stop = control.tasks.token();
    let mut timer = tokio::time::interval(control.config.reconcile_interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = member.nudge.notified() => {}
            _ = timer.tick() => {}
        }
        if !member.is_reachable() {
            // The node is reconciled when it reconnects.
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            outcome = reconcile(&control, &member) => match outcome {
                Ok(()) => { member.is_reconciled.send_replace(true); }
                Err(error) => {
                    tracing::warn!(node = %member.id, error = %chain(&error), "sandboxes of node not listed");
                    member.suspicion.notify_one();
                }
            }
        }
    }
}

/// Reconciles the node once. Cancel safe: the next pass repeats what was not done.
async fn reconcile(control: &Control, member: &Member) -> Result<(), NodeError> {
    let desired = control.live.running_on(&member.id);
    let observed = member.client.list().await?;
    let runs: HashSet<_> = observed.iter().map(|running| (&running.sandbox_id, running.execution_id)).collect();
    for (handle, execution_id) in desired {
        if runs.contains(&(handle.sandbox_id(), execution_id)) {
            handle.confirm_running();
        } else {
            handle.execution_ended(execution_id, "not running on its node".to_owned());
        }
    }
    futures::stream::iter(&observed)
        .for_each_concurrent(ORPHAN_DELETES_MAX, |running| delete_orphan(control, member, running))
        .await;
    Ok(())
}

/// Deletes a sandbox on the node if it has neither an owner nor a row. Failures are left to the next pass.
async fn delete_orphan(control: &Control, member: &Member, running: &RunningSandbox) {
    let RunningSandbox { sandbox_id, execution_id, team_id } = running;
    match control.is_known(sandbox_id, *execution_id).await {
        Ok(true) => return,
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(sandbox = %sandbox_id, error = %chain(&error), "desired state of sandbox unknown");
            return;
        }
    }
    tracing::warn!(
        node = %member.id, team = %team_id, sandbox = %sandbox_id, execution = %execution_id,
        "orphan found, deleting it"
    );
    if let Err(error) = member.client.delete(sandbox_id, *execution_id).await {
        tracing::warn!(sandbox = %sandbox_id, error = %chain(&error), "orphan not deleted, will retry");
    }
}
