//! How a sandbox begins.
//!
//! A row is written before a node is asked, so that whatever happens afterwards, somebody knows that there may be a
//! sandbox. The row takes the team's place among its concurrent sandboxes in the same transaction.
//!
//! ```text
//!   for each node worth asking, best first:
//!     row written ──▶ node asked ──▶ route published ──▶ row says running ──▶ reply ──▶ run
//!                        ├─ full, or without the build: row deleted, next node
//!                        ├─ failed, nothing is left: row deleted, reply
//!                        └─ no answer, too late, killed: reply, then end (which asks the node until it answers)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_cluster_api::{CreatedSandbox, NodeError};
use hearth_stdx::chain;
use hearth_store::{InsertSandboxError, Resolved, Sandbox, SandboxState, Started, Team, UpdateSandboxError};
use hearth_types::{ExecutionId, Ingress, Route, SandboxSpec};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::Place;
use super::end::Ending;
use super::expiry::{later, now};
use super::handle::Phase;
use super::owner::Owner;
use crate::nodes::Member;
use crate::token::TokenSource;

/// A sandbox to create: checked, and its template resolved.
#[derive(Debug, Clone)]
pub(crate) struct Creation {
    pub(crate) team: Team,
    pub(crate) resolved: Resolved,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) env_vars: BTreeMap<String, String>,
    pub(crate) secured: bool,
    pub(crate) allow_internet_access: Option<bool>,
    pub(crate) ingress: Ingress,
    pub(crate) timeout: Duration,
}

/// Why a sandbox was not created. The client hears of it before what was begun is cleared away, except where nothing is
/// left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CreateError {
    /// Too many creates are under way.
    Busy,
    /// No node can be reached.
    NoNode,
    /// Every node is full.
    Capacity,
    /// A node has run out of something that comes back.
    NodeBusy,
    /// There are nodes, but none of them can run the build.
    NoCompatibleNode,
    /// The node refused.
    Refused,
    /// The node tried and failed.
    Failed,
    /// The node was lost while it started the sandbox.
    NodeLost,
    /// It took too long.
    TooLong,
    /// The team has as many sandboxes as it may have.
    LimitReached {
        /// The limit.
        max: u32,
    },
    /// The template went away meanwhile.
    TemplateGone,
    /// Somebody killed it meanwhile.
    Killed,
    /// The server is going away.
    Stopping,
    /// Something went wrong, and was logged.
    Broken,
}

/// What came of asking one node.
enum Attempt {
    /// It runs.
    Started(Sandbox),
    /// Nothing of it is left there; another node may do better.
    TryNext(CreateError),
    /// Nothing of it is left; no other node would do better.
    GiveUp(CreateError),
    /// Something of it may be left.
    Release(CreateError, Sandbox),
}

impl Owner {
    /// Creates the sandbox, answers, and looks after it until its end.
    pub(super) async fn create(
        mut self,
        creation: Creation,
        reply: oneshot::Sender<Result<Sandbox, CreateError>>,
        permit: OwnedSemaphorePermit,
    ) {
        let deadline = Instant::now() + self.control.config.create_budget;
        let mut failure = CreateError::NoNode;
        // A reply that nobody waits for is dropped: the client went away, the sandbox lives until it expires.
        for node in self.control.nodes.ranked() {
            self.seat = Some(node.take_seat());
            match self.attempt(&creation, &node, deadline).await {
                Attempt::Started(row) => {
                    drop((creation, permit));
                    let _ = reply.send(Ok(row.clone()));
                    return self.run(row).await;
                }
                Attempt::TryNext(error) => failure = error,
                Attempt::GiveUp(error) => {
                    failure = error;
                    break;
                }
                Attempt::Release(error, row) => {
                    drop(permit);
                    let _ = reply.send(Err(error));
                    return self.end(Ending::of(row)).await;
                }
            }
        }
        self.become_(Phase::Gone);
        let _ = reply.send(Err(failure));
    }

    async fn attempt(&self, creation: &Creation, node: &Arc<Member>, deadline: Instant) -> Attempt {
        if self.kill.is_cancelled() {
            return Attempt::GiveUp(CreateError::Killed);
        }
        let row = self.new_row(creation, node);
        if let Err(error) = self.control.store.insert_sandbox(&row).await {
            return not_inserted(error, row);
        }
        let place = Place { node_id: row.node_id.clone(), execution_id: row.execution_id };
        self.become_(Phase::Creating { place: Some(place) });
        let spec = self.spec(&row);
        // Dropping the call does not stop the node; the end that follows asks it to delete.
        let outcome = tokio::select! {
            biased;
            () = self.kill.cancelled() => Err(CreateError::Killed),
            () = self.stop.cancelled() => Err(CreateError::Stopping),
            result = node.client.create(&spec) => Ok(result),
            () = tokio::time::sleep_until(deadline) => Err(CreateError::TooLong),
        };
        match outcome {
            Ok(Ok(created)) => self.activate(row, created, node).await,
            Ok(Err(error)) => self.not_started(error, row, node).await,
            Err(interruption) => {
                // A create that is overtaken by its delete would be found by a comparison.
                node.nudge();
                Attempt::Release(interruption, row)
            }
        }
    }

    fn new_row(&self, creation: &Creation, node: &Member) -> Sandbox {
        let Creation { team, resolved, metadata, env_vars, secured, allow_internet_access, ingress, timeout } =
            creation;
        let Resolved { template, build, alias } = resolved;
        let now = now();
        Sandbox {
            sandbox_id: self.sandbox_id.clone(),
            execution_id: ExecutionId::generate(),
            team_id: team.id,
            template_id: template.id.clone(),
            build_id: build.id,
            alias: alias.clone(),
            node_id: node.id.clone(),
            state: SandboxState::Creating,
            metadata: metadata.clone(),
            env_vars: env_vars.clone(),
            envd_version: build.envd_version.clone(),
            secured: *secured,
            allow_internet_access: *allow_internet_access,
            ingress: ingress.clone(),
            timeout: *timeout,
            started_at: now,
            end_at: later(now, *timeout),
            resources: build.resources,
        }
    }

    fn spec(&self, row: &Sandbox) -> SandboxSpec {
        SandboxSpec {
            sandbox_id: row.sandbox_id.clone(),
            execution_id: row.execution_id,
            team_id: row.team_id,
            template_id: row.template_id.clone(),
            build_id: row.build_id,
            env_vars: row.env_vars.clone(),
            envd_access_token: row.secured.then(|| self.control.tokens.envd_access_token(&row.sandbox_id)),
            internet_access: row.allow_internet_access.unwrap_or(true),
        }
    }

    /// The node runs it: from now on its time counts.
    async fn activate(&self, mut row: Sandbox, created: CreatedSandbox, node: &Member) -> Attempt {
        row.envd_version = created.envd_version;
        row.started_at = now();
        row.end_at = later(row.started_at, row.timeout);
        // First the route, then the row: what a list shows as running can be reached.
        let route = route(&self.control.tokens, &row, node);
        if let Err(error) = self.control.catalog.publish(route, self.control.config.route_lease, None).await {
            tracing::error!(error = %chain(&error), "a new sandbox got no route");
            return Attempt::Release(CreateError::Broken, row);
        }
        let started =
            Started { started_at: row.started_at, end_at: row.end_at, envd_version: row.envd_version.clone() };
        let written = self.control.store.update_sandbox_running(&row.sandbox_id, row.execution_id, started).await;
        if let Err(error) = written {
            tracing::error!(error = %chain(&error), "a sandbox was started but could not be noted as running");
            return Attempt::Release(CreateError::Broken, row);
        }
        row.state = SandboxState::Running;
        if self.kill.is_cancelled() {
            return Attempt::Release(CreateError::Killed, row);
        }
        self.become_(Phase::Running { place: Place { node_id: row.node_id.clone(), execution_id: row.execution_id } });
        // This one at least, even if it ended again already.
        let running = self.control.live.running_of(row.team_id).max(1);
        self.control.usage.started(row.team_id, running);
        Attempt::Started(row)
    }

    /// The node did not start it.
    async fn not_started(&self, error: NodeError, row: Sandbox, node: &Member) -> Attempt {
        tracing::warn!(node = %node.id, %error, "a node did not start a sandbox");
        let attempt: fn(CreateError) -> Attempt = match error {
            NodeError::Capacity | NodeError::Exhausted(_) | NodeError::UnknownBuild => Attempt::TryNext,
            NodeError::Refused(_) | NodeError::Failed(_) => Attempt::GiveUp,
            NodeError::Unavailable(_) => {
                node.nudge();
                return Attempt::Release(CreateError::NodeLost, row);
            }
        };
        let failure = match error {
            NodeError::Capacity => CreateError::Capacity,
            NodeError::Exhausted(_) => CreateError::NodeBusy,
            NodeError::UnknownBuild => CreateError::NoCompatibleNode,
            NodeError::Refused(_) => CreateError::Refused,
            NodeError::Failed(_) | NodeError::Unavailable(_) => CreateError::Failed,
        };
        match self.control.store.delete_sandbox(&row.sandbox_id, row.execution_id).await {
            Ok(()) | Err(UpdateSandboxError::NotFound { .. }) => attempt(failure),
            Err(error) => {
                tracing::error!(error = %chain(&error), "the row of a sandbox that was not started stays");
                Attempt::Release(failure, row)
            }
        }
    }
}

fn not_inserted(error: InsertSandboxError, row: Sandbox) -> Attempt {
    match error {
        InsertSandboxError::LimitReached { max } => Attempt::GiveUp(CreateError::LimitReached { max }),
        InsertSandboxError::Dangling { .. } => Attempt::GiveUp(CreateError::TemplateGone),
        InsertSandboxError::Store(error) if error.is_effect_unknown() => {
            tracing::error!(error = %chain(&error), "whether a new sandbox has a row is not known");
            Attempt::Release(CreateError::Broken, row)
        }
        error @ (InsertSandboxError::Exists { .. } | InsertSandboxError::Store(_)) => {
            tracing::error!(error = %chain(&error), "a new sandbox got no row");
            Attempt::GiveUp(CreateError::Broken)
        }
    }
}

/// The route of a sandbox that runs on a node.
pub(super) fn route(tokens: &TokenSource, row: &Sandbox, node: &Member) -> Route {
    Route {
        sandbox_id: row.sandbox_id.clone(),
        execution_id: row.execution_id,
        team_id: row.team_id,
        node_id: node.id.clone(),
        node_proxy: node.proxy.clone(),
        ingress: row.ingress.clone(),
        traffic_token: tokens.demanded_from_visitors(row),
    }
}
