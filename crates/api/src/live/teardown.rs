//! Teardown of a sandbox: hides it from clients, then releases it.
//!
//! The steps are: mark the row as killing (a server that crashes afterwards resumes the teardown), remove the route,
//! delete the sandbox on its node, delete the row. A failed release is retried until it succeeds, because no other task
//! would do it: as long as the row exists, the sandbox has an owner.

use std::time::Duration;

use hearth_cluster_api::NodeError;
use hearth_stdx::{Backoff, chain};
use hearth_store::{Sandbox, SandboxState, StateMove, UpdateSandboxError};

use super::Placement;
use super::handle::{Phase, Progress, Reply, RequestError};
use super::owner::Owner;

/// Shortest and longest pause between two attempts to release a sandbox.
///
/// The first pause gives a busy node time to recover. The longest one limits the load that thousands of owners put on a
/// node that is down; they also wake up when the node reconnects.
const RELEASE_PAUSE_FIRST: Duration = Duration::from_millis(100);
const RELEASE_PAUSE_MAX: Duration = Duration::from_secs(30);

/// A sandbox to tear down.
pub(super) struct Teardown {
    row: Sandbox,
    /// Set if the node may hold resources of the sandbox.
    is_on_node: bool,
    /// Receives the sandbox once clients can neither list nor reach it.
    reply: Option<Reply>,
}

impl Teardown {
    /// Tears down a sandbox that its node may hold.
    pub(super) fn new(row: Sandbox) -> Self {
        Self { row, is_on_node: true, reply: None }
    }

    /// Tears down a sandbox whose node reported that it released the execution.
    pub(super) fn of_ended_execution(row: Sandbox) -> Self {
        Self { row, is_on_node: false, reply: None }
    }

    /// Sets the channel that receives the sandbox once clients can neither list nor reach it.
    pub(super) fn with_reply(self, reply: Reply) -> Self {
        Self { reply: Some(reply), ..self }
    }
}

/// Reason for a failed attempt to release a sandbox.
#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error("deleting the sandbox on its node")]
    Node(#[source] NodeError),
    #[error("removing the route of the sandbox")]
    Catalog(#[source] hearth_catalog::Error),
    #[error("deleting the row of the sandbox")]
    Store(#[source] UpdateSandboxError),
}

impl ReleaseError {
    /// Converts to the error that the client receives.
    fn request_error(&self) -> RequestError {
        match self {
            Self::Store(UpdateSandboxError::Store(error)) if error.is_full() => RequestError::StorageFull,
            Self::Node(_) | Self::Catalog(_) | Self::Store(_) => RequestError::NotReleased,
        }
    }
}

impl Owner {
    /// Tears down the sandbox. Returns when it is released or the server stops.
    pub(super) async fn tear_down(mut self, mut teardown: Teardown) {
        let placement = Placement { node_id: teardown.row.node_id.clone(), execution_id: teardown.row.execution_id };
        let killing = |progress| Phase::Killing { placement: placement.clone(), progress };
        self.transition_to(killing(Progress::Begun));
        // Commands that are still queued get no reply; their senders read the new phase instead.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        self.hide(&mut teardown.row).await;
        self.transition_to(killing(Progress::Hidden));
        if let Some(reply) = teardown.reply.take() {
            let _ = reply.send(Ok(teardown.row.clone()));
        }
        let mut backoff = Backoff::new(RELEASE_PAUSE_FIRST, RELEASE_PAUSE_MAX);
        while let Err(error) = self.release(&mut teardown).await {
            tracing::warn!(error = %chain(&error), node = %teardown.row.node_id, "sandbox not released, will retry");
            self.transition_to(killing(Progress::Failing(error.request_error())));
            let node = self.control.nodes.find(&teardown.row.node_id);
            let reconnected = async {
                match node {
                    Some(node) => node.wait_for_reconnect().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(backoff.advance()) => {}
                () = reconnected => {}
                // The row is marked as killing, so the next server continues the teardown.
                () = self.stop.cancelled() => return,
            }
        }
        self.transition_to(Phase::Released);
    }

    /// Hides the sandbox: afterwards clients can neither list nor reach it.
    ///
    /// Failures are only logged, because the release that follows removes the route and the row.
    async fn hide(&self, row: &mut Sandbox) {
        if row.state != SandboxState::Killing {
            let step = StateMove { from: row.state, to: SandboxState::Killing };
            match self.control.store.set_sandbox_state(&row.sandbox_id, row.execution_id, step).await {
                Ok(()) => row.state = SandboxState::Killing,
                Err(error) => tracing::warn!(error = %chain(&error), "sandbox not marked as killing"),
            }
        }
        if let Err(error) = self.control.catalog.remove(&row.sandbox_id, row.execution_id).await {
            tracing::warn!(error = %chain(&error), "route of killed sandbox not removed, will retry");
        }
    }

    async fn release(&self, teardown: &mut Teardown) -> Result<(), ReleaseError> {
        let row = &teardown.row;
        if teardown.is_on_node {
            match self.control.nodes.find(&row.node_id) {
                Some(node) => match node.client.delete(&row.sandbox_id, row.execution_id).await {
                    Ok(existed) => tracing::info!(existed, "sandbox deleted on node"),
                    // The node runs another execution of the sandbox, so this one has ended.
                    Err(NodeError::Rejected(reason)) => tracing::warn!(reason, "node runs another execution"),
                    Err(error) => return Err(ReleaseError::Node(error)),
                },
                None => tracing::warn!(node = %row.node_id, "node of sandbox is not configured"),
            }
        }
        teardown.is_on_node = false;
        self.control.catalog.remove(&row.sandbox_id, row.execution_id).await.map_err(ReleaseError::Catalog)?;
        match self.control.store.delete_sandbox(&row.sandbox_id, row.execution_id).await {
            Ok(()) | Err(UpdateSandboxError::NotFound { .. }) => Ok(()),
            // The row belongs to a newer execution and must not be deleted.
            Err(error @ UpdateSandboxError::Superseded { .. }) => {
                tracing::warn!(error = %chain(&error), "row of another execution not deleted");
                Ok(())
            }
            Err(error) => Err(ReleaseError::Store(error)),
        }
    }
}
