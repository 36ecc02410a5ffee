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
    /// HTTP/2 peers talk about the connection itself between requests: bytes do not mean that a head has begun.
    multiplexed: bool,
    /// A body of a request is still on its way: of the last one that began.
    has_body: bool,
    /// The connection's task is just polling it.
    is_polled: bool,
    /// The deadline changed after it was last asked for.
    is_news: bool,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Conversation {
    state: Mutex<State>,
    /// The task that waits for bytes: it learns of a new deadline.
    reader: AtomicWaker,
    /// Told when an exchange begins.
    begun: Notify,
    /// The last answer broke off, and only a reset connection can tell.
    broken: AtomicBool,
    /// How long it may be idle.
    idle_timeout: Duration,
}

impl Conversation {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        let idle_since = Instant::now();
        let phase = Phase::Head { until: idle_since + HEAD_TIMEOUT };
        Self {
            state: Mutex::new(State {
                phase,
                idle_since,
                multiplexed: false,
                has_body: false,
                is_polled: false,
                is_news: false,
            }),
            idle_timeout,
            reader: AtomicWaker::new(),
            begun: Notify::new(),
            broken: AtomicBool::new(false),
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
        state.is_news = false;
        match state.phase {
            Phase::Head { until } | Phase::Idle { until } => Some(until),
            Phase::Busy { .. } | Phase::Switched => None,
        }
    }

    /// Polls the connection, once more whenever its deadline changed meanwhile and it did not ask again. An exchange that ends
    /// while the connection's task polls need not wake that task then, which would have another thread look for work.
    pub(super) fn during<T>(&self, mut poll: impl FnMut() -> Poll<T>) -> Poll<T> {
        loop {
            {
                let mut state = self.state();
                (state.is_polled, state.is_news) = (true, false);
            }
            let polled = poll();
            let mut state = self.state();
            state.is_polled = false;
            if polled.is_ready() || !state.is_news {
                return polled;
            }
        }
    }

    /// Notes that bytes came. Returns whether an exchange is under way, or another protocol spoken.
    pub(super) fn bytes_arrived(&self) -> bool {
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
    pub(super) async fn head_is_over(&self) {
        loop {
            // It learns of what happens after this line.
            let begun = self.begun.notified();
            if !matches!(self.state().phase, Phase::Head { .. }) {
                return;
            }
            begun.await;
        }
    }

    /// Whether an HTTP/1 request was read whole and is being answered. `reader` is woken when that becomes so.
    pub(super) fn is_answering(&self, reader: &Waker) -> bool {
        let state = self.state();
        if !matches!(state.phase, Phase::Busy { .. }) || state.multiplexed {
            return false;
        }
        if state.has_body {
            self.reader.register(reader);
        }
        !state.has_body
    }

    /// Whether the connection is to be reset instead of closed.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn begin(&self, multiplexed: bool, has_body: bool) {
        let mut state = self.state();
        (state.multiplexed, state.has_body) = (multiplexed, has_body);
        state.phase = match state.phase {
            Phase::Head { .. } | Phase::Idle { .. } => Phase::Busy { exchanges: 1 },
            Phase::Busy { exchanges } => Phase::Busy { exchanges: exchanges + 1 },
            Phase::Switched => Phase::Switched,
        };
        drop(state);
        self.begun.notify_waiters();
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
        state.is_news = true;
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
    conversation: Arc<Conversation>,
}

impl Exchange {
    pub(super) fn begin(conversation: Arc<Conversation>, version: Version, has_body: bool) -> Self {
        conversation.begin(version == Version::HTTP_2, has_body);
        Self { conversation }
    }

    /// The request was read whole, or nobody reads the rest.
    pub(super) fn body_is_over(&self) {
        let mut state = self.conversation.state();
        state.has_body = false;
        let is_polled = state.is_polled;
        drop(state);
        if !is_polled {
            self.conversation.reader.wake();
        }
    }

    /// The connection stops speaking HTTP.
    pub(super) fn switch(&self) {
        self.conversation.state().phase = Phase::Switched;
    }

    /// The answer broke off, and its proper end would look the same: the end of the connection.
    pub(super) fn set_broken(&self) {
        self.conversation.broken.store(true, Ordering::Relaxed);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.conversation.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;
    use crate::serve::IDLE_TIMEOUT;

    fn left(conversation: &Conversation) -> Option<Duration> {
        conversation.deadline(Waker::noop()).map(|until| until - Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_on() {
        let conversation = Arc::new(Conversation::new(IDLE_TIMEOUT));
        conversation.bytes_arrived();
        tokio::time::advance(Duration::from_secs(1)).await;
        conversation.bytes_arrived();
        assert_eq!(left(&conversation), Some(HEAD_TIMEOUT - Duration::from_secs(1)));

        let exchange = Exchange::begin(Arc::clone(&conversation), Version::HTTP_11, false);
        assert_eq!(left(&conversation), None);
        drop(exchange);
        assert_eq!(left(&conversation), Some(IDLE_TIMEOUT));

        tokio::time::advance(Duration::from_secs(600)).await;
        conversation.bytes_arrived();
        assert_eq!(left(&conversation), Some(HEAD_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_late_while_an_exchange_lasts() {
        let conversation = Arc::new(Conversation::new(IDLE_TIMEOUT));
        let first = Exchange::begin(Arc::clone(&conversation), Version::HTTP_2, false);
        let second = Exchange::begin(Arc::clone(&conversation), Version::HTTP_2, false);
        drop(first);
        conversation.bytes_arrived();
        assert_eq!(left(&conversation), None);
        drop(second);
        tokio::time::advance(Duration::from_secs(1)).await;
        // A ping of an idle HTTP/2 peer, not the beginning of a head.
        conversation.bytes_arrived();
        assert_eq!(left(&conversation), Some(IDLE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_waited_for() {
        let conversation = Arc::new(Conversation::new(IDLE_TIMEOUT));
        let (waiting, now) = (Arc::clone(&conversation), Instant::now());
        let waiting = tokio::spawn(async move { waiting.head_is_over().await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(Exchange::begin(Arc::clone(&conversation), Version::HTTP_11, false));
        waiting.await.expect("no panic");
        conversation.head_is_over().await;
        assert_eq!(now.elapsed(), Duration::from_secs(1), "nothing is awaited of an idle connection");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upgraded_stream_is_never_late() {
        let conversation = Arc::new(Conversation::new(IDLE_TIMEOUT));
        let exchange = Exchange::begin(Arc::clone(&conversation), Version::HTTP_11, false);
        exchange.switch();
        drop(exchange);
        conversation.bytes_arrived();
        assert_eq!(left(&conversation), None);
    }

    #[test]
    fn the_reader_is_woken_unless_it_is_just_polled() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let _inside = runtime.enter();
        let conversation = Arc::new(Conversation::new(IDLE_TIMEOUT));
        let woken = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&woken));
        let exchange = || Exchange::begin(Arc::clone(&conversation), Version::HTTP_11, false);

        let one = exchange();
        assert_eq!(conversation.deadline(&waker), None);
        drop(one);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);

        // It does not ask again by itself.
        let (mut two, mut deadlines) = (Some(exchange()), Vec::new());
        let polled = conversation.during(|| {
            deadlines.push(conversation.deadline(&waker));
            two = None;
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert!(matches!(deadlines[..], [None, Some(_)]), "{deadlines:?}");

        // It does.
        let (mut three, mut polls) = (Some(exchange()), 0);
        let polled = conversation.during(|| {
            polls += 1;
            three = None;
            conversation.deadline(&waker);
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
