//! Subscription to the event stream of one node.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use hearth_cluster_api::{NodeError, NodeEvent, NodeStatus};
use hearth_stdx::{Backoff, chain};

use super::Member;
use crate::control::Control;

/// Shortest and longest pause between attempts to connect.
///
/// The first one is short, because a restarted node is reachable again within a second; the longest one limits the load.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Limit for the first event, the node's status. The node sends it immediately after the stream opens.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason for the end of a subscription.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("watching the node")]
    Watch(#[source] NodeError),
    #[error("the node closed its event stream")]
    Closed,
    #[error("the node did not send its status first, or not in time")]
    NoStatus,
    #[error("the node reports the id `{name}`: two nodes may be swapped in the configuration")]
    OtherNode { name: String },
    #[error("a request to the node failed")]
    Suspected,
}

/// Follows the event stream of a node, and reconnects, until the server stops.
pub(crate) async fn run(control: Arc<Control>, member: Arc<Member>) {
    let stop = control.tasks.token();
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
    loop {
        let error = tokio::select! {
            () = stop.cancelled() => return,
            error = follow(&control, &member) => error,
        };
        // Warns once for each loss, not for each attempt to reconnect.
        if member.mark_unreachable() {
            backoff.reset();
            tracing::warn!(node = %member.id, error = %chain(&error), "node lost");
        } else {
            tracing::debug!(node = %member.id, error = %chain(&error), "node unreachable");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.advance()) => {}
        }
    }
}

/// Follows the event stream until it fails.
async fn follow(control: &Control, member: &Member) -> FollowError {
    let watch = match member.client.watch().await {
        Ok(watch) => watch,
        Err(error) => return FollowError::Watch(error),
    };
    let mut events = pin!(watch);
    match tokio::time::timeout(STATUS_TIMEOUT, events.next()).await {
        Ok(Some(Ok(NodeEvent::Status(status)))) => {
            if let Err(error) = accept(member, *status) {
                return error;
            }
        }
        Ok(Some(Ok(NodeEvent::SandboxEnded { .. }))) | Err(_) => return FollowError::NoStatus,
        Ok(Some(Err(error))) => return FollowError::Watch(error),
        Ok(None) => return FollowError::Closed,
    }
    tracing::info!(node = %member.id, "node reachable");
    // The stream does not repeat events from before it was opened.
    member.nudge();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = member.suspicion.notified() => return FollowError::Suspected,
        };
        match event {
            Some(Ok(NodeEvent::Status(status))) => {
                if let Err(error) = accept(member, *status) {
                    return error;
                }
            }
            Some(Ok(NodeEvent::SandboxEnded { sandbox_id, execution_id, reason })) => {
                match control.live.find(&sandbox_id) {
                    Some(handle) => handle.execution_ended(execution_id, reason),
                    None => tracing::info!(sandbox = %sandbox_id, reason, "sandbox without owner ended on node"),
                }
            }
            Some(Err(error)) => return FollowError::Watch(error),
            None => return FollowError::Closed,
        }
    }
}

/// Stores a status, unless another node sent it.
fn accept(member: &Member, status: NodeStatus) -> Result<(), FollowError> {
    if status.node_id != member.id {
        return Err(FollowError::OtherNode { name: status.node_id.to_string() });
    }
    member.update_status(status);
    Ok(())
}
