//! Creation of a sandbox: chooses a node, writes the row, starts the sandbox and publishes its route.
//!
//! The row is written before the create is sent to a node, so that a sandbox that may exist on a node always has a row,
//! whatever fails afterwards. The same transaction counts the row against the team's limit of concurrent sandboxes.
//!
//! ```text
//!   for each candidate node, best first:
//!     write row ──▶ create on node ──▶ publish route ──▶ mark row running ──▶ reply ──▶ run
//!                        ├─ node is full or lacks the build: delete row, try the next node
//!                        ├─ node failed and released everything: delete row, reply
//!                        └─ no reply, timed out, killed: reply, then tear down (retries until the node confirms)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_cluster_api::{CreatedSandbox, NodeError};
use hearth_stdx::chain;
use hearth_store::{InsertSandboxError, ResolvedTemplate, Sandbox, SandboxState, StartedSandbox, UpdateSandboxError};
use hearth_types::{ExecutionId, Ingress, Route, SandboxSpec, TeamId, TemplateReference, Visitors};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::Placement;
use super::expiry::{now, saturating_add};
use super::handle::Phase;
use super::owner::Owner;
use super::teardown::Teardown;
use crate::nodes::Member;
use crate::token::TokenSource;

/// A validated request for a new sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Creation {
    /// The template as the client named it. The caller resolves it before the create.
    pub(crate) reference: TemplateReference,
    pub(crate) timeout: Duration,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) env_vars: BTreeMap<String, String>,
    /// Set if the guest daemon requires a token.
    pub(crate) secured: bool,
    /// `None` if the client did not set it.
    pub(crate) allow_internet_access: Option<bool>,
    pub(crate) ingress: Ingress,
}

/// Reason for a failed create.
///
/// When the node may still hold resources of the sandbox, the client receives the error before they are released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CreateError {
    /// The maximum number of concurrent creates is reached.
    Busy,
    /// No node accepts new sandboxes: none is reachable and set to `ready`.
    NoNode,
    /// Every node is full.
    Capacity,
    /// A node is temporarily out of a resource, such as open files.
    NodeBusy,
    /// Nodes are reachable, but none of them can run the build.
    NoCompatibleNode,
    /// The node rejected the create.
    Rejected,
    /// The node failed to start the sandbox.
    Failed,
    /// The connection to the node was lost while the node started the sandbox.
    NodeLost,
    /// The node did not reply within the create budget.
    TimedOut,
    /// The team has its maximum number of concurrent sandboxes.
    LimitReached { max: u32 },
    /// The template, its build or the team was deleted after the template was resolved.
    TemplateDeleted,
    /// The sandbox was killed while it was being created.
    Killed,
    /// The server is shutting down.
    Stopping,
    /// The disk of the store is full. Already logged.
    StorageFull,
    /// Internal error. Already logged.
    Internal,
}

/// Outcome of a create on one node.
enum Attempt {
    /// The sandbox runs.
    Started(Sandbox),
    /// Nothing remains on this node or in the store; another node may succeed.
    TryNext(CreateError),
    /// Nothing remains on this node or in the store; other nodes would fail in the same way.
    GiveUp(CreateError),
    /// The node or the store may hold parts of the sandbox, which must be released.
    Release(CreateError, Sandbox),
}

impl Owner {
    /// Creates the sandbox, replies, and manages the sandbox until it is released.
    pub(super) async fn create(
        mut self,
        team_id: TeamId,
        resolved: ResolvedTemplate,
        creation: Creation,
        deadline: Instant,
        reply: oneshot::Sender<Result<Sandbox, CreateError>>,
        permit: OwnedSemaphorePermit,
    ) {
        let mut failure = CreateError::NoNode;
        // Sending the reply fails if the client disconnected; the sandbox then lives until it expires.
        for node in self.control.nodes.ranked() {
            self.reservation = Some(node.reserve());
            let row = self.new_row(team_id, &resolved, &creation, &node);
            match self.attempt(row, &node, deadline).await {
                Attempt::Started(row) => {
                    drop((resolved, creation, permit));
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
                    return self.tear_down(Teardown::new(row)).await;
                }
            }
        }
        self.transition_to(Phase::Released);
        let _ = reply.send(Err(failure));
    }

    async fn attempt(&self, row: Sandbox, node: &Arc<Member>, deadline: Instant) -> Attempt {
        if self.kill.is_cancelled() {
            return Attempt::GiveUp(CreateError::Killed);
        }
        if let Err(error) = self.control.store.insert_sandbox(&row).await {
            return not_inserted(error, row);
        }
        let placement = Placement { node_id: row.node_id.clone(), execution_id: row.execution_id };
        self.transition_to(Phase::Creating { placement: Some(placement) });
        let spec = self.spec(&row);
        // Dropping the call does not stop the node; the teardown that follows sends it a delete.
        let outcome = tokio::select! {
            biased;
            () = self.kill.cancelled() => Err(CreateError::Killed),
            () = self.stop.cancelled() => Err(CreateError::Stopping),
            result = node.client.create(&spec) => Ok(result),
            () = tokio::time::sleep_until(deadline) => Err(CreateError::TimedOut),
        };
        match outcome {
            Ok(Ok(created)) => self.activate(row, created, node).await,
            Ok(Err(error)) => self.not_started(error, row, node).await,
            Err(interruption) => {
                // If the delete overtakes the create, the reconciler of the node finds the orphan.
                node.nudge();
                Attempt::Release(interruption, row)
            }
        }
    }

    /// Returns the row of a new execution on a node.
    fn new_row(&self, team_id: TeamId, resolved: &ResolvedTemplate, creation: &Creation, node: &Member) -> Sandbox {
        let ResolvedTemplate { template, build, alias } = resolved;
        let Creation { reference: _, timeout, metadata, env_vars, secured, allow_internet_access, ingress } = creation;
        let now = now();
        Sandbox {
            sandbox_id: self.sandbox_id.clone(),
            execution_id: ExecutionId::generate(),
            team_id,
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
            end_at: saturating_add(now, *timeout),
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
            internet_access: row.allow_internet_access.unwrap_or(SandboxSpec::INTERNET_ACCESS_DEFAULT),
        }
    }

    /// Publishes the route and marks the row as running. The lifetime of the sandbox starts here.
    async fn activate(&self, mut row: Sandbox, created: CreatedSandbox, node: &Member) -> Attempt {
        row.envd_version = created.envd_version;
        row.started_at = now();
        row.end_at = saturating_add(row.started_at, row.timeout);
        // The route is published before the row is marked, so every sandbox that is listed as running is reachable.
        let route = route(&self.control.tokens, &row, node);
        if let Err(error) = self.control.catalog.publish(route, self.control.config.route_lease, None).await {
            tracing::error!(error = %chain(&error), "route of new sandbox not published");
            return Attempt::Release(CreateError::Internal, row);
        }
        let started =
            StartedSandbox { started_at: row.started_at, end_at: row.end_at, envd_version: row.envd_version.clone() };
        let written = self.control.store.update_sandbox_running(&row.sandbox_id, row.execution_id, started).await;
        if let Err(error) = written {
            tracing::error!(error = %chain(&error), "started sandbox not marked as running");
            let is_full = matches!(&error, UpdateSandboxError::Store(error) if error.is_full());
            return Attempt::Release(if is_full { CreateError::StorageFull } else { CreateError::Internal }, row);
        }
        row.state = SandboxState::Running;
        if self.kill.is_cancelled() {
            return Attempt::Release(CreateError::Killed, row);
        }
        self.transition_to(Phase::Running {
            placement: Placement { node_id: row.node_id.clone(), execution_id: row.execution_id },
        });
        // Counts at least this sandbox, even if it has ended already.
        let running = self.control.live.running_of(row.team_id).max(1);
        self.control.usage.record_start(row.team_id, running);
        Attempt::Started(row)
    }

    /// Maps a node's error to the outcome of the attempt. Deletes the row unless the node may have started the sandbox.
    async fn not_started(&self, error: NodeError, row: Sandbox, node: &Member) -> Attempt {
        tracing::warn!(node = %node.id, %error, "sandbox not started by node");
        let attempt: fn(CreateError) -> Attempt = match error {
            NodeError::Capacity | NodeError::Exhausted(_) | NodeError::UnknownBuild => Attempt::TryNext,
            NodeError::Rejected(_) | NodeError::Failed(_) => Attempt::GiveUp,
            NodeError::Unavailable(_) => {
                node.nudge();
                return Attempt::Release(CreateError::NodeLost, row);
            }
        };
        let failure = match error {
            NodeError::Capacity => CreateError::Capacity,
            NodeError::Exhausted(_) => CreateError::NodeBusy,
            NodeError::UnknownBuild => CreateError::NoCompatibleNode,
            NodeError::Rejected(_) => CreateError::Rejected,
            NodeError::Failed(_) | NodeError::Unavailable(_) => CreateError::Failed,
        };
        match self.control.store.delete_sandbox(&row.sandbox_id, row.execution_id).await {
            Ok(()) | Err(UpdateSandboxError::NotFound { .. }) => attempt(failure),
            Err(error) => {
                tracing::error!(error = %chain(&error), "row of failed create not deleted");
                Attempt::Release(failure, row)
            }
        }
    }
}

fn not_inserted(error: InsertSandboxError, row: Sandbox) -> Attempt {
    match error {
        InsertSandboxError::LimitReached { max } => Attempt::GiveUp(CreateError::LimitReached { max }),
        InsertSandboxError::Dangling { .. } => Attempt::GiveUp(CreateError::TemplateDeleted),
        InsertSandboxError::Store(error) if error.is_effect_unknown() => {
            tracing::error!(error = %chain(&error), "outcome of inserting sandbox row unknown");
            Attempt::Release(CreateError::Internal, row)
        }
        InsertSandboxError::Store(error) if error.is_full() => {
            tracing::error!(error = %chain(&error), "sandbox row not inserted: disk is full");
            Attempt::GiveUp(CreateError::StorageFull)
        }
        error @ (InsertSandboxError::Exists { .. } | InsertSandboxError::Store(_)) => {
            tracing::error!(error = %chain(&error), "sandbox row not inserted");
            Attempt::GiveUp(CreateError::Internal)
        }
    }
}

/// Returns the route of a sandbox that runs on a node.
pub(super) fn route(tokens: &TokenSource, row: &Sandbox, node: &Member) -> Route {
    let Ingress { public: _, host_mask, https_ports } = row.ingress.clone();
    Route {
        sandbox_id: row.sandbox_id.clone(),
        execution_id: row.execution_id,
        team_id: row.team_id,
        node_id: node.id.clone(),
        node_proxy: node.proxy.clone(),
        visitors: tokens.required_from_visitors(row).map_or(Visitors::All, Visitors::WithToken),
        host_mask,
        https_ports,
    }
}
