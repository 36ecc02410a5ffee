//! What runs on one node against what should.
//!
//! ```text
//!   runs there, should          confirmed: its owner keeps its route alive
//!   runs there, should not      an orphan: the node is asked to end it
//!   does not, but should        ended: its owner clears it away
//! ```
//!
//! Takes no input and may be repeated at any time. What should run is looked at before the node is asked, so a sandbox
//! that is started meanwhile is not taken for missing; what the node lists is looked for among the known ones
//! afterwards, so a sandbox that is started meanwhile is not taken for an orphan.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt as _;
use hearth_cluster_api::{NodeError, RunningSandbox};
use hearth_stdx::chain;
use tokio::time::MissedTickBehavior;

use super::Member;
use crate::control::Control;

/// Orphans that a node is asked to end at the same time: ending one is mostly waiting for its VMM.
const ORPHANS_AT_ONCE: usize = 8;

/// Compares until the server stops.
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
            // It is compared when it comes back.
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            outcome = compare(&control, &member) => match outcome {
                Ok(()) => { member.is_compared.send_replace(true); }
                Err(error) => {
                    tracing::warn!(node = %member.id, error = %chain(&error), "what runs on a node is not known");
                    member.suspicion.notify_one();
                }
            }
        }
    }
}

/// Cancel safe: every part of it is found again by the next comparison.
async fn compare(control: &Control, member: &Member) -> Result<(), NodeError> {
    let should = control.live.running_on(&member.id);
    let there = member.client.list().await?;
    let is_there: HashSet<_> = there.iter().map(|running| (&running.sandbox_id, running.execution_id)).collect();
    for (handle, execution_id) in should {
        if is_there.contains(&(handle.sandbox_id(), execution_id)) {
            handle.confirmed();
        } else {
            handle.ended(execution_id, "the node does not run it any more".to_owned());
        }
    }
    futures::stream::iter(&there)
        .for_each_concurrent(ORPHANS_AT_ONCE, |running| end_orphan(control, member, running))
        .await;
    Ok(())
}

/// Ends it if nobody knows it. Failures are for the next comparison.
async fn end_orphan(control: &Control, member: &Member, running: &RunningSandbox) {
    let RunningSandbox { sandbox_id, execution_id, team_id } = running;
    match control.is_known(sandbox_id, *execution_id).await {
        Ok(true) => return,
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(sandbox = %sandbox_id, error = %chain(&error), "whether a sandbox should run is not known");
            return;
        }
    }
    tracing::warn!(
        node = %member.id, team = %team_id, sandbox = %sandbox_id, execution = %execution_id,
        "a sandbox runs that should not: it is ended"
    );
    if let Err(error) = member.client.delete(sandbox_id, *execution_id).await {
        tracing::warn!(sandbox = %sandbox_id, error = %chain(&error), "an orphan was not ended yet");
    }
}
