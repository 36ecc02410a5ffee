//! What the socket of a connection and the requests on it know of each other: above all, how long it may go on without saying
//! anything.
//!
//! ```text
//!               request               last exchange ends
//!   Head ─────────────────▶ Busy(n) ────────────────────▶ Idle ──first byte (HTTP/1)──▶ Head
//!   (until HEAD_TIMEOUT)   (no limit)                     (until IDLE_TIMEOUT)
//!                             └── 101 ──▶ Switched (no limit: the stream is not ours any more)
//! ```
//!
//! The connection's [socket](super::socket) asks for the deadline while it waits for bytes; requests and answers tell what
//! happens, from other tasks. The lock is held for a few assignments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
use http::Version;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::HEAD_TIMEOUT;

/// What a connection is doing.
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
    /// The end of the last exchange, or the beginning of the connection.
    idle_since: Instant,
    /// HTTP/2 peers talk about the connection itself between requests: bytes do not mean that a head has exchange_begun.
    multiplexed: bool,
    /// A body of a request is still on its way: of the last one that began.
    body_pending: bool,
    /// The connection's task is just polling it.
    is_polled: bool,
    /// The deadline changed after it was last asked for.
    deadline_changed: bool,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    state: Mutex<State>,
    /// The task that waits for bytes: it learns of a new deadline.
    reader: AtomicWaker,
    /// Told when an exchange begins.
    exchange_begun: Notify,
    /// The last answer broke off, and only a reset connection can tell.
    needs_reset: AtomicBool,
    /// How long it may be idle.
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
        // Every section is one step on valid state, so a panic elsewhere leaves it valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When waiting for bytes is to end. `reader` is woken when that changes by itself.
    pub(super) fn deadline(&self, reader: &Waker) -> Option<Instant> {
        self.reader.register(reader);
        let mut state = self.state();
        state.deadline_changed = false;
        match state.phase {
            Phase::Head { until } | Phase::Idle { until } => Some(until),
            Phase::Busy { .. } | Phase::Switched => None,
        }
    }

    /// Polls the connection, once more whenever its deadline changed meanwhile and it did not ask again. An exchange that ends
    /// while the connection's task polls need not wake that task then, which would have another thread look for work.
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

    /// Notes that bytes came. Returns whether an exchange is under way, or another protocol spoken.
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

    /// Since when no exchange is under way, if that is so. What comes without ending a head does not count.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        matches!(state.phase, Phase::Head { .. } | Phase::Idle { .. }).then_some(state.idle_since)
    }

    /// Waits while a head is awaited or on its way. Cancel safe.
    pub(super) async fn wait_for_head(&self) {
        loop {
            // It learns of what happens after this line.
            let exchange_begun = self.exchange_begun.notified();
            if !matches!(self.state().phase, Phase::Head { .. }) {
                return;
            }
            exchange_begun.await;
        }
    }

    /// Whether an HTTP/1 request was read whole and is being answered. `reader` is woken when that becomes so.
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

    /// Whether the connection is to be reset instead of closed.
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

/// A request and its answer: lasts until both bodies are gone.
#[derive(Debug)]
pub(super) struct Exchange {
    connection_state: Arc<ConnectionState>,
}

impl Exchange {
    pub(super) fn begin(connection_state: Arc<ConnectionState>, version: Version, body_pending: bool) -> Self {
        connection_state.begin(version == Version::HTTP_2, body_pending);
        Self { connection_state }
    }

    /// The request was read whole, or nobody reads the rest.
    pub(super) fn body_finished(&self) {
        let mut state = self.connection_state.state();
        state.body_pending = false;
        let is_polled = state.is_polled;
        drop(state);
        if !is_polled {
            self.connection_state.reader.wake();
        }
    }

    /// The connection stops speaking HTTP.
    pub(super) fn switch_protocols(&self) {
        self.connection_state.state().phase = Phase::Switched;
    }

    /// The answer broke off, and its proper end would look the same: the end of the connection.
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

    fn time_left(connection_state: &ConnectionState) -> Option<Duration> {
        connection_state.deadline(Waker::noop()).map(|until| until - Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_on() {
        let connection_state = Arc::new(ConnectionState::new(IDLE_TIMEOUT));
        connection_state.bytes_received();
        tokio::time::advance(Duration::from_secs(1)).await;
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), Some(HEAD_TIMEOUT - Duration::from_secs(1)));

        let exchange = Exchange::begin(Arc::clone(&connection_state), Version::HTTP_11, false);
        assert_eq!(time_left(&connection_state), None);
        drop(exchange);
        assert_eq!(time_left(&connection_state), Some(IDLE_TIMEOUT));

        tokio::time::advance(Duration::from_secs(600)).await;
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), Some(HEAD_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_late_while_an_exchange_lasts() {
        let connection_state = Arc::new(ConnectionState::new(IDLE_TIMEOUT));
        let first = Exchange::begin(Arc::clone(&connection_state), Version::HTTP_2, false);
        let second = Exchange::begin(Arc::clone(&connection_state), Version::HTTP_2, false);
        drop(first);
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), None);
        drop(second);
        tokio::time::advance(Duration::from_secs(1)).await;
        // A ping of an idle HTTP/2 peer, not the beginning of a head.
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), Some(IDLE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_waited_for() {
        let connection_state = Arc::new(ConnectionState::new(IDLE_TIMEOUT));
        let (waiting, now) = (Arc::clone(&connection_state), Instant::now());
        let waiting = tokio::spawn(async move { waiting.wait_for_head().await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(Exchange::begin(Arc::clone(&connection_state), Version::HTTP_11, false));
        waiting.await.expect("no panic");
        connection_state.wait_for_head().await;
        assert_eq!(now.elapsed(), Duration::from_secs(1), "nothing is awaited of an idle connection");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upgraded_stream_is_never_late() {
        let connection_state = Arc::new(ConnectionState::new(IDLE_TIMEOUT));
        let exchange = Exchange::begin(Arc::clone(&connection_state), Version::HTTP_11, false);
        exchange.switch_protocols();
        drop(exchange);
        connection_state.bytes_received();
        assert_eq!(time_left(&connection_state), None);
    }

    #[test]
    fn the_reader_is_woken_unless_it_is_just_polled() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let _inside = runtime.enter();
        let connection_state = Arc::new(ConnectionState::new(IDLE_TIMEOUT));
        let woken = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&woken));
        let exchange = || Exchange::begin(Arc::clone(&connection_state), Version::HTTP_11, false);

        let one = exchange();
        assert_eq!(connection_state.deadline(&waker), None);
        drop(one);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);

        // It does not ask again by itself.
        let (mut two, mut deadlines) = (Some(exchange()), Vec::new());
        let polled = connection_state.poll_connection(|| {
            deadlines.push(connection_state.deadline(&waker));
            two = None;
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert!(matches!(deadlines[..], [None, Some(_)]), "{deadlines:?}");

        // It does.
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
