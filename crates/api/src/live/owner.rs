//! The task that owns a sandbox: its channels, its start (by a create or an adoption) and its phase transitions.

use std::sync::Arc;
use std::time::Duration;

use hearth_store::{ResolvedTemplate, Sandbox, SandboxState, Team};
use hearth_types::{SandboxId, TeamId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::create::{CreateError, Creation};
use super::handle::{Command, ExecutionEnded, Handle, Inner, Phase, Progress};
use super::teardown::Teardown;
use super::{Placement, Registration};
use crate::control::{Control, TEAM_CREATES_MAX};
use crate::nodes::Reservation;

/// Commands queued while the owner writes to the store. Further callers wait until the queue has room.
const COMMANDS_QUEUED_MAX: usize = 16;
/// Time that a create of a team at its limit waits for a sandbox to end before it is rejected.
///
/// Without it, clients that poll for capacity, most of them without a pause, would keep a processor busy with rejections.
const LIMIT_PAUSE: Duration = Duration::from_millis(200);

/// The owner of one sandbox.
pub(super) struct Owner {
    pub(super) control: Arc<Control>,
    pub(super) sandbox_id: SandboxId,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) kill: CancellationToken,
    pub(super) ended: watch::Receiver<Option<ExecutionEnded>>,
    pub(super) confirmed: Arc<Notify>,
    pub(super) clock: Arc<Notify>,
    pub(super) stop: CancellationToken,
    /// Counts the sandbox on its node.
    pub(super) reservation: Option<Reservation>,
    // Dropped last: a sandbox without a handle is taken for released.
    _registration: Registration,
}

/// Creates a sandbox in a task that continues when the future is dropped. `budget` limits the time until it has started.
pub(crate) async fn create(
    control: &Arc<Control>,
    team: &Team,
    resolved: ResolvedTemplate,
    creation: Creation,
    budget: Duration,
) -> Result<Sandbox, CreateError> {
    let team_id = team.id;
    let max = team.limits.sandboxes_max;
    // The store decides. This check prevents a team that retries at its limit from occupying the store's only write lock.
    let mut counts = control.live.team_counts(team_id);
    if counts.rows >= max {
        tokio::time::sleep(LIMIT_PAUSE).await;
        counts = control.live.team_counts(team_id);
        if counts.rows >= max {
            return Err(CreateError::LimitReached { max });
        }
    }
    if counts.creating >= TEAM_CREATES_MAX {
        return Err(CreateError::Busy);
    }
    let permit = Arc::clone(&control.creates).try_acquire_owned().map_err(|_| CreateError::Busy)?;
    let sandbox_id = SandboxId::generate();
    let span = tracing::info_span!(parent: None, "sandbox", team = %team_id, sandbox = %sandbox_id);
    span.follows_from(tracing::Span::current());
    let owner =
        Owner::new(control, sandbox_id, team_id, Phase::Creating { placement: None }).ok_or(CreateError::Internal)?;
    let (reply, outcome) = oneshot::channel();
    let deadline = Instant::now() + budget;
    let task = async move {
        owner.create(team_id, resolved, creation, deadline, reply, permit).await;
    };
    control.tasks.spawn("sandbox", task.instrument(span));
    outcome.await.unwrap_or(Err(CreateError::Internal))
}

/// Starts an owner for a row that a previous server or a failed owner left. Does nothing if the sandbox has an owner.
pub(crate) fn adopt(control: &Arc<Control>, row: Sandbox) {
    let placement = Placement { node_id: row.node_id.clone(), execution_id: row.execution_id };
    let phase = match row.state {
        SandboxState::Running => Phase::Running { placement },
        // The node may or may not have started a sandbox in `Creating`, and no client has received its id.
        SandboxState::Creating | SandboxState::Killing => Phase::Killing { placement, progress: Progress::Begun },
    };
    let is_running = matches!(phase, Phase::Running { .. });
    let Some(mut owner) = Owner::new(control, row.sandbox_id.clone(), row.team_id, phase) else { return };
    let span = tracing::info_span!(
        parent: None, "sandbox", team = %row.team_id, sandbox = %row.sandbox_id, execution = %row.execution_id
    );
    let task = async move {
        let node = owner.control.nodes.find(&row.node_id);
        owner.reservation = node.map(|node| node.reserve());
        tracing::info!(node = %row.node_id, state = row.state.as_str(), end_at = %row.end_at, "sandbox adopted");
        // The sandboxes of a node that is no longer configured are torn down.
        if is_running && owner.reservation.is_some() {
            owner.run(row).await;
        } else {
            owner.tear_down(Teardown::new(row)).await;
        }
    };
    control.tasks.spawn("sandbox", task.instrument(span));
}

impl Owner {
    /// Creates an owner and registers its handle. Returns `None` if the sandbox has an owner already.
    fn new(control: &Arc<Control>, sandbox_id: SandboxId, team_id: TeamId, phase: Phase) -> Option<Self> {
        let (phase_sender, phase) = watch::channel(phase);
        let (commands_sender, commands) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (ended_sender, ended) = watch::channel(None);
        let (kill, stop) = (CancellationToken::new(), control.tasks.token());
        let (confirmed, clock) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let handle = Handle::new(Inner {
            sandbox_id: sandbox_id.clone(),
            team_id,
            phase,
            commands: commands_sender,
            kill: kill.clone(),
            ended: ended_sender,
            confirmed: Arc::clone(&confirmed),
            clock: Arc::clone(&clock),
            stop: stop.clone(),
        });
        Some(Self {
            _registration: control.live.register(handle)?,
            control: Arc::clone(control),
            sandbox_id,
            phase: phase_sender,
            commands,
            kill,
            ended,
            confirmed,
            clock,
            stop,
            reservation: None,
        })
    }

    pub(super) fn transition_to(&self, next: Phase) {
        self.phase.send_modify(|phase| {
            let (from, to) = (phase.state(), next.state());
            // A create on the next node stays in the state `Creating`.
            let is_next_node = matches!((&*phase, &next), (Phase::Creating { .. }, Phase::Creating { .. }));
            if !is_next_node && let Err(reason) = from.check_transition(to) {
                // Only a bug in this module leads here, never an input.
                unreachable!("{reason}: {from:?} to {to:?}");
            }
            if from != to {
                tracing::info!(?from, ?to, "sandbox state changed");
            }
            *phase = next;
        });
    }
}
