//! The task that owns a sandbox: its parts, how it begins, and how it changes its phase.

use std::sync::Arc;
use std::time::Duration;

use hearth_store::{Sandbox, SandboxState};
use hearth_types::{SandboxId, TeamId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::create::{CreateError, Creation};
use super::end::Ending;
use super::handle::{Ended, Handle, Inner, Order, Phase, Progress};
use super::{Place, Registration};
use crate::control::{Control, TEAM_CREATES_MAX};
use crate::nodes::Seat;

/// Orders that wait for an owner which is writing to the store. More callers than these wait for their turn to queue.
const ORDERS_QUEUED_MAX: usize = 16;
/// How long a create of a team at its limit waits for a place before it is refused. Clients that poll for a place, most of them
/// without a pause of their own, would otherwise keep a processor busy with refusals.
const LIMIT_PAUSE: Duration = Duration::from_millis(200);

/// The owner of one sandbox.
pub(super) struct Owner {
    pub(super) control: Arc<Control>,
    pub(super) sandbox_id: SandboxId,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) kill: CancellationToken,
    pub(super) ended: watch::Receiver<Option<Ended>>,
    pub(super) confirmed: Arc<Notify>,
    pub(super) clock: Arc<Notify>,
    pub(super) stop: CancellationToken,
    /// Its place among the sandboxes that are counted on a node.
    pub(super) seat: Option<Seat>,
    // Dropped last: who does not find a sandbox takes it for gone.
    _registration: Registration,
}

/// Creates a sandbox, in a task that goes on when the future is dropped.
pub(crate) async fn create(control: &Arc<Control>, creation: Creation) -> Result<Sandbox, CreateError> {
    let team_id = creation.team.id;
    let max = creation.team.limits.sandboxes_max;
    // The store decides. But a team that asks again and again at its limit must not occupy the store's only write lock.
    if control.live.counts_of(team_id).rows >= max {
        tokio::time::sleep(LIMIT_PAUSE).await;
        if control.live.counts_of(team_id).rows >= max {
            return Err(CreateError::LimitReached { max });
        }
    }
    if control.live.counts_of(team_id).creating >= TEAM_CREATES_MAX {
        return Err(CreateError::Busy);
    }
    let permit = Arc::clone(&control.creates).try_acquire_owned().map_err(|_| CreateError::Busy)?;
    let sandbox_id = SandboxId::generate();
    let span = tracing::info_span!(parent: None, "sandbox", team = %team_id, sandbox = %sandbox_id);
    span.follows_from(tracing::Span::current());
    let owner = Owner::new(control, sandbox_id, team_id, Phase::Creating { place: None }).ok_or(CreateError::Broken)?;
    let (reply, answer) = oneshot::channel();
    let task = async move {
        owner.create(creation, reply, permit).await;
    };
    control.tasks.spawn("sandbox", task.instrument(span));
    answer.await.unwrap_or(Err(CreateError::Broken))
}

/// Goes on with a sandbox that an earlier server, or an owner that failed, left a row of. Nothing happens if it has an
/// owner.
pub(crate) fn adopt(control: &Arc<Control>, row: Sandbox) {
    let place = Place { node_id: row.node_id.clone(), execution_id: row.execution_id };
    let phase = match row.state {
        SandboxState::Running => Phase::Running { place },
        // Whether the node started it is not known, and its id was told to nobody.
        SandboxState::Creating | SandboxState::Killing => Phase::Killing { place, progress: Progress::Begun },
    };
    let is_running = matches!(phase, Phase::Running { .. });
    let Some(mut owner) = Owner::new(control, row.sandbox_id.clone(), row.team_id, phase) else { return };
    let span = tracing::info_span!(
        parent: None, "sandbox", team = %row.team_id, sandbox = %row.sandbox_id, execution = %row.execution_id
    );
    let task = async move {
        let node = owner.control.nodes.find(&row.node_id);
        owner.seat = node.map(|node| node.take_seat());
        tracing::info!(node = %row.node_id, state = row.state.as_str(), end_at = %row.end_at, "sandbox adopted");
        // A node that was taken out of the cluster takes its sandboxes with it.
        if is_running && owner.seat.is_some() { owner.run(row).await } else { owner.end(Ending::of(row)).await }
    };
    control.tasks.spawn("sandbox", task.instrument(span));
}

impl Owner {
    /// An owner and its registered handle. `None`: the sandbox has an owner.
    fn new(control: &Arc<Control>, sandbox_id: SandboxId, team_id: TeamId, phase: Phase) -> Option<Self> {
        let (phase_sender, phase) = watch::channel(phase);
        let (orders_sender, orders) = mpsc::channel(ORDERS_QUEUED_MAX);
        let (ended_sender, ended) = watch::channel(None);
        let (kill, stop) = (CancellationToken::new(), control.tasks.token());
        let (confirmed, clock) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let handle = Handle::new(Inner {
            sandbox_id: sandbox_id.clone(),
            team_id,
            phase,
            orders: orders_sender,
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
            orders,
            kill,
            ended,
            confirmed,
            clock,
            stop,
            seat: None,
        })
    }

    pub(super) fn become_(&self, next: Phase) {
        self.phase.send_modify(|phase| {
            let (from, to) = (phase.state(), next.state());
            // Another node being asked is not another state.
            let stays = matches!((&*phase, &next), (Phase::Creating { .. }, Phase::Creating { .. }));
            if !stays && let Err(reason) = from.may_become(to) {
                // A wrong move is a mistake in this folder: no input leads here.
                unreachable!("{reason}: {from:?} to {to:?}");
            }
            if from != to {
                tracing::info!(?from, ?to, "sandbox state");
            }
            *phase = next;
        });
    }
}
