//! The news of one node.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use hearth_cluster_api::{NodeError, NodeEvent, NodeStatus};
use hearth_stdx::{Backoff, chain};

use super::Member;
use crate::control::Control;

/// Between attempts to reach a node: soon, because a restarted node is back within a second; not in a storm.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The node's status is its first word, said without waiting for anything.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a node is not followed any more.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("watching the node")]
    Watch(#[source] NodeError),
    #[error("the node ended its news")]
    Ended,
    #[error("the node did not tell its status in time")]
    Silent,
    #[error("the node calls itself `{name}`: two nodes may have been confused in the configuration")]
    OtherNode { name: String },
    #[error("the node does not answer any more")]
    Suspected,
}

/// Follows a node until the server stops.
pub(crate) async fn run(control: Arc<Control>, member: Arc<Member>) {
    let stop = control.tasks.token();
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
    loop {
        let lost = tokio::select! {
            () = stop.cancelled() => return,
            lost = follow(&control, &member) => lost,
        };
        // Once for each loss, not for each attempt to get it back.
        if member.lost() {
            backoff.reset();
            tracing::warn!(node = %member.id, error = %chain(&lost), "a node was lost");
        } else {
            tracing::debug!(node = %member.id, error = %chain(&lost), "a node cannot be reached");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.advance()) => {}
        }
    }
}

async fn follow(control: &Control, member: &Member) -> Lost {
    let watch = match member.client.watch().await {
        Ok(watch) => watch,
        Err(error) => return Lost::Watch(error),
    };
    let mut news = pin!(watch);
    match tokio::time::timeout(STATUS_TIMEOUT, news.next()).await {
        Ok(Some(Ok(NodeEvent::Status(status)))) => {
            if let Err(lost) = accept(member, *status) {
                return lost;
            }
        }
        Ok(Some(Ok(NodeEvent::SandboxEnded { .. }))) | Err(_) => return Lost::Silent,
        Ok(Some(Err(error))) => return Lost::Watch(error),
        Ok(None) => return Lost::Ended,
    }
    tracing::info!(node = %member.id, "a node can be reached");
    // What happened before the watch began is not told.
    member.nudge();
    loop {
        let event = tokio::select! {
            event = news.next() => event,
            () = member.suspicion.notified() => return Lost::Suspected,
        };
        match event {
            Some(Ok(NodeEvent::Status(status))) => {
                if let Err(lost) = accept(member, *status) {
                    return lost;
                }
            }
            Some(Ok(NodeEvent::SandboxEnded { sandbox_id, execution_id, reason })) => {
                match control.live.find(&sandbox_id) {
                    Some(handle) => handle.ended(execution_id, reason),
                    None => tracing::info!(sandbox = %sandbox_id, reason, "a sandbox ended that nobody knows"),
                }
            }
            Some(Err(error)) => return Lost::Watch(error),
            None => return Lost::Ended,
        }
    }
}

fn accept(member: &Member, status: NodeStatus) -> Result<(), Lost> {
    if status.node_id != member.id {
        return Err(Lost::OtherNode { name: status.node_id.to_string() });
    }
    member.seen(status);
    Ok(())
}
