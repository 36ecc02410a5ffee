//! What is counted, cut and closed together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dial::Protocol;
use crate::engine::connection::Connection;
use crate::engine::protocol::{PortSupport, Ports};
use crate::engine::{Config, Error, RequestGuard};

/// Idle connections of one key that are kept for as long as they may be. Steady use by a few clients needs no more.
const STEADY_MAX: usize = 16;
/// How long those beyond [`STEADY_MAX`] are kept: they are what a burst of requests left, and each holds descriptors.
const SURPLUS_TIMEOUT: Duration = Duration::from_secs(30);

/// What all groups of an engine have together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    requests: AtomicUsize,
    idle: AtomicUsize,
}

/// Counts one more, unless there are `limit` already.
fn count(counter: &AtomicUsize, limit: usize) -> Result<(), Error> {
    let one_more = |count: usize| (count < limit).then_some(count + 1);
    let counted = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
    counted.map(drop).map_err(|_| Error::TooManyRequests { limit })
}

/// The requests and idle connections of one execution or node.
#[derive(Debug)]
pub(super) struct Group {
    requests: AtomicUsize,
    totals: Arc<Totals>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Ends everything that was begun under it. Replaced when the group is cut.
    abort: Arc<CancellationToken>,
    idle: HashMap<(Option<u16>, Protocol), Vec<Idle>>,
    ports: Ports,
}

/// A connection that waits for the next request.
#[derive(Debug)]
struct Idle {
    connection: Connection,
    _counted: CountedIdle,
    since: Instant,
    until: Instant,
}

/// An idle connection among all of its engine.
#[derive(Debug)]
struct CountedIdle(Arc<Totals>);

impl Drop for CountedIdle {
    fn drop(&mut self) {
        self.0.idle.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Group {
    pub(super) fn new(abort: CancellationToken, totals: Arc<Totals>) -> Self {
        let state = State { abort: Arc::new(abort), idle: HashMap::new(), ports: Ports::default() };
        Self { requests: AtomicUsize::new(0), totals, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every section is one step on valid state, so a panic elsewhere leaves it valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more request to `port`, unless there are as many already as there may be.
    pub(super) fn admit(
        group: &Arc<Self>,
        port: Option<u16>,
        config: &Config,
        guard: Option<RequestGuard>,
    ) -> Result<AdmittedRequest, Error> {
        count(&group.requests, config.requests_per_group_max)?;
        if let Err(error) = count(&group.totals.requests, config.requests_max) {
            group.requests.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        let state = group.state();
        let (abort, port_support) = (Arc::clone(&state.abort), state.ports.get(port));
        drop(state);
        Ok(AdmittedRequest { abort, port, port_support, group: Arc::clone(group), _guard: guard })
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn idle_connections(&self) -> usize {
        self.state().idle.values().map(Vec::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests() == 0 && self.state().idle.is_empty()
    }

    /// Ends everything that runs; what comes later runs under `next`.
    pub(super) fn abort(&self, next: CancellationToken) {
        let mut state = self.state();
        std::mem::replace(&mut state.abort, Arc::new(next)).cancel();
        state.idle.clear();
    }

    /// Ends everything, also what comes later.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.abort.cancel();
        state.idle.clear();
    }

    pub(super) fn drop_expired(&self) {
        let now = Instant::now();
        self.state().idle.retain(|_, waiting| {
            // The oldest are first.
            let mut surplus = waiting.len().saturating_sub(STEADY_MAX);
            waiting.retain_mut(|idle| {
                let is_surplus = surplus > 0 && now.duration_since(idle.since) > SURPLUS_TIMEOUT;
                surplus = surplus.saturating_sub(1);
                !is_surplus && idle.until > now && idle.connection.is_open()
            });
            !waiting.is_empty()
        });
    }
}

/// A request that was let in: counted until it is dropped, and ended with its group.
#[derive(Debug)]
pub(super) struct AdmittedRequest {
    group: Arc<Group>,
    _guard: Option<RequestGuard>,
    /// Shared as a whole: a clone of a token takes locks of the tree that it is in.
    abort: Arc<CancellationToken>,
    port: Option<u16>,
    /// What the port spoke when the request was let in.
    pub(super) port_support: Option<PortSupport>,
}

impl AdmittedRequest {
    /// Cancelled when the request is to end at once.
    pub(super) fn abort_token(&self) -> Arc<CancellationToken> {
        Arc::clone(&self.abort)
    }

    /// Takes note of what the port speaks.
    pub(super) fn record_support(&self, support: PortSupport) {
        self.group.state().ports.set(self.port, support);
    }

    /// The idle connection that was used last, so that those that are not needed grow old. If even that one was idle for longer
    /// than `idle_max` it is closed: the caller's new connection takes its place, and there are not more and more of them.
    pub(super) fn take_idle(&self, protocol: Protocol, idle_max: Duration) -> Option<Connection> {
        let now = Instant::now();
        let mut state = self.group.state();
        if self.abort.is_cancelled() {
            return None;
        }
        let waiting = state.idle.get_mut(&(self.port, protocol))?;
        let mut found = None;
        while let Some(mut idle) = waiting.pop() {
            if idle.until > now && idle.connection.is_ready() {
                found = (now.duration_since(idle.since) <= idle_max).then_some(idle.connection);
                break;
            }
        }
        if waiting.is_empty() {
            state.idle.remove(&(self.port, protocol));
        }
        found
    }

    /// Keeps a connection for the next request, for at most `idle_timeout`. When there are `of_port_max` already the oldest goes; when all
    /// groups have `in_all_max`, it is closed.
    pub(super) fn put_idle(
        &self,
        connection: Connection,
        idle_timeout: Duration,
        [of_port_max, in_all_max]: [usize; 2],
    ) {
        let key = (self.port, connection.protocol());
        let now = Instant::now();
        let mut state = self.group.state();
        // Checked under the lock: after a cut nothing of before comes back.
        if self.abort.is_cancelled() || of_port_max == 0 {
            return;
        }
        if let Some(waiting) = state.idle.get_mut(&key)
            && waiting.len() >= of_port_max
        {
            waiting.remove(0);
        }
        if count(&self.group.totals.idle, in_all_max).is_err() {
            return;
        }
        connection.clear_waker();
        let _counted = CountedIdle(Arc::clone(&self.group.totals));
        state.idle.entry(key).or_default().push(Idle { connection, _counted, since: now, until: now + idle_timeout });
    }
}

impl Drop for AdmittedRequest {
    fn drop(&mut self) {
        self.group.requests.fetch_sub(1, Ordering::Relaxed);
        self.group.totals.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
