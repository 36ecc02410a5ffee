//! The control role as a whole: what it holds, how it starts and how it stops.

use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{Logs, Samples, Usages};
use hearth_catalog::Catalog;
use hearth_stdx::TaskSet;
use hearth_store::Store;
use hearth_types::{ExecutionId, SandboxId};
use tokio::sync::Semaphore;

use crate::config::{Analytics, Config, Node};
use crate::http::auth::{Verifier, WrongKeys, bearer};
use crate::http::rate::Rates;
use crate::http::routes;
use crate::identity::{Doorkeeper, WrongIdentity};
use crate::live::{self, Live};
use crate::nodes::{self, Nodes};
use crate::reconcile;
use crate::token::TokenSource;
use crate::usage::{self, Counts};

/// Creates under way at the same time. More than any node can start at once, and few enough that their rows, calls and
/// waiting clients cost little; the rest are told to come back in a moment.
const CREATES_AT_ONCE_MAX: usize = 512;
/// Creates of one team under way at about the same time: creates wait for their turn on a node, and those of one team must leave
/// room for others.
pub(crate) const TEAM_CREATES_MAX: u32 = 128;
/// How long a stopping server waits for its tasks: a part of the ten seconds that a stop of the whole daemon may take.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(4);

/// What every part of the control role can reach.
pub(crate) struct Control {
    pub(crate) config: Config,
    pub(crate) tokens: TokenSource,
    /// Tokens of users.
    pub(crate) verifier: Verifier,
    /// Lets users in.
    pub(crate) doorkeeper: Doorkeeper,
    pub(crate) rates: Rates,
    pub(crate) store: Store,
    pub(crate) catalog: Catalog,
    /// What sandboxes said. Nodes append to it, this role only reads.
    pub(crate) logs: Arc<dyn Logs>,
    /// What they used, in the same way.
    pub(crate) samples: Arc<dyn Samples>,
    /// What teams used.
    pub(crate) usages: Arc<dyn Usages>,
    /// What of it was not kept yet.
    pub(crate) usage: Counts,
    pub(crate) nodes: Nodes,
    pub(crate) live: Arc<Live>,
    /// Creates under way.
    pub(crate) creates: Arc<Semaphore>,
    /// Taken while the use of an API key is noted.
    pub(crate) key_use: Arc<Semaphore>,
    pub(crate) tasks: TaskSet,
}

impl Control {
    /// Whether this run of a sandbox is one that should be, or is just being ended.
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

/// Why the control role did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keys for users' tokens cannot be used.
    #[error("preparing to verify tokens of users")]
    UserTokens(#[source] WrongKeys),
    /// Users could not log in.
    #[error("preparing to let users log in")]
    Identity(#[source] WrongIdentity),
    /// What should run is not known.
    #[error("reading which sandboxes there should be")]
    Sandboxes(#[source] hearth_store::Error),
    /// What operators want of nodes is not known.
    #[error("reading what is wanted of nodes")]
    Nodes(#[source] hearth_store::Error),
}

/// The control role. Drop it only after [`Api::shutdown`]: its tasks hold the store.
pub struct Api {
    control: Arc<Control>,
}

impl Api {
    /// Starts timers, node watchers and reconcilers, and adopts the sandboxes of the server before. Waits a little for
    /// the nodes to tell what runs ([`Config::node_patience`]). Not cancel safe: what was started goes on.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        config: Config,
        store: Store,
        catalog: Catalog,
        analytics: Analytics,
        nodes: Vec<Node>,
    ) -> Result<Self, StartError> {
        let doorkeeper = Doorkeeper::new(&config.identity, config.domain.as_deref()).map_err(StartError::Identity)?;
        let verifier = Verifier::new(&config.user_tokens, doorkeeper.signer()).map_err(StartError::UserTokens)?;
        let rows = store.sandboxes().await.map_err(StartError::Sandboxes)?;
        let wanted = store.wanted_nodes().await.map_err(StartError::Nodes)?;
        let Analytics { logs, samples, usages } = analytics;
        let control = Arc::new(Control {
            tokens: TokenSource::new(config.token_seed.clone()),
            verifier,
            doorkeeper,
            rates: Rates::new(config.team_rate, config.address_rate),
            config,
            store,
            catalog,
            logs,
            samples,
            usages,
            usage: Counts::default(),
            nodes: Nodes::new(nodes, wanted),
            live: Arc::new(Live::default()),
            creates: Arc::new(Semaphore::new(CREATES_AT_ONCE_MAX)),
            key_use: Arc::new(Semaphore::new(1)),
            tasks: TaskSet::new(),
        });
        for row in rows {
            live::adopt(&control, row);
        }
        for member in control.nodes.all() {
            control.tasks.spawn("node news", nodes::follow::run(Arc::clone(&control), Arc::clone(member)));
            control.tasks.spawn("node comparison", nodes::compare::run(Arc::clone(&control), Arc::clone(member)));
        }
        control.tasks.spawn("keys for user tokens", bearer::keep(Arc::clone(&control)));
        control.tasks.spawn("usage", usage::run(Arc::clone(&control)));
        control.tasks.spawn("reconciler", reconcile::run(Arc::clone(&control)));
        let compared = futures::future::join_all(control.nodes.all().map(|member| member.was_compared()));
        if tokio::time::timeout(control.config.node_patience, compared).await.is_err() {
            tracing::warn!("not all nodes can be reached yet");
        }
        Ok(Self { control })
    }

    /// The public REST interface. The caller owns the listener.
    pub fn router(&self) -> axum::Router {
        routes::router(Arc::clone(&self.control))
    }

    /// Stops everything that was started; sandboxes go on. Call it when the listener takes no more requests. Returns
    /// the names of tasks that did not stop in time.
    pub async fn shutdown(&self) -> Vec<&'static str> {
        self.control.tasks.shutdown(SHUTDOWN_PATIENCE).await
    }
}
