//! Catalog of routes: the node that runs each sandbox now.
//!
//! The control role writes the catalog: it publishes a route after the node confirmed that the sandbox runs, renews it
//! while the sandbox runs, and removes it before the sandbox is reported as deleted. The edge reads the catalog for
//! every request whose route it has not cached. The catalog is not durable: nodes report what runs, and the control
//! role publishes routes again after a restart.
//!
//! Two rules protect routes from superseded writers:
//!
//! ```text
//!            publish(new, replaces: None)           lease expires
//!   absent ──────────────────────────────▶ held ──────────────────▶ absent
//!     ▲                                    │  ▲
//!     │        remove(same execution)      │  │ publish(same execution), renew(same execution): the lease restarts
//!     └────────────────────────────────────┘  │ publish(other, replaces: Some(holder)): the other execution holds it
//!                                             └─ any call of another execution: rejected, nothing changes
//! ```
//!
//! * Routes are **leased**: a route that is not renewed in time is no longer found, as if it had been removed.
//! * Routes are **fenced** by execution id: only the execution that holds a live route, or one that names the holder in
//!   `replaces`, can change it.
//!
//! Backends are a closed set behind [`Catalog`]; the only one is this process's memory. Every call is cancel safe: it
//! took effect completely or not at all, and a caller that does not know which may repeat it.

#![forbid(unsafe_code)]

mod memory;

use std::sync::Arc;
use std::time::Duration;

use hearth_types::{ExecutionId, Route, SandboxId};

use crate::memory::Memory;

/// Maximum number of routes in a catalog.
///
/// Ten times the number of sandboxes that one control role is designed for; about 50 MB of memory.
pub const ROUTES_MAX: usize = 100_000;

/// Longest lease; a longer one is shortened to this. A route without a renewal for a day is considered dead.
pub const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Reason why the catalog rejected a call. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another execution holds the route, and the caller did not name it in `replaces`.
    ///
    /// The caller is superseded, or has to read the sandbox's state again.
    #[error("publishing the route of sandbox {sandbox_id}: execution {holder} holds it")]
    Held {
        sandbox_id: SandboxId,
        /// The execution that holds the live route.
        holder: ExecutionId,
    },
    /// The catalog holds its maximum number of routes. Retry after sandboxes have ended.
    #[error("publishing the route of sandbox {sandbox_id}: there are {ROUTES_MAX} routes already")]
    Full { sandbox_id: SandboxId },
}

/// Set of routes. Cheap to clone: clones share the same routes.
#[derive(Debug, Clone)]
pub struct Catalog {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Memory(Arc<Memory>),
}

impl Catalog {
    /// Returns an empty catalog in this process's memory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { backend: Backend::Memory(Arc::new(Memory::new(ROUTES_MAX))) }
    }

    /// Makes a sandbox reachable until the lease (at most [`LEASE_MAX`]) expires.
    ///
    /// A live route of another execution is only replaced when `replaces` names that execution. Publishing again under
    /// the same execution replaces the route and restarts its lease.
    ///
    /// # Errors
    /// [`Error::Held`], [`Error::Full`].
    pub async fn publish(&self, route: Route, lease: Duration, replaces: Option<ExecutionId>) -> Result<(), Error> {
        match &self.backend {
            Backend::Memory(memory) => memory.publish(route, lease, replaces),
        }
    }

    /// Restarts the lease.
    ///
    /// Returns `false` if this execution holds no live route: it has to publish again, or it was superseded.
    ///
    /// # Errors
    /// None from the memory backend; other backends can be unreachable.
    pub async fn renew(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
        lease: Duration,
    ) -> Result<bool, Error> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.renew(sandbox_id, execution_id, lease)),
        }
    }

    /// Makes a sandbox unreachable immediately.
    ///
    /// Returns `false`, and changes nothing, if this execution held no live route.
    ///
    /// # Errors
    /// None from the memory backend; other backends can be unreachable.
    pub async fn remove(&self, sandbox_id: &SandboxId, execution_id: ExecutionId) -> Result<bool, Error> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.remove(sandbox_id, execution_id)),
        }
    }

    /// Returns the live route of a sandbox.
    ///
    /// # Errors
    /// None from the memory backend; other backends can be unreachable.
    pub async fn find(&self, sandbox_id: &SandboxId) -> Result<Option<Arc<Route>>, Error> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.find(sandbox_id)),
        }
    }

    /// Returns all live routes, unordered. For reconcilers only: it copies the catalog.
    ///
    /// # Errors
    /// None from the memory backend; other backends can be unreachable.
    pub async fn list(&self) -> Result<Vec<Route>, Error> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.list()),
        }
    }
}
