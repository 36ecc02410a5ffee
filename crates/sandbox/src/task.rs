//! The task that owns a sandbox, and the handle that others hold.
//!
//! Only the task touches the sandbox's resources. A handle can send one request (kill), a cancellation token that can
//! neither queue up nor get lost; and it watches the state. The connector to the guest is set once.

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
use crate::connector::GuestConnector;
use crate::guest_log::LogFollower;
use crate::metrics::Sampler;
use crate::state::{EndReason, State};
use crate::{Config, Error, NodeResources};

/// Limit for storing the last lines of a sandbox's log at its end.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Handle of a sandbox for its node's registry and proxy. Cheap to clone.
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
    connector: OnceLock<GuestConnector>,
    kill: CancellationToken,
    closed: CancellationToken,
}

/// Starts a sandbox in a task of `tasks` and returns its handle; wait with [`Handle::started`].
///
/// Cancelling `tasks` stops the sandbox.
#[must_use]
pub fn start(config: Arc<Config>, node: NodeResources, spec: SandboxSpec, set: ArtifactSet, tasks: &TaskSet) -> Handle {
    let (sender, receiver) = watch::channel(State::Assembling);
    let handle = Handle {
        inner: Arc::new(Inner {
            sandbox_id: spec.sandbox_id.clone(),
            execution_id: spec.execution_id,
            team_id: spec.team_id,
            resources: set.manifest().resources,
            state: receiver,
            connector: OnceLock::new(),
            kill: CancellationToken::new(),
            closed: CancellationToken::new(),
        }),
    };
    let span = tracing::info_span!(
        "sandbox",
        team = %spec.team_id, sandbox = %spec.sandbox_id, execution = %spec.execution_id, build = %spec.build_id
    );
    let owner = Owner { config, node, state: sender, inner: Arc::clone(&handle.inner), shutdown: tasks.token() };
    tasks.spawn("sandbox", owner.run(spec, set).instrument(span));
    handle
}

impl Handle {
    #[must_use]
    pub fn sandbox_id(&self) -> &SandboxId {
        &self.inner.sandbox_id
    }

    /// Returns the id of this run of the sandbox.
    #[must_use]
    pub fn execution_id(&self) -> ExecutionId {
        self.inner.execution_id
    }

    #[must_use]
    pub fn team_id(&self) -> TeamId {
        self.inner.team_id
    }

    #[must_use]
    pub fn resources(&self) -> Resources {
        self.inner.resources
    }

    /// Returns a receiver of the current and all later states.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.state.clone()
    }

    /// Returns the connector to the guest's ports; `None` until the sandbox runs.
    #[must_use]
    pub fn connector(&self) -> Option<&GuestConnector> {
        self.inner.connector.get()
    }

    /// Returns a token that is cancelled when the sandbox begins to stop; connections to its guest are closed then.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.inner.closed.clone()
    }

    /// Waits until the sandbox runs and returns the guest daemon's version. Cancel safe.
    ///
    /// # Errors
    /// The sandbox failed to start, or has stopped already.
    pub async fn started(&self) -> Result<String, Arc<Error>> {
        let mut state = self.state();
        let settled = state.wait_for(|state| !matches!(state, State::Assembling | State::Stopping)).await;
        // The owner sets a final state before it returns, unless its runtime is shut down.
        match settled.as_deref() {
            Ok(State::Running { envd_version }) => Ok(envd_version.clone()),
            Ok(State::Failed(error)) => Err(Arc::clone(error)),
            Ok(_) | Err(_) => Err(Arc::new(Error::Killed)),
        }
    }

    /// Kills the sandbox and waits until its resources are released.
    ///
    /// Idempotent. The kill continues if the future is dropped.
    pub async fn kill(&self) {
        self.inner.kill.cancel();
        let mut state = self.state();
        // An error means that the owner has ended, so its resources are released.
        let _ = state.wait_for(State::is_final).await;
    }
}

struct Owner {
    config: Arc<Config>,
    node: NodeResources,
    state: watch::Sender<State>,
    inner: Arc<Inner>,
    shutdown: CancellationToken,
}

impl Owner {
    async fn run(self, spec: SandboxSpec, set: ArtifactSet) {
        // The node's shutdown stops an assembly in the same way as a kill.
        let kill = self.inner.kill.clone();
        let shutdown = self.shutdown.clone();
        let assembling = assemble(&self.config, &self.node, &spec, &set, &kill);
        tokio::pin!(assembling);
        let result = tokio::select! {
            result = &mut assembling => result,
            () = shutdown.cancelled() => {
                kill.cancel();
                assembling.await
            }
        };
        match result {
            Ok(assembled) => self.drive(assembled, &spec).await,
            Err(error) => {
                self.inner.closed.cancel();
                self.set_state(State::Failed(Arc::new(error)));
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
        let mut follower =
            LogFollower::new(Arc::clone(&assembled.client), assembled.init.clone(), Arc::clone(&self.config), source);
        let mut sampler = Sampler::new(Arc::clone(&assembled.client), self.config.samples.clone(), spec);
        let envd_version = assembled.envd_version.clone();
        // This is the only place that sets it.
        let _ = self.inner.connector.set(assembled.connector());
        self.set_state(State::Running { envd_version });
        let reason = tokio::select! {
            biased;
            () = self.inner.kill.cancelled() => EndReason::Killed,
            () = self.shutdown.cancelled() => EndReason::NodeStopped,
            reason = assembled.ended(&self.node.disk) => reason,
            () = follower.run() => unreachable!("the log is followed for ever"),
            () = sampler.run() => unreachable!("the guest is sampled for ever"),
        };
        self.inner.closed.cancel();
        self.set_state(State::Stopping);
        // A slow disk must not delay the release.
        let flushed = tokio::time::timeout(FLUSH_LIMIT, follower.flush());
        let ((), _kept) = tokio::join!(assembled.release(&self.node), flushed);
        self.set_state(State::Stopped(reason));
    }

    fn set_state(&self, next: State) {
        self.state.send_modify(|state| {
            // An illegal transition is a bug in this file: no input leads to it.
            if let Err(reason) = state.check_transition(&next) {
                unreachable!("{reason}: {state:?} to {next:?}");
            }
            tracing::info!(from = ?state, to = ?next, "sandbox state changed");
            *state = next;
        });
    }
}
