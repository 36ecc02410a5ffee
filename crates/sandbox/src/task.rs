//! The task that owns a sandbox, and the handle others hold.
//!
//! The task is the only one that touches the sandbox's parts. A handle sends it one kind of request (end), which is a token
//! and so cannot queue up or be lost, and watches the state. The handle's reach of the guest is set once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hearth_analytics::Source;
use hearth_artifact::ArtifactSet;
use hearth_stdx::TaskSet;
use hearth_types::{ExecutionId, Resources, SandboxId, SandboxSpec, TeamId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::assemble::{Assembled, assemble};
use crate::link::Link;
use crate::metrics::Meter;
use crate::reach::Reach;
use crate::state::{EndReason, State};
use crate::{Config, Error, Parts};

/// How long the last lines of a sandbox's log may take to be kept when it ends.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// A sandbox, as its node's registry and proxy see it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sandbox_id: SandboxId,
    execution_id: ExecutionId,
    team_id: TeamId,
    resources: Resources,
    state: watch::Receiver<State>,
    reach: OnceLock<Reach>,
    kill: CancellationToken,
    closed: CancellationToken,
}

/// Starts a sandbox in a task of `tasks` and returns its handle; follow [`Handle::started`]. A cancelled `tasks` ends it.
#[must_use]
pub fn start(config: Arc<Config>, parts: Parts, spec: SandboxSpec, set: ArtifactSet, tasks: &TaskSet) -> Handle {
    let (sender, receiver) = watch::channel(State::Assembling);
    let handle = Handle {
        inner: Arc::new(Inner {
            sandbox_id: spec.sandbox_id.clone(),
            execution_id: spec.execution_id,
            team_id: spec.team_id,
            resources: set.manifest().resources,
            state: receiver,
            reach: OnceLock::new(),
            kill: CancellationToken::new(),
            closed: CancellationToken::new(),
        }),
    };
    let span = tracing::info_span!(
        "sandbox",
        team = %spec.team_id, sandbox = %spec.sandbox_id, execution = %spec.execution_id, build = %spec.build_id
    );
    let owner = Owner { config, parts, state: sender, inner: Arc::clone(&handle.inner), node: tasks.token() };
    tasks.spawn("sandbox", owner.run(spec, set).instrument(span));
    handle
}

impl Handle {
    /// The sandbox.
    #[must_use]
    pub fn sandbox_id(&self) -> &SandboxId {
        &self.inner.sandbox_id
    }

    /// This run of it.
    #[must_use]
    pub fn execution_id(&self) -> ExecutionId {
        self.inner.execution_id
    }

    /// Whose it is.
    #[must_use]
    pub fn team_id(&self) -> TeamId {
        self.inner.team_id
    }

    /// Its virtual hardware.
    #[must_use]
    pub fn resources(&self) -> Resources {
        self.inner.resources
    }

    /// The state now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.state.clone()
    }

    /// How the guest is reached; `None` until it runs.
    #[must_use]
    pub fn reach(&self) -> Option<&Reach> {
        self.inner.reach.get()
    }

    /// Cancelled when the sandbox begins to end: connections to its guest are cut then.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.inner.closed.clone()
    }

    /// Waits until the sandbox runs and returns the guest daemon's version. Cancel safe.
    ///
    /// # Errors
    /// Why it does not run, or no longer does.
    pub async fn started(&self) -> Result<String, Arc<Error>> {
        let mut state = self.state();
        let settled = state.wait_for(|state| !matches!(state, State::Assembling | State::Stopping)).await;
        // The owner sets a final state before it ends, unless its runtime is torn down under it.
        match settled.as_deref() {
            Ok(State::Running { envd_version }) => Ok(envd_version.clone()),
            Ok(State::Failed(error)) => Err(Arc::clone(error)),
            Ok(_) | Err(_) => Err(Arc::new(Error::Killed)),
        }
    }

    /// Ends the sandbox and waits until nothing of it is left. Idempotent; the end goes on when the future is dropped.
    pub async fn kill(&self) {
        self.inner.kill.cancel();
        let mut state = self.state();
        // An error means that the owner is gone, so nothing is left either.
        let _ = state.wait_for(State::is_final).await;
    }
}

struct Owner {
    config: Arc<Config>,
    parts: Parts,
    state: watch::Sender<State>,
    inner: Arc<Inner>,
    node: CancellationToken,
}

impl Owner {
    async fn run(self, spec: SandboxSpec, set: ArtifactSet) {
        // The node's stop ends an assembly the same way a kill does.
        let kill = self.inner.kill.clone();
        let node = self.node.clone();
        let assembling = assemble(&self.config, &self.parts, &spec, &set, &kill);
        tokio::pin!(assembling);
        let result = tokio::select! {
            result = &mut assembling => result,
            () = node.cancelled() => {
                kill.cancel();
                assembling.await
            }
        };
        match result {
            Ok(assembled) => self.drive(assembled, &spec).await,
            Err(error) => {
                self.inner.closed.cancel();
                self.become_(State::Failed(Arc::new(error)));
            }
        }
    }

    async fn drive(&self, mut assembled: Assembled, spec: &SandboxSpec) {
        let source = Source {
            team_id: spec.team_id,
            sandbox_id: spec.sandbox_id.clone(),
            template_id: Some(spec.template_id.clone()),
            execution_id: spec.execution_id,
        };
        let mut link =
            Link::new(Arc::clone(&assembled.client), assembled.init.clone(), Arc::clone(&self.config), source);
        let mut meter = Meter::new(Arc::clone(&assembled.client), self.config.samples.clone(), spec);
        let envd_version = assembled.envd_version.clone();
        // The only place that sets it.
        let _ = self.inner.reach.set(assembled.reach());
        self.become_(State::Running { envd_version });
        let reason = tokio::select! {
            biased;
            () = self.inner.kill.cancelled() => EndReason::Killed,
            () = self.node.cancelled() => EndReason::NodeStopped,
            reason = assembled.ended(&self.parts.disk) => reason,
            () = link.run() => unreachable!("the guest is followed for ever"),
            () = meter.run() => unreachable!("the guest is sampled for ever"),
        };
        self.inner.closed.cancel();
        self.become_(State::Stopping);
        // A disk that does not answer must not hold the release up.
        let flushed = tokio::time::timeout(FLUSH_PATIENCE, link.flush());
        let ((), _kept) = tokio::join!(assembled.release(&self.parts), flushed);
        self.become_(State::Stopped(reason));
    }

    fn become_(&self, next: State) {
        self.state.send_modify(|state| {
            // A wrong move is a mistake in this file: no input leads here.
            if let Err(reason) = state.may_become(&next) {
                unreachable!("{reason}: {state:?} to {next:?}");
            }
            tracing::info!(from = ?state, to = ?next, "sandbox state");
            *state = next;
        });
    }
}
