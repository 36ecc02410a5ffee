//! Requests and idle connections of one execution or node.

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

/// Idle connections per key that stay open for the whole idle timeout.
///
/// Steady use by a few clients needs no more.
const STEADY_MAX: usize = 16;
/// Idle timeout of connections beyond [`STEADY_MAX`].
///
/// They remain after a burst of requests, and each holds descriptors.
const SURPLUS_TIMEOUT: Duration = Duration::from_secs(30);

/// Counters of all groups of an engine.
#[derive(Debug, Default)]
pub(super) struct Totals {
    requests: AtomicUsize,
    idle: AtomicUsize,
}

/// Increments a counter unless it has reached `limit`.
fn count(counter: &AtomicUsize, limit: usize) -> Result<(), Error> {
    let one_more = |count: usize| (count < limit).then_some(count + 1);
    let counted = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
    counted.map(drop).map_err(|_| Error::TooManyRequests { limit })
}

/// Requests and idle connections of one execution or node, counted, aborted and closed together.
#[derive(Debug)]
pub(super) struct Group {
    requests: AtomicUsize,
    totals: Arc<Totals>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Aborts the requests that were admitted under it. Replaced when the group is aborted.
    abort: Arc<CancellationToken>,
    idle: HashMap<(Option<u16>, Protocol), Vec<Idle>>,
    ports: Ports,
}

/// Connection that waits for the next request.
#[derive(Debug)]
struct Idle {
    connection: Connection,
    _counted: CountedIdle,
    since: Instant,
    until: Instant,
}

/// Counts an idle connection among all of its engine until it is dropped.
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
        // Each critical section is a single step that leaves valid state, so a poisoned lock is usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a request to `port` unless a maximum is reached.
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

    /// Aborts all requests; later ones are admitted under `next`.
    pub(super) fn abort(&self, next: CancellationToken) {
        let mut state = self.state();
        std::mem::replace(&mut state.abort, Arc::new(next)).cancel();
        state.idle.clear();
    }

    /// Aborts all requests, also later ones.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.abort.cancel();
        state.idle.clear();
    }

    pub(super) fn drop_expired(&self) {
        let now = Instant::now();
        self.state().idle.retain(|_, waiting| {
            // Sorted by age, oldest first.
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

/// Admitted request: counted until it is dropped, and aborted with its group.
#[derive(Debug)]
pub(super) struct AdmittedRequest {
    group: Arc<Group>,
    _guard: Option<RequestGuard>,
    /// In an `Arc`, because cloning a token takes locks of its tree.
    abort: Arc<CancellationToken>,
    port: Option<u16>,
    /// Protocol support of the port when the request was admitted.
    pub(super) port_support: Option<PortSupport>,
}

impl AdmittedRequest {
    /// Returns a token that is cancelled when the request has to be aborted.
    pub(super) fn abort_token(&self) -> Arc<CancellationToken> {
        Arc::clone(&self.abort)
    }

    /// Stores the protocol support of the port.
    pub(super) fn record_support(&self, support: PortSupport) {
        self.group.state().ports.set(self.port, support);
    }

    /// Takes the idle connection that was used last, so that surplus connections grow old.
    ///
    /// If even that one was idle for longer than `idle_max` it is closed: the caller's new connection replaces it, and
    /// the number of connections does not grow.
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

    /// Stores a connection for the next request, for at most `idle_timeout`.
    ///
    /// If the port has `of_port_max` idle connections, the oldest is closed; if all groups have `in_all_max`, this one
    /// is.
    pub(super) fn put_idle(
        &self,
        connection: Connection,
        idle_timeout: Duration,
        [of_port_max, in_all_max]: [usize; 2],
    ) {
        let key = (self.port, connection.protocol());
        let now = Instant::now();
        let mut state = self.group.state();
        // Checked under the lock: a connection from before an abort must not be stored.
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
