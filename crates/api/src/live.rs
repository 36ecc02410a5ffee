//! The sandboxes that this control plane looks after.
//!
//! ```text
//!   handlers ──▶ Handle ── kill (a token), wishes (a bounded queue) ──▶ Owner, a task ──▶ store, catalog, node
//!       ▲           └───────────── phase (a watch) ◀────────────────────────┘
//!       │
//!     Live: sandbox id to Handle          reconcilers ──▶ Handle: ended there, confirmed there
//! ```
//!
//! * **One task owns each sandbox** from before its row is written until after its row is deleted: [`mod@create`] →
//!   [`run`] → [`end`]. Nobody else writes its row or its route, sets its expiry or asks a node about it. So a request
//!   that is dropped with its connection cuts nothing, and nothing has to be locked across an await.
//! * **A kill is a token**: it cannot queue up behind anything, be lost or be undone. The same holds for a node's word
//!   that the sandbox ended.
//! * **Expiry is a timer of the owner**, so the runtime's timer wheel holds as many as there are sandboxes and nobody
//!   polls. The wall clock decides when it fires; reconcilers wake the owner in case that clock was moved or the
//!   machine slept.
//! * A stopping server leaves rows as they are. The next one adopts them: what runs goes on, what was half created or
//!   half ended is ended.

mod create;
mod end;
pub(crate) mod expiry;
mod handle;
mod owner;
mod run;
mod state;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hearth_types::{ExecutionId, NodeId, SandboxId, TeamId};

pub(crate) use create::{CreateError, Creation};
pub(crate) use handle::{Handle, Unanswered};
pub(crate) use owner::{adopt, create};
pub(crate) use state::{Refusal, Request, State, Verdict};

/// One run of a sandbox on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The node.
    pub(crate) node_id: NodeId,
    /// The run.
    pub(crate) execution_id: ExecutionId,
}

type Handles = HashMap<SandboxId, Handle>;

/// Handles of all sandboxes with an owner. Bounded by the teams' limits, which the store enforces before a node is
/// asked.
#[derive(Debug, Default)]
pub(crate) struct Live {
    handles: RwLock<Handles>,
}

impl Live {
    // Every change of the map is one call, so it is sound after a panic of another holder.
    fn read(&self) -> RwLockReadGuard<'_, Handles> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Handles> {
        self.handles.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a sandbox known for as long as the registration is held. `None`: it is known already.
    fn register(self: &Arc<Self>, handle: Handle) -> Option<Registration> {
        let sandbox_id = handle.sandbox_id().clone();
        let mut handles = self.write();
        if handles.contains_key(&sandbox_id) {
            return None;
        }
        handles.insert(sandbox_id.clone(), handle);
        Some(Registration { live: Arc::clone(self), sandbox_id })
    }

    /// The handle of a sandbox.
    pub(crate) fn find(&self, sandbox_id: &SandboxId) -> Option<Handle> {
        self.read().get(sandbox_id).cloned()
    }

    /// All sandboxes of a team, in whatever state.
    pub(crate) fn of_team(&self, team_id: TeamId) -> Vec<Handle> {
        self.read().values().filter(|handle| handle.team_id() == team_id).cloned().collect()
    }

    /// Which sandboxes run on a node, and under which execution.
    pub(crate) fn running_on(&self, node_id: &NodeId) -> Vec<(Handle, ExecutionId)> {
        let handles = self.read();
        let running = handles.values().filter_map(|handle| Some((handle, handle.runs_at()?)));
        running
            .filter(|(_, place)| place.node_id == *node_id)
            .map(|(handle, place)| (handle.clone(), place.execution_id))
            .collect()
    }

    /// How many sandboxes each team has running; those with none are left out.
    pub(crate) fn running_by_team(&self) -> BTreeMap<TeamId, u32> {
        let mut teams = BTreeMap::new();
        for handle in self.read().values().filter(|handle| handle.is_running()) {
            *teams.entry(handle.team_id()).or_insert(0) += 1;
        }
        teams
    }

    /// How many sandboxes a team has running.
    pub(crate) fn running_of(&self, team_id: TeamId) -> u32 {
        let handles = self.read();
        let running = handles.values().filter(|handle| handle.team_id() == team_id && handle.is_running());
        u32::try_from(running.count()).unwrap_or(u32::MAX)
    }

    /// Counts sandboxes of a team that are known to have a row, and those that are being created.
    pub(crate) fn counts_of(&self, team_id: TeamId) -> TeamCounts {
        let mut counts = TeamCounts::default();
        for handle in self.read().values().filter(|handle| handle.team_id() == team_id) {
            counts.rows += u32::from(handle.has_row());
            counts.creating += u32::from(handle.is_creating());
        }
        counts
    }
}

/// Sandboxes of a team.
#[derive(Debug, Default)]
pub(crate) struct TeamCounts {
    pub(crate) rows: u32,
    pub(crate) creating: u32,
}

/// Forgets a sandbox when its owner ends, also by a panic.
#[derive(Debug)]
struct Registration {
    live: Arc<Live>,
    sandbox_id: SandboxId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.live.write().remove(&self.sandbox_id);
    }
}
