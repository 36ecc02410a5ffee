//! The control role: its shared state, start and shutdown.

use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{Logs, Samples, Usages};
use hearth_catalog::Catalog;
use hearth_stdx::TaskSet;
use hearth_store::Store;
use hearth_types::{ExecutionId, SandboxId};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{Analytics, Config, Node};
use crate::http::auth::{KeySetError, Verifier, bearer};
use crate::http::rate::Rates;
use crate::http::routes;
use crate::identity::{IdentityError, LoginService};
use crate::live::{self, LiveSandboxes};
use crate::nodes::{self, Nodes};
use crate::preparation::{PreparationView, Preparations};
use crate::reconcile;
use crate::token::TokenSource;
use crate::usage::{self, Counts};

/// Maximum number of concurrent creates.
///
/// It is more than any node can start at once, and few enough that their rows, calls and waiting clients cost little.
/// Further creates are rejected and may be retried after a second.
const CONCURRENT_CREATES_MAX: usize = 512;
/// Maximum number of concurrent creates of one team.
///
/// It leaves room for other teams while creates wait for their turn on a node. Creates that are checked at the same time may exceed it by a few.
pub(crate) const TEAM_CREATES_MAX: u32 = 128;
/// Maximum time that a shutdown waits for tasks. The shutdown of the whole daemon may take ten seconds.
const SHUTDOWN_WAIT_MAX: Duration = Duration::from_secs(4);

/// State shared by all parts of the control role.
pub(crate) struct Control {
    pub(crate) config: Config,
    pub(crate) tokens: TokenSource,
    /// Verifies user tokens.
    pub(crate) verifier: Verifier,
    pub(crate) login_service: LoginService,
    pub(crate) rates: Rates,
    pub(crate) store: Store,
    pub(crate) catalog: Catalog,
    /// Logs of sandboxes. Nodes write them, this role only reads.
    pub(crate) logs: Arc<dyn Logs>,
    /// Resource usage of sandboxes. Nodes write it, this role only reads.
    pub(crate) samples: Arc<dyn Samples>,
    /// Stored sandbox counts of teams.
    pub(crate) usages: Arc<dyn Usages>,
    /// Sandbox counts not yet written to `usages`.
    pub(crate) usage: Counts,
    pub(crate) nodes: Nodes,
    /// Templates that the host prepares.
    pub(crate) preparations: PreparationView,
    pub(crate) live: Arc<LiveSandboxes>,
    /// Permits for concurrent creates.
    pub(crate) creates: Arc<Semaphore>,
    /// Held while the use of an API key is stored.
    pub(crate) key_use: Arc<Semaphore>,
    pub(crate) tasks: TaskSet,
    /// Cancelled when the role shuts down.
    pub(crate) stopping: CancellationToken,
}

impl Control {
    /// Returns true if the execution belongs to a sandbox of this server, including one that is being killed.
    pub(crate) async fn is_known(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
    ) -> Result<bool, hearth_store::Error> {
        if self.live.find(sandbox_id).is_some_and(|handle| handle.owns(execution_id)) {
            return Ok(true);
        }
        let row = self.store.sandbox(sandbox_id).await?;
        Ok(row.is_some_and(|row| row.execution_id == execution_id))
    }
}

/// Failure to start the control role.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keys for user tokens are not usable.
    #[error("preparing the verification of user tokens")]
    UserTokens(#[source] KeySetError),
    /// The settings for logins are invalid.
    #[error("preparing the login of users")]
    Identity(#[source] IdentityError),
    /// The sandboxes cannot be read from the store.
    #[error("reading the sandboxes from the store")]
    Sandboxes(#[source] hearth_store::Error),
    /// The desired states of nodes cannot be read from the store.
    #[error("reading the desired states of nodes")]
    Nodes(#[source] hearth_store::Error),
}

/// Handle of the running control role. Drop it only after [`Api::shutdown`], because its tasks hold the store.
pub struct Api {
    control: Arc<Control>,
}

impl Api {
    /// Starts timers, node watchers and reconcilers, and adopts the sandboxes of the previous server.
    ///
    /// `preparations` has the templates that the host prepares by itself; an empty map if there are none.
    ///
    /// Waits up to [`Config::node_compare_wait_max`] until the nodes have reported their sandboxes. Not cancel safe:
    /// tasks that were started continue.
    ///
    /// # Errors
    /// [`StartError`] when the configuration is invalid or the store cannot be read.
    pub async fn start(
        config: Config,
        store: Store,
        catalog: Catalog,
        analytics: Analytics,
        nodes: Vec<Node>,
        preparations: watch::Receiver<Preparations>,
    ) -> Result<Self, StartError> {
        let login_service =
            LoginService::new(&config.identity, config.domain.as_deref()).map_err(StartError::Identity)?;
        let verifier = Verifier::new(&config.user_tokens, login_service.signer()).map_err(StartError::UserTokens)?;
        let rows = store.sandboxes().await.map_err(StartError::Sandboxes)?;
        let desired = store.desired_nodes().await.map_err(StartError::Nodes)?;
        let Analytics { logs, samples, usages } = analytics;
        let tasks = TaskSet::new();
        let control = Arc::new(Control {
            tokens: TokenSource::new(config.token_seed.clone()),
            verifier,
            login_service,
            rates: Rates::new(config.team_rate, config.address_rate),
            config,
            store,
            catalog,
            logs,
            samples,
            usages,
            usage: Counts::default(),
            nodes: Nodes::new(nodes, desired),
            preparations: PreparationView::new(preparations),
            live: Arc::new(LiveSandboxes::default()),
            creates: Arc::new(Semaphore::new(CONCURRENT_CREATES_MAX)),
            key_use: Arc::new(Semaphore::new(1)),
            stopping: tasks.token(),
            tasks,
        });
        for row in rows {
            live::adopt(&control, row);
        }
        for member in control.nodes.all() {
            control.tasks.spawn("node events", nodes::follow::run(Arc::clone(&control), Arc::clone(member)));
            control.tasks.spawn("node reconciler", nodes::reconcile::run(Arc::clone(&control), Arc::clone(member)));
        }
        control.tasks.spawn("keys for user tokens", bearer::refresh_keys(Arc::clone(&control)));
        control.tasks.spawn("usage", usage::run(Arc::clone(&control)));
        control.tasks.spawn("reconciler", reconcile::run(Arc::clone(&control)));
        let compared = futures::future::join_all(control.nodes.all().map(|member| member.wait_until_reconciled()));
        if tokio::time::timeout(control.config.node_compare_wait_max, compared).await.is_err() {
            tracing::warn!("not all nodes are reachable yet");
        }
        Ok(Self { control })
    }

    /// Returns the router of the public REST API. The caller owns the listener.
    pub fn router(&self) -> axum::Router {
        routes::router(Arc::clone(&self.control))
    }

    /// Stops all tasks; sandboxes continue to run. Returns the names of tasks that did not stop in time.
    ///
    /// Call it after the listener has stopped accepting requests.
    pub async fn shutdown(&self) -> Vec<&'static str> {
        self.control.tasks.shutdown(SHUTDOWN_WAIT_MAX).await
    }
}
