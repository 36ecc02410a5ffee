//! Who moves the bytes of a connection: whoever waits for something of it.
//!
//! hyper leaves a connection's bytes to a future of their own. If that were a task, every request would be handed over between
//! tasks on its way out and on its way back. So it is polled along with what is awaited, until that needs nothing more, and
//! becomes a task only when the two must go on independently.

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

/// How often the two are polled before others get their turn. Each wakes the other a few times in an exchange.
const ROUNDS_MAX: usize = 16;

/// A connection's own future.
pub(super) struct ConnectionIo {
    /// `None`: it is over, or a task's.
    future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    wake_state: Arc<WakeState>,
    waker: Waker,
    /// Bounds how long the bytes are moved, here and in a task.
    shared: Arc<Shared>,
    /// It has seen everything that happened before the wake_state last rang.
    is_up_to_date: bool,
}

impl Debug for ConnectionIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionIo").field("is_here", &self.future.is_some()).finish_non_exhaustive()
    }
}

/// Told when something happens to a connection, by others or by itself. It wakes the task that waits, but not the one that is just
/// polling: that one looks at the wake_state before it goes.
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
        // In this order, as `WakeState::watch` has it the other way round: one of the two sees the other.
        self.is_woken.store(true, Ordering::SeqCst);
        if !self.is_polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl WakeState {
    /// Polls, and tells whether the wake_state rang meanwhile.
    fn poll_tracked<T>(&self, poll: impl FnOnce() -> T) -> (T, bool) {
        self.is_polling.store(true, Ordering::SeqCst);
        // What rang before is seen by this poll.
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
        // A look at it is to see what there is, whatever the budget of the task that looks. Its own turn bounds it.
        let future = Box::pin(unconstrained(future));
        Self {
            future: Some(future),
            waker: Waker::from(Arc::clone(&wake_state)),
            wake_state,
            shared,
            is_up_to_date: false,
        }
    }

    /// Polls `wanted`, which waits for something of the connection, and moves the connection's bytes as long as that helps.
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
                // Nobody rings any more.
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

    /// Takes note of what happened since the last poll.
    pub(super) fn poll_if_woken(&mut self) {
        if self.is_up_to_date && !self.wake_state.is_woken.load(Ordering::SeqCst) {
            return;
        }
        self.shared.budget.reset();
        let (wake_state, future, waker) = (&self.wake_state, &mut self.future, &self.waker);
        let (_, is_woken) = wake_state.poll_tracked(|| poll_future(future, &mut Context::from_waker(waker)));
        self.is_up_to_date = !is_woken;
    }

    /// Nobody waits for anything of it for now.
    pub(super) fn clear_waker(&self) {
        self.wake_state.task.take();
    }

    /// Leaves the bytes to a task, until the connection is over or `cut` is cancelled. Being cut shows to whoever waits.
    pub(super) fn detach(&mut self, tasks: &TaskSet, abort: Arc<CancellationToken>) {
        if let Some(future) = self.future.take() {
            tasks.spawn("upstream connection", async move {
                abort.run_until_cancelled(future).await;
            });
        }
    }
}

/// `false`: there is nothing to poll.
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

    /// A connection_io that hands back what it is sent, and its two ends.
    fn echo() -> (ConnectionIo, mpsc::UnboundedSender<u8>, mpsc::UnboundedReceiver<u8>) {
        let (request, mut requests) = mpsc::unbounded_channel();
        let (answers, answer) = mpsc::unbounded_channel();
        let connection_io = ConnectionIo::new(Arc::default(), async move {
            while let Some(message) = requests.recv().await {
                if answers.send(message).is_err() {
                    return;
                }
            }
        });
        (connection_io, request, answer)
    }

    #[test]
    fn the_task_that_polls_is_not_woken() {
        let (mut connection_io, request, mut answer) = echo();
        let woken = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        for message in 1..=3 {
            assert!(connection_io.poll(&mut cx, |cx| answer.poll_recv(cx)).is_pending());
            let before = woken.0.load(Ordering::Relaxed);
            request.send(message).expect("it is open");
            assert_eq!(woken.0.load(Ordering::Relaxed), before + 1, "what comes while nobody polls wakes");
            assert_eq!(connection_io.poll(&mut cx, |cx| answer.poll_recv(cx)), Poll::Ready(Some(message)));
            assert_eq!(woken.0.load(Ordering::Relaxed), before + 1);
        }
        connection_io.clear_waker();
        request.send(4).expect("it is open");
        assert_eq!(woken.0.load(Ordering::Relaxed), 3, "nobody waits");
        connection_io.poll_if_woken();
        assert_eq!(answer.try_recv(), Ok(4));
    }

    #[test]
    fn its_end_shows() {
        let (mut connection_io, request, mut answer) = echo();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(connection_io.poll(&mut cx, |cx| answer.poll_recv(cx)).is_pending());
        drop(request);
        assert_eq!(connection_io.poll(&mut cx, |cx| answer.poll_recv(cx)), Poll::Ready(None));
        assert_eq!(connection_io.poll(&mut cx, |_| Poll::Ready(1)), Poll::Ready(1));
    }

    #[test]
    fn one_that_never_rests_lets_others_have_their_turn() {
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
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "and comes back");
    }

    #[tokio::test]
    async fn a_task_goes_on_by_itself_until_it_is_cut() {
        let (mut connection_io, request, mut answer) = echo();
        let (tasks, abort) = (TaskSet::new(), Arc::new(CancellationToken::new()));
        connection_io.detach(&tasks, Arc::clone(&abort));
        request.send(1).expect("it is open");
        assert_eq!(answer.recv().await, Some(1));
        abort.cancel();
        assert_eq!(poll_fn(|cx| connection_io.poll(cx, |cx| answer.poll_recv(cx))).await, None);
        assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost_between_threads() {
        for _ in 0..2000 {
            let (mut connection_io, request, mut answer) = echo();
            let (tell, told) = oneshot::channel();
            let other = tokio::spawn(async move {
                told.await.expect("it is told");
                request.send(7).expect("it is open");
            });
            tell.send(()).expect("it waits");
            let received = poll_fn(|cx| connection_io.poll(cx, |cx| answer.poll_recv(cx)));
            let received = tokio::time::timeout(Duration::from_secs(10), received).await.expect("it is woken");
            assert_eq!(received, Some(7));
            other.await.expect("no panic");
        }
    }
}
