//! State of a connection, shared by its socket and its requests.
//!
//! ```text
//!               request               last exchange ends
//!   Head ─────────────────▶ Busy(n) ────────────────────▶ Idle ──first byte (HTTP/1)──▶ Head
//!   (until HEAD_TIMEOUT)   (no limit)                     (until IDLE_TIMEOUT)
//!                             └── 101 ──▶ Switched (no limit: the stream belongs to the handler)
//! ```
//!
//! The connection's [socket](super::socket) reads the deadline while it waits for bytes; requests and responses report
//! events from other tasks. The lock is held for a few assignments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
use http::Version;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::HEAD_TIMEOUT;

/// Phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head { until: Instant },
    Idle { until: Instant },
    Busy { exchanges: usize },
    Switched,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// End of the last exchange, or start of the connection.
    idle_since: Instant,
    /// The connection is HTTP/2. Its peers also send bytes between requests, so that bytes do not begin a head.
    multiplexed: bool,
    /// The body of the request that began last is not read completely.
    body_pending: bool,
    /// The connection's task is polling it.
    is_polled: bool,
    /// The deadline changed after it was last read.
    deadline_changed: bool,
}

/// State of one connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    state: Mutex<State>,
    /// Task that waits for bytes; woken when the deadline changes.
    reader: AtomicWaker,
    /// Notified when an exchange begins.
    exchange_begun: Notify,
    /// The last response broke off, and only a connection reset shows that to the client.
    needs_reset: AtomicBool,
    idle_timeout: Duration,
}

impl ConnectionState {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        let idle_since = Instant::now();
        let phase = Phase::Head { until: idle_since + HEAD_TIMEOUT };
        Self {
            state: Mutex::new(State {
                phase,
                idle_since,
                multiplexed: false,
                body_pending: false,
                is_polled: false,
                deadline_changed: false,
            }),
            idle_timeout,
            reader: AtomicWaker::new(),
            exchange_begun: Notify::new(),
            needs_reset: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each critical section is a single step that leaves valid state, so a poisoned lock is usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the deadline of waiting for bytes, and wakes `reader` when an event changes it.
    pub(super) fn deadline(&self, reader: &Waker) -> Option<Instant> {
        self.reader.register(reader);
        let mut state = self.state();
        state.deadline_changed = false;
        match state.phase {
            Phase::Head { until } | Phase::Idle { until } => Some(until),
            Phase::Busy { .. } | Phase::Switched => None,
        }
    }

    /// Polls the connection, and again while its deadline changed during the poll and was not read.
    ///
    /// This way an exchange that ends during the poll need not wake the connection's task, which would make another
    /// worker thread search for work.
    pub(super) fn poll_connection<T>(&self, mut poll: impl FnMut() -> Poll<T>) -> Poll<T> {
        loop {
            {
                let mut state = self.state();
                (state.is_polled, state.deadline_changed) = (true, false);
            }
            let polled = poll();
            let mut state = self.state();
            state.is_polled = false;
            if polled.is_ready() || !state.deadline_changed {
                return polled;
            }
        }
    }

    /// Records that bytes were received. Returns true if an exchange is in progress or the protocol was switched.
    pub(super) fn bytes_received(&self) -> bool {
        let mut state = self.state();
        if matches!(state.phase, Phase::Idle { .. }) {
            state.phase = if state.multiplexed {
                Phase::Idle { until: Instant::now() + self.idle_timeout }
            } else {
                Phase::Head { until: Instant::now() + HEAD_TIMEOUT }
            };
        }
        matches!(state.phase, Phase::Busy { .. } | Phase::Switched)
    }

    /// Returns the start of the idle time, if no exchange is in progress. An incomplete head does not end it.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        matches!(state.phase, Phase::Head { .. } | Phase::Idle { .. }).then_some(state.idle_since)
    }

    /// Waits until no head is expected or being received. Cancel safe.
    pub(super) async fn wait_for_head(&self) {
        loop {
            // It is notified of events after this line.
            let exchange_begun = self.exchange_begun.notified();
            if !matches!(self.state().phase, Phase::Head { .. }) {
                return;
            }
            exchange_begun.await;
        }
    }

    /// Returns true if an HTTP/1 request was read completely and its response is pending.
    ///
    /// Wakes `reader` when that becomes true.
    pub(super) fn is_awaiting_response(&self, reader: &Waker) -> bool {
        let state = self.state();
        if !matches!(state.phase, Phase::Busy { .. }) || state.multiplexed {
            return false;
        }
        if state.body_pending {
            self.reader.register(reader);
        }
        !state.body_pending
    }

    /// Returns true if the connection has to be reset instead of closed.
    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Relaxed)
    }

    fn begin(&self, multiplexed: bool, body_pending: bool) {
        let mut state = self.state();
        (state.multiplexed, state.body_pending) = (multiplexed, body_pending);
        state.phase = match state.phase {
            Phase::Head { .. } | Phase::Idle { .. } => Phase::Busy { exchanges: 1 },
            Phase::Busy { exchanges } => Phase::Busy { exchanges: exchanges + 1 },
            Phase::Switched => Phase::Switched,
        };
        drop(state);
        self.exchange_begun.notify_waiters();
    }

    fn end(&self) {
        let mut state = self.state();
        state.phase = match state.phase {
            Phase::Busy { exchanges: 0 | 1 } => {
                state.idle_since = Instant::now();
                Phase::Idle { until: state.idle_since + self.idle_timeout }
            }
            Phase::Busy { exchanges } => Phase::Busy { exchanges: exchanges - 1 },
            other => other,
        };
        state.deadline_changed = true;
        let is_polled = state.is_polled;
        drop(state);
        if !is_polled {
            self.reader.wake();
        }
    }
}

/// A request and its response, until both bodies are dropped.
#[derive(Debug)]
pub(super) struct Exchange {
    connection_state: Arc<ConnectionState>,
}

impl Exchange {
    pub(super) fn begin(connection_state: Arc<ConnectionState>, version: Version, body_pending: bool) -> Self {
        connection_state.begin(version == Version::HTTP_2, body_pending);
        Self { connection_state }
    }

    /// Records that the request's body was read completely or dropped.
    pub(super) fn body_finished(&self) {
        let mut state = self.connection_state.state();
        state.body_pending = false;
        let is_polled = state.is_polled;
        drop(state);
        if !is_polled {
            self.connection_state.reader.wake();
        }
    }

    /// Records that the connection stops speaking HTTP.
    pub(super) fn switch_protocols(&self) {
        self.connection_state.state().phase = Phase::Switched;
    }

    /// Records that the response broke off while its proper end, the end of the connection, would look the same.
    pub(super) fn require_reset(&self) {
        self.connection_state.needs_reset.store(true, Ordering::Relaxed);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection_state.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;
    use crate::serve::IDLE_TIMEOUT;

    fn new_connection() -> Arc<ConnectionState> {
        Arc::new(ConnectionState::new(IDLE_TIMEOUT))
    }

    fn begin(connection_state: &Arc<ConnectionState>, version: Version) -> Exchange {
        Exchange::begin(Arc::clone(connection_state), version, false)
    }

    fn time_left(connection_state: &ConnectionState) -> Option<Duration> {
        connection_state.deadline(Waker::noop()).map(|until| until - Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_timeout_starts_at_the_first_byte() {
        let connection_state = new_connection();
        connection_state.bytes_received();
        tokio::time::advance(Duration::from_secs(1)).await;
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), Some(HEAD_TIMEOUT - Duration::from_secs(1)));

        let exchange = begin(&connection_state, Version::HTTP_11);
        assert_eq!(time_left(&connection_state), None);
        drop(exchange);
        assert_eq!(time_left(&connection_state), Some(IDLE_TIMEOUT));

        tokio::time::advance(Duration::from_secs(600)).await;
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), Some(HEAD_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_no_deadline_during_an_exchange() {
        let connection_state = new_connection();
        let first = begin(&connection_state, Version::HTTP_2);
        let second = begin(&connection_state, Version::HTTP_2);
        drop(first);
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), None);
        drop(second);
        tokio::time::advance(Duration::from_secs(1)).await;
        // A ping of an idle HTTP/2 peer does not begin a head.
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), Some(IDLE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn wait_for_head_returns_when_an_exchange_begins() {
        let connection_state = new_connection();
        let (waiting, now) = (Arc::clone(&connection_state), Instant::now());
        let waiting = tokio::spawn(async move { waiting.wait_for_head().await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(begin(&connection_state, Version::HTTP_11));
        waiting.await.expect("the task does not panic");
        connection_state.wait_for_head().await;
        assert_eq!(now.elapsed(), Duration::from_secs(1), "an idle connection expects no head");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upgraded_stream_has_no_deadline() {
        let connection_state = new_connection();
        let exchange = begin(&connection_state, Version::HTTP_11);
        exchange.switch_protocols();
        drop(exchange);
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), None);
    }

    #[test]
    fn the_reader_is_woken_unless_it_is_being_polled() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let _inside = runtime.enter();
        let connection_state = new_connection();
        let woken = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&woken));
        let exchange = || begin(&connection_state, Version::HTTP_11);

        let one = exchange();
        assert_eq!(connection_state.deadline(&waker), None);
        drop(one);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);

        // The closure does not read the deadline again.
        let (mut two, mut deadlines) = (Some(exchange()), Vec::new());
        let polled = connection_state.poll_connection(|| {
            deadlines.push(connection_state.deadline(&waker));
            two = None;
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert!(matches!(deadlines[..], [None, Some(_)]), "{deadlines:?}");

        // The closure reads the deadline again.
        let (mut three, mut polls) = (Some(exchange()), 0);
        let polled = connection_state.poll_connection(|| {
            polls += 1;
            three = None;
            connection_state.deadline(&waker);
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((polls, woken.0.load(Ordering::Relaxed)), (1, 1));
    }

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
