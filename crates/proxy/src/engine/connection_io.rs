//! I/O of a connection, polled by the task that waits for its response.
//!
//! hyper moves a connection's bytes in a future of its own. In a task of its own, that future would need a switch
//! between tasks for each request and for each response. So it is polled together with the future that waits for the
//! response, and is spawned as a task only when both have to make progress independently.

use std::fmt::{self, Debug};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;
use hearth_stdx::TaskSet;
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;

use crate::engine::response_limits::Shared;

/// Polls of both futures before the task yields. Each wakes the other a few times in an exchange.
const ROUNDS_MAX: usize = 16;

/// The connection future of hyper.
pub(super) struct ConnectionIo {
    /// `None` if it has completed or was spawned as a task.
    future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    wake_state: Arc<WakeState>,
    waker: Waker,
    /// Holds the byte budget, here and in a task.
    shared: Arc<Shared>,
    /// The future has been polled since it was last woken.
    is_up_to_date: bool,
}

impl Debug for ConnectionIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionIo").field("is_inline", &self.future.is_some()).finish_non_exhaustive()
    }
}

/// Waker of a connection's future.
///
/// It wakes the waiting task, except while that task polls: then the task checks the flag before it returns.
struct WakeState {
    is_woken: AtomicBool,
    is_polling: AtomicBool,
    task: AtomicWaker,
}

impl Wake for WakeState {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // `WakeState::poll_tracked` accesses the two in the opposite order, so one side always sees the other.
        self.is_woken.store(true, Ordering::SeqCst);
        if !self.is_polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl WakeState {
    /// Calls `poll` and reports if a wake-up arrived meanwhile.
    fn poll_tracked<T>(&self, poll: impl FnOnce() -> T) -> (T, bool) {
        self.is_polling.store(true, Ordering::SeqCst);
        // This poll sees everything that caused earlier wake-ups.
        self.is_woken.swap(false, Ordering::SeqCst);
        let polled = poll();
        self.is_polling.store(false, Ordering::SeqCst);
        (polled, self.is_woken.load(Ordering::SeqCst))
    }
}

impl ConnectionIo {
    pub(super) fn new(shared: Arc<Shared>, future: impl Future<Output = ()> + Send + 'static) -> Self {
        let wake_state = WakeState {
            is_woken: AtomicBool::new(false),
            is_polling: AtomicBool::new(false),
            task: AtomicWaker::new(),
        };
        let wake_state = Arc::new(wake_state);
        // The future must see all that is ready, whatever is left of tokio's budget; the byte budget bounds it.
        let future = Box::pin(unconstrained(future));
        Self {
            future: Some(future),
            waker: Waker::from(Arc::clone(&wake_state)),
            wake_state,
            shared,
            is_up_to_date: false,
        }
    }

    /// Polls `poll_request`, which waits for something of the connection, and the connection's future while it makes
    /// progress.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll_request: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if self.future.is_none() {
            return poll_request(cx);
        }
        self.is_up_to_date = false;
        self.shared.budget.reset();
        self.wake_state.task.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            let (wake_state, future, waker) = (&self.wake_state, &mut self.future, &self.waker);
            let (polled, is_woken) = wake_state.poll_tracked(|| {
                let cx = &mut Context::from_waker(waker);
                let polled = poll_request(cx);
                if polled.is_ready() || !poll_future(future, cx) {
                    return polled;
                }
                poll_request(cx)
            });
            if self.future.is_none() {
                // The future has completed and wakes nobody any more.
                return if polled.is_ready() { polled } else { poll_request(cx) };
            }
            if polled.is_ready() || !is_woken {
                return polled;
            }
            if self.shared.budget.was_exhausted() {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Polls the future if it was woken since the last poll.
    pub(super) fn poll_if_woken(&mut self) {
        if self.is_up_to_date && !self.wake_state.is_woken.load(Ordering::SeqCst) {
            return;
        }
        self.shared.budget.reset();
        let (wake_state, future, waker) = (&self.wake_state, &mut self.future, &self.waker);
        let (_, is_woken) = wake_state.poll_tracked(|| poll_future(future, &mut Context::from_waker(waker)));
        self.is_up_to_date = !is_woken;
    }

    /// Drops the waker: no task waits for the connection for now.
    pub(super) fn clear_waker(&self) {
        self.wake_state.task.take();
    }

    /// Moves the future into a task, which stops when the connection is over or `abort` is cancelled.
    ///
    /// An abort shows as an error to the task that waits for the response.
    pub(super) fn detach(&mut self, tasks: &TaskSet, abort: Arc<CancellationToken>) {
        if let Some(future) = self.future.take() {
            tasks.spawn("upstream connection", async move {
                abort.run_until_cancelled(future).await;
            });
        }
    }
}

/// Polls the future. Returns false if there is none.
fn poll_future(slot: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>, cx: &mut Context<'_>) -> bool {
    let Some(future) = slot else { return false };
    if future.as_mut().poll(cx).is_ready() {
        *slot = None;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns a connection future that echoes messages, and both ends of it.
    fn echo() -> (ConnectionIo, mpsc::UnboundedSender<u8>, mpsc::UnboundedReceiver<u8>) {
        let (request, mut requests) = mpsc::unbounded_channel();
        let (responses, response) = mpsc::unbounded_channel();
        let connection_io = ConnectionIo::new(Arc::default(), async move {
            while let Some(message) = requests.recv().await {
                if responses.send(message).is_err() {
                    return;
                }
            }
        });
        (connection_io, request, response)
    }

    #[test]
    fn the_task_that_polls_is_not_woken() {
        let (mut connection_io, request, mut response) = echo();
        let woken = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        for message in 1..=3 {
            assert!(connection_io.poll(&mut cx, |cx| response.poll_recv(cx)).is_pending());
            let before = woken.0.load(Ordering::Relaxed);
            request.send(message).expect("the channel is open");
            assert_eq!(woken.0.load(Ordering::Relaxed), before + 1, "a message outside of a poll wakes the task");
            assert_eq!(connection_io.poll(&mut cx, |cx| response.poll_recv(cx)), Poll::Ready(Some(message)));
            assert_eq!(woken.0.load(Ordering::Relaxed), before + 1);
        }
        connection_io.clear_waker();
        request.send(4).expect("the channel is open");
        assert_eq!(woken.0.load(Ordering::Relaxed), 3, "no task is woken");
        connection_io.poll_if_woken();
        assert_eq!(response.try_recv(), Ok(4));
    }

    #[test]
    fn the_end_of_the_future_is_seen() {
        let (mut connection_io, request, mut response) = echo();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(connection_io.poll(&mut cx, |cx| response.poll_recv(cx)).is_pending());
        drop(request);
        assert_eq!(connection_io.poll(&mut cx, |cx| response.poll_recv(cx)), Poll::Ready(None));
        assert_eq!(connection_io.poll(&mut cx, |_| Poll::Ready(1)), Poll::Ready(1));
    }

    #[test]
    fn a_future_that_is_always_ready_yields() {
        let mut connection_io = ConnectionIo::new(
            Arc::default(),
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::Pending
            }),
        );
        let woken = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert!(connection_io.poll(&mut Context::from_waker(&waker), |_| Poll::<()>::Pending).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "the task is woken again");
    }

    #[tokio::test]
    async fn a_detached_task_runs_until_it_is_aborted() {
        let (mut connection_io, request, mut response) = echo();
        let (tasks, abort) = (TaskSet::new(), Arc::new(CancellationToken::new()));
        connection_io.detach(&tasks, Arc::clone(&abort));
        request.send(1).expect("the channel is open");
        assert_eq!(response.recv().await, Some(1));
        abort.cancel();
        assert_eq!(poll_fn(|cx| connection_io.poll(cx, |cx| response.poll_recv(cx))).await, None);
        assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_is_lost_between_threads() {
        for _ in 0..2000 {
            let (mut connection_io, request, mut response) = echo();
            let (start, started) = oneshot::channel();
            let other = tokio::spawn(async move {
                started.await.expect("the other side sends");
                request.send(7).expect("the channel is open");
            });
            start.send(()).expect("the task waits");
            let received = poll_fn(|cx| connection_io.poll(cx, |cx| response.poll_recv(cx)));
            let received = tokio::time::timeout(Duration::from_secs(10), received).await.expect("the task is woken");
            assert_eq!(received, Some(7));
            other.await.expect("the task does not panic");
        }
    }
}
