//! Handle of a sandbox: the interface of its owner task to the rest of the control role.

use std::sync::Arc;
use std::time::Duration;

use hearth_store::Sandbox;
use hearth_types::{ExecutionId, SandboxId, TeamId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Placement;
use super::expiry::EndChange;
use super::state::{Decision, Rejection, Request, State};

/// State of a sandbox with its placement and progress, as its owner publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// A node is being chosen or is starting the sandbox.
    Creating {
        /// `None` until the create is sent to the first node.
        placement: Option<Placement>,
    },
    /// Clients can use the sandbox.
    Running { placement: Placement },
    /// The sandbox is being torn down.
    Killing {
        /// The execution may still run there.
        placement: Placement,
        progress: Progress,
    },
    /// The sandbox has neither a row nor a route, and its node holds nothing of it.
    Released,
}

/// Progress of a teardown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The teardown has begun; clients may still reach the sandbox.
    Begun,
    /// Clients can neither list nor reach the sandbox.
    Hidden,
    /// Hidden, but at least one attempt to release the sandbox failed; holds the latest error. Retried until it succeeds.
    Failing(RequestError),
}

impl Phase {
    pub(super) fn state(&self) -> State {
        match self {
            Self::Creating { .. } => State::Creating,
            Self::Running { .. } => State::Running,
            Self::Killing { .. } => State::Killing,
            Self::Released => State::Released,
        }
    }

    fn placement(&self) -> Option<&Placement> {
        match self {
            Self::Creating { placement } => placement.as_ref(),
            Self::Running { placement } | Self::Killing { placement, .. } => Some(placement),
            Self::Released => None,
        }
    }
}

/// Command to the owner: change the end time, and send the outcome to `reply`.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) request: Request,
    pub(super) change: EndChange,
    /// Longest lifetime that the caller's team may give to a sandbox, counted from its start.
    pub(super) length_max: Duration,
    pub(super) reply: Reply,
}

/// Receives the sandbox as it is after a command.
pub(super) type Reply = oneshot::Sender<Result<Sandbox, RequestError>>;

/// Report from a node that an execution of the sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExecutionEnded {
    pub(super) execution_id: ExecutionId,
    pub(super) reason: String,
}

/// Reason for a failed request to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// The state of the sandbox does not allow the request.
    Rejected(Rejection),
    /// The sandbox has reached the maximum length that its team allows.
    MaxLengthReached,
    /// The sandbox is hidden from clients, but its release is not confirmed yet and is being retried.
    NotReleased,
    /// The disk of the store is full. Already logged.
    StorageFull,
    /// Internal error. Already logged.
    Internal,
    /// The server is shutting down; the sandbox is unchanged.
    Stopping,
}

/// Handle of a sandbox that has an owner. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) sandbox_id: SandboxId,
    pub(super) team_id: TeamId,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) kill: CancellationToken,
    pub(super) ended: watch::Sender<Option<ExecutionEnded>>,
    pub(super) confirmed: Arc<Notify>,
    pub(super) clock: Arc<Notify>,
    pub(super) stop: CancellationToken,
}

impl Handle {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn sandbox_id(&self) -> &SandboxId {
        &self.inner.sandbox_id
    }

    pub(crate) fn team_id(&self) -> TeamId {
        self.inner.team_id
    }

    /// Returns true if the sandbox is running.
    pub(super) fn is_running(&self) -> bool {
        matches!(&*self.inner.phase.borrow(), Phase::Running { .. })
    }

    /// Returns true while the sandbox is being created.
    pub(super) fn is_creating(&self) -> bool {
        matches!(&*self.inner.phase.borrow(), Phase::Creating { .. })
    }

    /// Returns true if the sandbox has a row, which counts against its team's limit.
    pub(super) fn has_row(&self) -> bool {
        self.inner.phase.borrow().placement().is_some()
    }

    /// Returns the placement of the sandbox if it is running.
    pub(super) fn running_placement(&self) -> Option<Placement> {
        match &*self.inner.phase.borrow() {
            Phase::Running { placement } => Some(placement.clone()),
            Phase::Creating { .. } | Phase::Killing { .. } | Phase::Released => None,
        }
    }

    /// Returns true if this execution is the one that the owner is creating, running or killing.
    pub(crate) fn owns(&self, execution_id: ExecutionId) -> bool {
        self.inner.phase.borrow().placement().is_some_and(|placement| placement.execution_id == execution_id)
    }

    /// Kills the sandbox and waits until it is released. The kill continues when the future is dropped.
    ///
    /// A concurrent second kill returns once the sandbox is hidden; only the first one reports a failed release.
    pub(crate) async fn kill(&self) -> Result<(), RequestError> {
        let mut phase = self.inner.phase.clone();
        let state = phase.borrow_and_update().state();
        if let Decision::Reject(rejection) = state.decide(Request::Kill) {
            return Err(RequestError::Rejected(rejection));
        }
        let is_second = state == State::Killing;
        self.inner.kill.cancel();
        let settled = phase
            .wait_for(|phase| match phase {
                Phase::Released | Phase::Killing { progress: Progress::Failing(_), .. } => true,
                Phase::Killing { progress: Progress::Hidden, .. } => is_second,
                Phase::Killing { progress: Progress::Begun, .. } | Phase::Creating { .. } | Phase::Running { .. } => {
                    false
                }
            })
            .await;
        match settled.as_deref() {
            Ok(Phase::Killing { progress: Progress::Failing(why), .. }) if !is_second => Err(*why),
            Ok(_) => Ok(()),
            Err(_) => Err(self.owner_exit_error()),
        }
    }

    /// Changes the end time on behalf of a request, and returns the sandbox as it is afterwards.
    ///
    /// Once the command is queued, the owner applies it even if the future is dropped.
    pub(crate) async fn change_end(
        &self,
        request: Request,
        change: EndChange,
        length_max: Duration,
    ) -> Result<Sandbox, RequestError> {
        let mut phase = self.inner.phase.clone();
        loop {
            let state = phase.borrow_and_update().state();
            match state.decide(request) {
                Decision::Reject(rejection) => return Err(RequestError::Rejected(rejection)),
                Decision::Wait => {}
                Decision::Proceed => {
                    let (reply, outcome) = oneshot::channel();
                    let command = Command { request, change, length_max, reply };
                    if self.inner.commands.send(command).await.is_ok()
                        && let Ok(outcome) = outcome.await
                    {
                        return outcome;
                    }
                    // The owner left the state that was read above; the loop waits for its next phase.
                }
            }
            phase.changed().await.map_err(|_| self.owner_exit_error())?;
        }
    }

    /// Reports that an execution ended on its node.
    ///
    /// The report is stored while the owner is busy, and ignored if the execution is not the current one.
    pub(crate) fn execution_ended(&self, execution_id: ExecutionId, reason: String) {
        if self.owns(execution_id) {
            self.inner.ended.send_replace(Some(ExecutionEnded { execution_id, reason }));
        }
    }

    /// Reports that the node runs the sandbox. The owner then renews the lease of its route.
    pub(crate) fn confirm_running(&self) {
        self.inner.confirmed.notify_one();
    }

    /// Wakes the owner to compare the end time with the wall clock, which may have been set.
    pub(crate) fn check_clock(&self) {
        self.inner.clock.notify_one();
    }

    /// Returns the error for a request whose owner exited without a reply.
    fn owner_exit_error(&self) -> RequestError {
        if self.inner.stop.is_cancelled() { RequestError::Stopping } else { RequestError::Internal }
    }
}
