//! The sandboxes that this control plane manages, each owned by one task.
//!
//! ```text
//!   handlers ──▶ Handle ── kill (token), commands (bounded queue) ──▶ Owner (task) ──▶ store, catalog, node
//!       ▲           └──────────── phase (watch channel) ◀────────────────┘
//!       │
//!     LiveSandboxes: sandbox id to Handle     nodes, reconcile ──▶ Handle: execution ended, confirmed, clock set
//! ```
//!
//! * **One task owns each sandbox** from before its row is written until after its row is deleted: [`mod@create`] →
//!   [`run`] → [`teardown`]. No other task writes its row or its route, sets its expiry or sends requests about it to
//!   a node. A request that is dropped with its connection therefore interrupts nothing, and no lock is held across an
//!   await.
//! * **A kill is a token**: it cannot wait behind other requests, be lost or be undone. The same holds for a node's
//!   report that the execution ended.
//! * **Expiry is a timer of the owner**: the runtime's timer wheel holds one timer for each sandbox, and nothing polls.
//!   The wall clock decides whether a sandbox has expired; the reconciler wakes the owner in case that clock was set or
//!   the machine was suspended.
//! * A stopping server leaves rows as they are. The next server adopts them: running sandboxes continue, and sandboxes
//!   whose create or kill was interrupted are torn down.

mod create;
pub(crate) mod expiry;
mod handle;
mod owner;
mod run;
mod state;
mod teardown;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hearth_types::{ExecutionId, NodeId, SandboxId, TeamId};

pub(crate) use create::{CreateError, Creation};
pub(crate) use handle::{Handle, RequestError};
pub(crate) use owner::{adopt, create};
pub(crate) use state::{Decision, Rejection, Request, State};

/// An execution of a sandbox, and the node that it is placed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) node_id: NodeId,
    pub(crate) execution_id: ExecutionId,
}

type Handles = HashMap<SandboxId, Handle>;

/// Handles of all sandboxes that have an owner.
///
/// Bounded by the teams' limits, which the store enforces before a create is sent to a node.
#[derive(Debug, Default)]
pub(crate) struct LiveSandboxes {
    handles: RwLock<Handles>,
}

impl LiveSandboxes {
    // Every change of the map is a single call, so the map is consistent even after a panic in another lock holder.
    fn read(&self) -> RwLockReadGuard<'_, Handles> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Handles> {
        self.handles.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a sandbox until the registration is dropped. Returns `None` if the sandbox is registered already.
    fn register(self: &Arc<Self>, handle: Handle) -> Option<Registration> {
        let sandbox_id = handle.sandbox_id().clone();
        let mut handles = self.write();
        if handles.contains_key(&sandbox_id) {
            return None;
        }
        handles.insert(sandbox_id.clone(), handle);
        Some(Registration { live: Arc::clone(self), sandbox_id })
    }

    /// Returns the handle of a sandbox.
    pub(crate) fn find(&self, sandbox_id: &SandboxId) -> Option<Handle> {
        self.read().get(sandbox_id).cloned()
    }

    /// Returns all sandboxes of a team, in any state.
    pub(crate) fn of_team(&self, team_id: TeamId) -> Vec<Handle> {
        self.read().values().filter(|handle| handle.team_id() == team_id).cloned().collect()
    }

    /// Returns the sandboxes that run on a node, each with its execution.
    pub(crate) fn running_on(&self, node_id: &NodeId) -> Vec<(Handle, ExecutionId)> {
        let handles = self.read();
        let running = handles.values().filter_map(|handle| Some((handle, handle.running_placement()?)));
        running
            .filter(|(_, placement)| placement.node_id == *node_id)
            .map(|(handle, placement)| (handle.clone(), placement.execution_id))
            .collect()
    }

    /// Counts the running sandboxes of each team. Teams without one are omitted.
    pub(crate) fn running_by_team(&self) -> BTreeMap<TeamId, u32> {
        let mut teams = BTreeMap::new();
        for handle in self.read().values().filter(|handle| handle.is_running()) {
            *teams.entry(handle.team_id()).or_insert(0) += 1;
        }
        teams
    }

    /// Counts the running sandboxes of a team.
    pub(crate) fn running_of(&self, team_id: TeamId) -> u32 {
        let handles = self.read();
        let running = handles.values().filter(|handle| handle.team_id() == team_id && handle.is_running());
        u32::try_from(running.count()).unwrap_or(u32::MAX)
    }

    /// Counts the sandboxes of a team that have a row, and those that are being created.
    pub(crate) fn team_counts(&self, team_id: TeamId) -> TeamCounts {
        let mut counts = TeamCounts::default();
        for handle in self.read().values().filter(|handle| handle.team_id() == team_id) {
            counts.rows += u32::from(handle.has_row());
            counts.creating += u32::from(handle.is_creating());
        }
        counts
    }
}

/// Numbers of sandboxes of a team.
#[derive(Debug, Default)]
pub(crate) struct TeamCounts {
    pub(crate) rows: u32,
    pub(crate) creating: u32,
}

/// Removes the handle of a sandbox when its owner task exits or panics.
#[derive(Debug)]
struct Registration {
    live: Arc<LiveSandboxes>,
    sandbox_id: SandboxId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.live.write().remove(&self.sandbox_id);
    }
}
