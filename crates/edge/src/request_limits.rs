//! Limits of requests in flight at the edge: in total, per team and per sandbox.
//!
//! A request takes file descriptors, and memory for body bytes that the guest has not read. Both are limited by
//! counters before a request is forwarded; it is counted until the request and its response, or the upgraded stream,
//! have ended.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hearth_types::{Route, SandboxId, TeamId};

/// Maximum unread bytes of one request's body between its client and its guest.
///
/// They are the window of an HTTP/2 stream and the write buffers of the proxies on the way.
const BODY_BYTES_MAX: u64 = 512 << 10;
/// Maximum unread bytes of all bodies: 2048 requests with bodies of unknown or larger length.
const BODIES_BYTES_MAX: usize = 1 << 30;
/// Maximum unread bytes of the bodies of one sandbox.
const SANDBOX_BODIES_BYTES_MAX: usize = BODIES_BYTES_MAX / 8;
/// Number of counters below which unused ones are not removed.
const PRUNE_MIN: usize = 1024;

/// Limit that was reached, as a number of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitReached {
    pub(crate) limit: usize,
}

/// Counters and limits of requests in flight.
#[derive(Debug)]
pub(crate) struct RequestLimits {
    requests_max: usize,
    team_requests_max: usize,
    requests: Counter,
    bodies_bytes: Counter,
    teams: Counters<TeamId>,
    sandboxes: Counters<SandboxId>,
}

type Counter = Arc<AtomicUsize>;

/// Amount added to a counter until it is dropped.
#[derive(Debug)]
struct Counted {
    counter: Counter,
    amount: usize,
}

impl Counted {
    fn acquire(counter: &Counter, amount: usize, max: usize) -> Option<Self> {
        let more = |used: usize| used.checked_add(amount).filter(|used| *used <= max);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { counter: Arc::clone(counter), amount })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// Counters by key. Unused ones are removed when there are many.
#[derive(Debug)]
struct Counters<K>(Mutex<(HashMap<K, Counter>, usize)>);

impl<K: Hash + Eq + Clone> Counters<K> {
    fn new() -> Self {
        Self(Mutex::new((HashMap::new(), PRUNE_MIN)))
    }

    fn acquire(&self, key: &K, amount: usize, max: usize) -> Option<Counted> {
        // Each critical section leaves valid state also if it panics.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (counters, prune_at) = &mut *state;
        if let Some(counter) = counters.get(key) {
            return Counted::acquire(counter, amount, max);
        }
        if counters.len() >= *prune_at {
            // A counter in use has a second owner, and new owners are added only under the lock.
            counters.retain(|_, counter| Arc::strong_count(counter) > 1);
            *prune_at = (2 * counters.len()).max(PRUNE_MIN);
        }
        Counted::acquire(counters.entry(key.clone()).or_default(), amount, max)
    }
}

/// Permit of an admitted request; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    _counted: [Counted; 2],
    _body: Option<[Counted; 2]>,
}

impl RequestLimits {
    pub(crate) fn new(requests_max: usize, team_requests_max: usize) -> Self {
        Self {
            requests_max,
            team_requests_max,
            requests: Counter::default(),
            bodies_bytes: Counter::default(),
            teams: Counters::new(),
            sandboxes: Counters::new(),
        }
    }

    /// Admits a request, with the maximum size of its body if that is known.
    pub(crate) fn admit(&self, route: &Route, body_bytes: Option<u64>) -> Result<RequestPermit, LimitReached> {
        let in_all =
            Counted::acquire(&self.requests, 1, self.requests_max).ok_or(LimitReached { limit: self.requests_max })?;
        let limit = self.team_requests_max;
        let of_team = self.teams.acquire(&route.team_id, 1, limit).ok_or(LimitReached { limit })?;
        let bytes = usize::try_from(body_bytes.unwrap_or(u64::MAX).min(BODY_BYTES_MAX)).unwrap_or(usize::MAX);
        let body = if bytes > 0 { Some(self.acquire_body(&route.sandbox_id, bytes)?) } else { None };
        Ok(RequestPermit { _counted: [in_all, of_team], _body: body })
    }

    fn acquire_body(&self, sandbox_id: &SandboxId, bytes: usize) -> Result<[Counted; 2], LimitReached> {
        let full = |max: usize| LimitReached { limit: max / bytes };
        let in_all = Counted::acquire(&self.bodies_bytes, bytes, BODIES_BYTES_MAX).ok_or(full(BODIES_BYTES_MAX))?;
        let max = SANDBOX_BODIES_BYTES_MAX;
        let of_sandbox = self.sandboxes.acquire(sandbox_id, bytes, max).ok_or(full(max))?;
        Ok([in_all, of_sandbox])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hearth_types::{ExecutionId, NodeAddress, Visitors};

    use super::*;

    fn route() -> Route {
        Route {
            sandbox_id: SandboxId::generate(),
            execution_id: ExecutionId::generate(),
            team_id: TeamId::generate(),
            node_id: "node-1".parse().expect("an id"),
            node_proxy: NodeAddress::Unix("/node".into()),
            visitors: Visitors::All,
            host_mask: None,
            https_ports: BTreeSet::new(),
        }
    }

    fn admit(limits: &RequestLimits, route: &Route, body_bytes: Option<u64>) -> RequestPermit {
        limits.admit(route, body_bytes).expect("capacity")
    }

    #[track_caller]
    fn check_limit_reached(limits: &RequestLimits, route: &Route, body_bytes: Option<u64>, limit: usize) {
        assert_eq!(limits.admit(route, body_bytes).expect_err("a limit is reached"), LimitReached { limit });
    }

    #[test]
    fn the_team_limit_leaves_capacity_for_others() {
        let (limits, one, two) = (RequestLimits::new(3, 2), route(), route());
        let permits = [limits.admit(&one, Some(0)), limits.admit(&one, Some(0))];
        check_limit_reached(&limits, &one, Some(0), 2);
        let other = admit(&limits, &two, Some(0));
        check_limit_reached(&limits, &two, Some(0), 3);
        drop(permits);
        let _permits = [admit(&limits, &two, Some(0)), admit(&limits, &one, Some(0))];
        drop(other);
        assert!(limits.admit(&two, Some(0)).is_ok());
    }

    #[test]
    fn unread_bodies_are_limited_per_sandbox_and_in_total() {
        let (limits, one) = (RequestLimits::new(usize::MAX, usize::MAX), route());
        let unread = SANDBOX_BODIES_BYTES_MAX >> 19;
        let mut permits: Vec<_> = (0..unread).map(|_| admit(&limits, &one, None)).collect();
        check_limit_reached(&limits, &one, None, unread);
        for _ in 1..BODIES_BYTES_MAX / SANDBOX_BODIES_BYTES_MAX {
            let route = route();
            permits.extend((0..unread).map(|_| admit(&limits, &route, None)));
            assert!(limits.admit(&route, Some(u64::MAX)).is_err(), "the sandbox's limit is reached");
            assert!(limits.admit(&route, Some(0)).is_ok(), "without a body");
        }
        assert!(limits.admit(&route(), Some(1)).is_err());
        permits.pop();
        assert!(limits.admit(&route(), Some(1)).is_ok());
    }

    #[test]
    fn unused_counters_are_removed() {
        let limits = RequestLimits::new(usize::MAX, usize::MAX);
        let kept = route();
        let _permit = admit(&limits, &kept, None);
        for _ in 0..3 * PRUNE_MIN {
            drop(admit(&limits, &route(), None));
        }
        let teams = limits.teams.0.lock().expect("not poisoned");
        assert!(teams.0.len() <= PRUNE_MIN && teams.0.contains_key(&kept.team_id));
    }
}
