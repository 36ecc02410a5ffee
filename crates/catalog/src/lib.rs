//! Which node runs a sandbox now.
//!
//! The catalog is the set of routes. The control role writes it: a route is published after the node confirmed that the
//! sandbox runs, renewed while it does, removed before the sandbox is reported gone. The edge reads it for every
//! request that it does not already know the way for. It is not durable and needs not be: nodes know what runs, and the
//! control role publishes again what a restart lost.
//!
//! Two rules keep a superseded writer from doing harm:
//!
//! ```text
//!            publish(new, replaces: None)            lease over
//!   absent ──────────────────────────────▶ held ──────────────────▶ absent
//!     ▲                                    │  ▲
//!     │        remove(same execution)      │  │ publish(same execution), renew(same execution): the lease begins anew
//!     └────────────────────────────────────┘  │ publish(other, replaces: Some(holder)): the route changes hands
//!                                             └─ anything from another execution: refused, nothing changes
//! ```
//!
//! * Routes are **leased**: one that nobody renews is not found any more, as if it had been removed.
//! * Routes are **fenced** by execution id: only the execution that holds a live route, or one that names it as what it
//!   replaces, can change it.
//!
//! Backends are a closed set behind [`Catalog`]; the only one so far is the memory of this process. Every call is safe to
//! cancel: it has had its effect wholly or not at all, and a caller that does not know may repeat it.

#![forbid(unsafe_code)]

mod memory;

use std::sync::Arc;
use std::time::Duration;

use hearth_types::{ExecutionId, Route, SandboxId};

use crate::memory::Memory;

/// Most routes in a catalog. Ten times the sandboxes that one control role is built for, in some 50 MB of memory.
pub const ROUTES_MAX: usize = 100_000;

/// Longest lease; a longer one is cut to this. A route that nobody vouched for in a day leads nowhere.
pub const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why the catalog did not do what was asked. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another execution holds the route, and the caller did not name it as what it replaces. The caller is superseded,
    /// or has to ask again what the sandbox's state is.
    #[error("publishing the route of sandbox {sandbox_id}: execution {holder} holds it")]
    Held {
        /// The sandbox.
        sandbox_id: SandboxId,
        /// The execution with the live route.
        holder: ExecutionId,
    },
    /// There are too many routes. Worth another try when sandboxes have ended.
    #[error("publishing the route of sandbox {sandbox_id}: there are {ROUTES_MAX} routes already")]
    Full {
        /// The sandbox.
        sandbox_id: SandboxId,
    },
}

/// The set of routes. Cheap to clone: clones share the same routes.
#[derive(Debug, Clone)]
pub struct Catalog {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Memory(Arc<Memory>),
}

impl Catalog {
    /// A catalog in the memory of this process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { backend: Backend::Memory(Arc::new(Memory::new(ROUTES_MAX))) }
    }

    /// Makes a sandbox reachable, for as long as the lease (at most [`LEASE_MAX`]) lasts.
    ///
    /// A live route of another execution is only taken over when `replaces` names that execution. Publishing again
    /// under the same execution replaces the route and begins its lease anew.
    ///
    /// # Errors
    /// [`Error::Held`], [`Error::Full`].
    pub async fn publish(&self, route: Route, lease: Duration, replaces: Option<ExecutionId>) -> Result<(), Error> {
        match &self.backend {
            Backend::Memory(memory) => memory.publish(route, lease, replaces),
        }
    }

    /// Begins the lease anew. `false`: this execution holds no live route; it has to be published again, or was
    /// superseded.
    ///
    /// # Errors
    /// None from the memory backend; others can be out of reach.
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

    /// Makes a sandbox unreachable at once. `false`: this execution held no live route; nothing was changed.
    ///
    /// # Errors
    /// None from the memory backend; others can be out of reach.
    pub async fn remove(&self, sandbox_id: &SandboxId, execution_id: ExecutionId) -> Result<bool, Error> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.remove(sandbox_id, execution_id)),
        }
    }

    /// The live route of a sandbox.
    ///
    /// # Errors
    /// None from the memory backend; others can be out of reach.
    pub async fn find(&self, sandbox_id: &SandboxId) -> Result<Option<Arc<Route>>, Error> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.find(sandbox_id)),
        }
    }

    /// All live routes, in no order. For reconcilers: it copies the catalog.
    ///
    /// # Errors
    /// None from the memory backend; others can be out of reach.
    pub async fn list(&self) -> Result<Vec<Route>, Error> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.list()),
        }
    }
}
