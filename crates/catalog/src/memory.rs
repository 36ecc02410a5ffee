//! Routes in this process's memory.
//!
//! One readers-writer lock protects a map. It is held for one look-up and never across an await, so a request through
//! the edge waits for at most one short write. Writers remove expired leases when the map has doubled since the last
//! sweep: the cost per publication is constant, and the map is at most twice as large as the number of live leases.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use hearth_types::{ExecutionId, Route, SandboxId};
use tokio::time::Instant;

use crate::{Error, LEASE_MAX};

/// The map is not swept below this size: the memory is negligible, the scans would be frequent.
const SWEEP_ENTRIES_MIN: usize = 1024;

#[derive(Debug)]
pub(crate) struct Memory {
    routes_max: usize,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    leases: HashMap<SandboxId, Lease>,
    /// Number of entries at which expired leases are swept.
    sweep_at: usize,
}

#[derive(Debug)]
struct Lease {
    /// Shared with callers of `find`.
    route: Arc<Route>,
    expires_at: Instant,
}

impl Lease {
    fn new(route: Route, now: Instant, length: Duration) -> Self {
        Self { route: Arc::new(route), expires_at: expiry(now, length) }
    }

    /// A lease of zero length is never live.
    fn is_live(&self, now: Instant) -> bool {
        now < self.expires_at
    }

    fn is_held_by(&self, execution_id: ExecutionId, now: Instant) -> bool {
        self.is_live(now) && self.route.execution_id == execution_id
    }
}

fn expiry(now: Instant, length: Duration) -> Instant {
    now + length.min(LEASE_MAX)
}

impl State {
    fn sweep(&mut self, now: Instant, routes_max: usize) {
        self.leases.retain(|_, lease| lease.is_live(now));
        self.sweep_at = (self.leases.len() * 2).clamp(SWEEP_ENTRIES_MIN, routes_max.max(SWEEP_ENTRIES_MIN));
    }
}

impl Memory {
    pub(crate) fn new(routes_max: usize) -> Self {
        Self {
            routes_max,
            state: RwLock::new(State { leases: HashMap::new(), sweep_at: SWEEP_ENTRIES_MIN.min(routes_max) }),
        }
    }

    // No code between locking and unlocking can panic half-way through a change, so the state of a poisoned lock is
    // sound.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self, route: Route, lease: Duration, replaces: Option<ExecutionId>) -> Result<(), Error> {
        let mut state = self.write();
        let now = Instant::now();
        if state.leases.len() >= state.sweep_at.min(self.routes_max) {
            state.sweep(now, self.routes_max);
        }
        let is_full = state.leases.len() >= self.routes_max;
        match state.leases.entry(route.sandbox_id.clone()) {
            hash_map::Entry::Occupied(mut entry) => {
                let holder = entry.get().route.execution_id;
                let may_take = holder == route.execution_id || replaces == Some(holder);
                if entry.get().is_live(now) && !may_take {
                    return Err(Error::Held { sandbox_id: route.sandbox_id, holder });
                }
                entry.insert(Lease::new(route, now, lease));
            }
            hash_map::Entry::Vacant(_) if is_full => return Err(Error::Full { sandbox_id: route.sandbox_id }),
            hash_map::Entry::Vacant(entry) => {
                entry.insert(Lease::new(route, now, lease));
            }
        }
        Ok(())
    }

    pub(crate) fn renew(&self, sandbox_id: &SandboxId, execution_id: ExecutionId, lease: Duration) -> bool {
        let mut state = self.write();
        let now = Instant::now();
        match state.leases.get_mut(sandbox_id).filter(|held| held.is_held_by(execution_id, now)) {
            Some(held) => {
                held.expires_at = expiry(now, lease);
                true
            }
            None => false,
        }
    }

    pub(crate) fn remove(&self, sandbox_id: &SandboxId, execution_id: ExecutionId) -> bool {
        let mut state = self.write();
        let now = Instant::now();
        let is_holder = state.leases.get(sandbox_id).is_some_and(|held| held.is_held_by(execution_id, now));
        if is_holder {
            state.leases.remove(sandbox_id);
        }
        is_holder
    }

    pub(crate) fn find(&self, sandbox_id: &SandboxId) -> Option<Arc<Route>> {
        let state = self.read();
        let lease = state.leases.get(sandbox_id)?;
        lease.is_live(Instant::now()).then(|| Arc::clone(&lease.route))
    }

    pub(crate) fn list(&self) -> Vec<Route> {
        let now = Instant::now();
        self.read().leases.values().filter(|lease| lease.is_live(now)).map(|lease| Route::clone(&lease.route)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, SocketAddr};

    use hearth_types::{NodeAddress, TeamId, Visitors};
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn route(sandbox_id: &SandboxId) -> Route {
        Route {
            sandbox_id: sandbox_id.clone(),
            execution_id: ExecutionId::generate(),
            team_id: TeamId::generate(),
            node_id: "node".parse().expect("valid"),
            node_proxy: NodeAddress::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))),
            visitors: Visitors::All,
            host_mask: None,
            https_ports: BTreeSet::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_catalog_rejects_new_sandboxes_until_leases_expire() {
        let memory = Memory::new(3);
        let held: Vec<Route> = (0..3).map(|_| route(&SandboxId::generate())).collect();
        for route in &held {
            memory.publish(route.clone(), LEASE, None).expect("the catalog is not full");
        }
        let late = route(&SandboxId::generate());
        let rejected = Err(Error::Full { sandbox_id: late.sandbox_id.clone() });
        assert_eq!(memory.publish(late.clone(), LEASE, None), rejected);
        assert_eq!(
            memory.publish(held[0].clone(), 2 * LEASE, None),
            Ok(()),
            "a sandbox that has a route can publish again"
        );
        tokio::time::advance(LEASE).await;
        assert_eq!(memory.publish(late.clone(), LEASE, None), Ok(()));
        assert_eq!(memory.list().len(), 2, "the renewed route and the late one");
    }

    #[tokio::test(start_paused = true)]
    async fn expired_leases_do_not_accumulate() {
        let memory = Memory::new(100_000);
        for _ in 0..5 * SWEEP_ENTRIES_MIN {
            memory.publish(route(&SandboxId::generate()), LEASE, None).expect("the catalog is not full");
            tokio::time::advance(LEASE / 10).await;
            assert!(memory.read().leases.len() <= SWEEP_ENTRIES_MIN);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Publish { execution: usize, replaces: Option<usize> },
        Renew { execution: usize },
        Remove { execution: usize },
        Elapse { seconds: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let execution = 0..3usize;
        prop_oneof![
            (execution.clone(), prop::option::of(execution.clone()))
                .prop_map(|(execution, replaces)| Step::Publish { execution, replaces }),
            execution.clone().prop_map(|execution| Step::Renew { execution }),
            execution.prop_map(|execution| Step::Remove { execution }),
            (1..90u64).prop_map(|seconds| Step::Elapse { seconds }),
        ]
    }

    proptest! {
        /// Steps of three executions of one sandbox in any order, compared with a model that holds at most one of them.
        #[test]
        fn only_the_holder_changes_a_route(steps in prop::collection::vec(step(), 0..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()
                .expect("a runtime");
            runtime.block_on(async {
                let memory = Memory::new(10);
                let sandbox_id = SandboxId::generate();
                let routes: Vec<Route> = (0..3).map(|_| route(&sandbox_id)).collect();
                let id = |execution: usize| routes[execution].execution_id;
                let mut model: Option<(usize, Duration)> = None;
                for step in steps {
                    let holder = model.map(|(holder, _)| holder);
                    match step {
                        Step::Publish { execution, replaces } => {
                            let legal = holder.is_none() || holder == Some(execution) || holder == replaces;
                            let done = memory.publish(routes[execution].clone(), LEASE, replaces.map(id));
                            prop_assert_eq!(done.is_ok(), legal);
                            if legal { model = Some((execution, LEASE)); }
                        }
                        Step::Renew { execution } => {
                            let legal = holder == Some(execution);
                            prop_assert_eq!(memory.renew(&sandbox_id, id(execution), LEASE), legal);
                            if legal { model = Some((execution, LEASE)); }
                        }
                        Step::Remove { execution } => {
                            let legal = holder == Some(execution);
                            prop_assert_eq!(memory.remove(&sandbox_id, id(execution)), legal);
                            if legal { model = None; }
                        }
                        Step::Elapse { seconds } => {
                            tokio::time::advance(Duration::from_secs(seconds)).await;
                            model = model.and_then(|(holder, remaining)| {
                                let remaining = remaining.checked_sub(Duration::from_secs(seconds))?;
                                (!remaining.is_zero()).then_some((holder, remaining))
                            });
                        }
                    }
                    let expected = model.map(|(holder, _)| routes[holder].clone());
                    prop_assert_eq!(memory.find(&sandbox_id).map(Arc::unwrap_or_clone), expected.clone());
                    prop_assert_eq!(memory.list(), Vec::from_iter(expected));
                }
                Ok(())
            })?;
        }
    }
}
