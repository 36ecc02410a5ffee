//! How a sandbox ends.
//!
//! First it is hidden, then it is released: the row says that it is being killed (so that a crash from here on leads to
//! the same end), its route goes, the node ends it, its row goes. Whatever fails is tried until it succeeds, because
//! there is nobody else who would: as long as the row is there, somebody owns the sandbox.

use std::time::Duration;

use hearth_cluster_api::NodeError;
use hearth_stdx::{Backoff, chain};
use hearth_store::{Sandbox, SandboxState, StateMove, UpdateSandboxError};

use super::Place;
use super::handle::{Phase, Progress, Reply, Unanswered};
use super::owner::Owner;

/// Between two attempts to release a sandbox. The first pause is what a busy node needs, the longest one keeps
/// thousands of owners from storming a node that is down; its return wakes them anyway.
const RELEASE_PAUSE_FIRST: Duration = Duration::from_millis(100);
const RELEASE_PAUSE_MAX: Duration = Duration::from_secs(30);

/// A sandbox to end.
pub(super) struct Ending {
    row: Sandbox,
    /// Whether its node may have something of it.
    is_on_node: bool,
    /// Told when clients can neither see nor reach it.
    reply: Option<Reply>,
}

impl Ending {
    /// The node may have it.
    pub(super) fn of(row: Sandbox) -> Self {
        Self { row, is_on_node: true, reply: None }
    }

    /// The node said that nothing of it is left there.
    pub(super) fn of_ended(row: Sandbox) -> Self {
        Self { row, is_on_node: false, reply: None }
    }

    /// Tells as soon as clients can neither see nor reach it.
    pub(super) fn telling(self, reply: Reply) -> Self {
        Self { reply: Some(reply), ..self }
    }
}

/// Why a sandbox is not released yet.
#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error("asking the node to end it")]
    Node(#[source] NodeError),
    #[error("removing its route")]
    Catalog(#[source] hearth_catalog::Error),
    #[error("deleting its row")]
    Store(#[source] UpdateSandboxError),
}

impl ReleaseError {
    /// Reply to the client that requested the end.
    fn told(&self) -> Unanswered {
        match self {
            Self::Store(UpdateSandboxError::Store(error)) if error.is_full() => Unanswered::StorageFull,
            Self::Node(_) | Self::Catalog(_) | Self::Store(_) => Unanswered::NotReleased,
        }
    }
}

impl Owner {
    /// Ends the sandbox. Returns when nothing is left of it, or the server goes away.
    pub(super) async fn end(mut self, mut ending: Ending) {
        let place = Place { node_id: ending.row.node_id.clone(), execution_id: ending.row.execution_id };
        let killing = |progress| Phase::Killing { place: place.clone(), progress };
        self.become_(killing(Progress::Begun));
        // Orders that came too late are answered by the phase.
        self.orders.close();
        while self.orders.try_recv().is_ok() {}
        self.hide(&mut ending.row).await;
        self.become_(killing(Progress::Hidden));
        if let Some(reply) = ending.reply.take() {
            let _ = reply.send(Ok(ending.row.clone()));
        }
        let mut backoff = Backoff::new(RELEASE_PAUSE_FIRST, RELEASE_PAUSE_MAX);
        while let Err(error) = self.release(&mut ending).await {
            tracing::warn!(error = %chain(&error), node = %ending.row.node_id, "a sandbox is not released yet");
            self.become_(killing(Progress::Failing(error.told())));
            let node = self.control.nodes.find(&ending.row.node_id);
            let back = async {
                match node {
                    Some(node) => node.comes_back().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(backoff.advance()) => {}
                () = back => {}
                // The row says what is to be done; the next server does it.
                () = self.stop.cancelled() => return,
            }
        }
        self.become_(Phase::Gone);
    }

    /// From here on clients can neither see nor reach it. Failures do not stop the end; they are made good by the
    /// release.
    async fn hide(&self, row: &mut Sandbox) {
        if row.state != SandboxState::Killing {
            let step = StateMove { from: row.state, to: SandboxState::Killing };
            match self.control.store.set_sandbox_state(&row.sandbox_id, row.execution_id, step).await {
                Ok(()) => row.state = SandboxState::Killing,
                Err(error) => tracing::warn!(error = %chain(&error), "a kill could not be written down beforehand"),
            }
        }
        if let Err(error) = self.control.catalog.remove(&row.sandbox_id, row.execution_id).await {
            tracing::warn!(error = %chain(&error), "the route of a sandbox that ends was not removed yet");
        }
    }

    async fn release(&self, ending: &mut Ending) -> Result<(), ReleaseError> {
        let row = &ending.row;
        if ending.is_on_node {
            match self.control.nodes.find(&row.node_id) {
                Some(node) => match node.client.delete(&row.sandbox_id, row.execution_id).await {
                    Ok(existed) => tracing::info!(existed, "the node ended the sandbox"),
                    // The node runs another execution: ours is over.
                    Err(NodeError::Refused(reason)) => tracing::warn!(reason, "the node has another execution"),
                    Err(error) => return Err(ReleaseError::Node(error)),
                },
                None => tracing::warn!(node = %row.node_id, "the node of a sandbox is not one of ours any more"),
            }
        }
        ending.is_on_node = false;
        self.control.catalog.remove(&row.sandbox_id, row.execution_id).await.map_err(ReleaseError::Catalog)?;
        match self.control.store.delete_sandbox(&row.sandbox_id, row.execution_id).await {
            Ok(()) | Err(UpdateSandboxError::NotFound { .. }) => Ok(()),
            // Then the row is not ours to delete.
            Err(error @ UpdateSandboxError::Superseded { .. }) => {
                tracing::warn!(error = %chain(&error), "the row of an ended execution stays");
                Ok(())
            }
            Err(error) => Err(ReleaseError::Store(error)),
        }
    }
}
