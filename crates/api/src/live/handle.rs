//! What others hold of a sandbox.

use std::sync::Arc;
use std::time::Duration;

use hearth_store::Sandbox;
use hearth_types::{ExecutionId, SandboxId, TeamId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Place;
use super::expiry::Wish;
use super::state::{Refusal, Request, State, Verdict};

/// Where a sandbox's owner is, for those who wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// A node is being found or starting it.
    Creating {
        /// The node that was asked.
        place: Option<Place>,
    },
    /// It can be used.
    Running {
        /// Where it runs.
        place: Place,
    },
    /// It is being ended.
    Killing {
        /// Where it may still run.
        place: Place,
        /// How far that is.
        progress: Progress,
    },
    /// Nothing of it is left.
    Gone,
}

/// How far the end of a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Decided.
    Begun,
    /// Clients can neither see nor reach it any more.
    Hidden,
    /// The same, but releasing it has failed at least once, last for this reason. It is tried until it succeeds.
    Failing(Unanswered),
}

impl Phase {
    pub(super) fn state(&self) -> State {
        match self {
            Self::Creating { .. } => State::Creating,
            Self::Running { .. } => State::Running,
            Self::Killing { .. } => State::Killing,
            Self::Gone => State::Gone,
        }
    }

    fn place(&self) -> Option<&Place> {
        match self {
            Self::Creating { place } => place.as_ref(),
            Self::Running { place } | Self::Killing { place, .. } => Some(place),
            Self::Gone => None,
        }
    }
}

/// A request for another end, and where its answer goes.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) request: Request,
    pub(super) wish: Wish,
    /// Longest life that the team of the caller may give.
    pub(super) length_max: Duration,
    pub(super) reply: Reply,
}

/// Where the sandbox as it is after an order goes.
pub(super) type Reply = oneshot::Sender<Result<Sandbox, Unanswered>>;

/// A node's word that a run of the sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) execution_id: ExecutionId,
    pub(super) reason: String,
}

/// Why a request to a sandbox was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It is in the wrong state.
    Refused(Refusal),
    /// It has lived as long as it may.
    LengthUsedUp,
    /// It is hidden from clients, but a node or the store did not confirm that nothing is left. It is tried until they
    /// do.
    NotReleased,
    /// The store's disk is full. It was logged.
    StorageFull,
    /// Something went wrong, and was logged.
    Broken,
    /// The server is going away; the sandbox is as it was.
    Stopping,
}

/// A sandbox that is looked after. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) sandbox_id: SandboxId,
    pub(super) team_id: TeamId,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) kill: CancellationToken,
    pub(super) ended: watch::Sender<Option<Ended>>,
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

    /// Whether it runs.
    pub(super) fn is_running(&self) -> bool {
        matches!(&*self.inner.phase.borrow(), Phase::Running { .. })
    }

    /// Returns whether it is being created.
    pub(super) fn is_creating(&self) -> bool {
        matches!(&*self.inner.phase.borrow(), Phase::Creating { .. })
    }

    /// Returns whether it has a row, and so counts against its team's limit.
    pub(super) fn has_row(&self) -> bool {
        self.inner.phase.borrow().place().is_some()
    }

    /// Where it runs; `None`: it does not.
    pub(super) fn runs_at(&self) -> Option<Place> {
        match &*self.inner.phase.borrow() {
            Phase::Running { place } => Some(place.clone()),
            Phase::Creating { .. } | Phase::Killing { .. } | Phase::Gone => None,
        }
    }

    /// Whether this run of the sandbox is being started, in use or being ended.
    pub(crate) fn owns(&self, execution_id: ExecutionId) -> bool {
        self.inner.phase.borrow().place().is_some_and(|place| place.execution_id == execution_id)
    }

    /// Ends the sandbox, and waits until nothing of it is left. The end goes on when the future is dropped.
    ///
    /// Who comes second only waits until clients can neither see nor reach it: the first one answers for the rest.
    pub(crate) async fn kill(&self) -> Result<(), Unanswered> {
        let mut phase = self.inner.phase.clone();
        let state = phase.borrow_and_update().state();
        if let Verdict::Refuse(refusal) = state.decide(Request::Kill) {
            return Err(Unanswered::Refused(refusal));
        }
        let is_second = state == State::Killing;
        self.inner.kill.cancel();
        let settled = phase
            .wait_for(|phase| match phase {
                Phase::Gone | Phase::Killing { progress: Progress::Failing(_), .. } => true,
                Phase::Killing { progress: Progress::Hidden, .. } => is_second,
                Phase::Killing { progress: Progress::Begun, .. } | Phase::Creating { .. } | Phase::Running { .. } => {
                    false
                }
            })
            .await;
        match settled.as_deref() {
            Ok(Phase::Killing { progress: Progress::Failing(why), .. }) if !is_second => Err(*why),
            Ok(_) => Ok(()),
            Err(_) => Err(self.left()),
        }
    }

    /// Asks for another end, in the name of a request. Returns the sandbox as it is afterwards. The owner does what was
    /// asked even when the future is dropped.
    pub(crate) async fn wish(&self, request: Request, wish: Wish, length_max: Duration) -> Result<Sandbox, Unanswered> {
        let mut phase = self.inner.phase.clone();
        loop {
            let state = phase.borrow_and_update().state();
            match state.decide(request) {
                Verdict::Refuse(refusal) => return Err(Unanswered::Refused(refusal)),
                Verdict::Wait => {}
                Verdict::Proceed => {
                    let (reply, answer) = oneshot::channel();
                    let order = Order { request, wish, length_max, reply };
                    if self.inner.orders.send(order).await.is_ok()
                        && let Ok(answer) = answer.await
                    {
                        return answer;
                    }
                    // The state changed after it was looked at; the owner will tell to what.
                }
            }
            phase.changed().await.map_err(|_| self.left())?;
        }
    }

    /// A node says that this run ended. Not lost if the owner is busy; ignored if the run is not the present one.
    pub(crate) fn ended(&self, execution_id: ExecutionId, reason: String) {
        if self.owns(execution_id) {
            self.inner.ended.send_replace(Some(Ended { execution_id, reason }));
        }
    }

    /// A node says that it runs it: its route may live on.
    pub(crate) fn confirmed(&self) {
        self.inner.confirmed.notify_one();
    }

    /// The wall clock may have been moved: the owner looks at it.
    pub(crate) fn look_at_clock(&self) {
        self.inner.clock.notify_one();
    }

    /// Why an owner left without a word.
    fn left(&self) -> Unanswered {
        if self.inner.stop.is_cancelled() { Unanswered::Stopping } else { Unanswered::Broken }
    }
}
