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

use crate::engine::guard::Shared;

/// How often the two are polled before others get their turn. Each wakes the other a few times in an exchange.
const ROUNDS_MAX: usize = 16;

/// A connection's own future.
pub(super) struct Drive {
    /// `None`: it is over, or a task's.
    bytes: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    bell: Arc<Bell>,
    ringer: Waker,
    /// Bounds how long the bytes are moved, here and in a task.
    shared: Arc<Shared>,
    /// It has seen everything that happened before the bell last rang.
    is_up_to_date: bool,
}

impl Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive").field("is_here", &self.bytes.is_some()).finish_non_exhaustive()
    }
}

/// Told when something happens to a connection, by others or by itself. It wakes the task that waits, but not the one that is just
/// polling: that one looks at the bell before it goes.
struct Bell {
    is_rung: AtomicBool,
    is_watched: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order, as `Bell::watch` has it the other way round: one of the two sees the other.
        self.is_rung.store(true, Ordering::SeqCst);
        if !self.is_watched.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl Bell {
    /// Polls, and tells whether the bell rang meanwhile.
    fn watch<T>(&self, poll: impl FnOnce() -> T) -> (T, bool) {
        self.is_watched.store(true, Ordering::SeqCst);
        // What rang before is seen by this poll.
        self.is_rung.swap(false, Ordering::SeqCst);
        let polled = poll();
        self.is_watched.store(false, Ordering::SeqCst);
        (polled, self.is_rung.load(Ordering::SeqCst))
    }
}

impl Drive {
    pub(super) fn new(shared: Arc<Shared>, bytes: impl Future<Output = ()> + Send + 'static) -> Self {
        let bell =
            Bell { is_rung: AtomicBool::new(false), is_watched: AtomicBool::new(false), task: AtomicWaker::new() };
        let bell = Arc::new(bell);
        // A look at it is to see what there is, whatever the budget of the task that looks. Its own turn bounds it.
        let bytes = Box::pin(unconstrained(bytes));
        Self { bytes: Some(bytes), ringer: Waker::from(Arc::clone(&bell)), bell, shared, is_up_to_date: false }
    }

    /// Polls `wanted`, which waits for something of the connection, and moves the connection's bytes as long as that helps.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if self.bytes.is_none() {
            return wanted(cx);
        }
        self.is_up_to_date = false;
        self.shared.turn.begin();
        self.bell.task.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            let (bell, bytes, ringer) = (&self.bell, &mut self.bytes, &self.ringer);
            let (polled, is_rung) = bell.watch(|| {
                let cx = &mut Context::from_waker(ringer);
                let polled = wanted(cx);
                if polled.is_ready() || !advance(bytes, cx) {
                    return polled;
                }
                wanted(cx)
            });
            if self.bytes.is_none() {
                // Nobody rings any more.
                return if polled.is_ready() { polled } else { wanted(cx) };
            }
            if polled.is_ready() || !is_rung {
                return polled;
            }
            if self.shared.turn.is_over() {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes note of what happened since the last poll.
    pub(super) fn catch_up(&mut self) {
        if self.is_up_to_date && !self.bell.is_rung.load(Ordering::SeqCst) {
            return;
        }
        self.shared.turn.begin();
        let (bell, bytes, ringer) = (&self.bell, &mut self.bytes, &self.ringer);
        let (_, is_rung) = bell.watch(|| advance(bytes, &mut Context::from_waker(ringer)));
        self.is_up_to_date = !is_rung;
    }

    /// Nobody waits for anything of it for now.
    pub(super) fn rest(&self) {
        self.bell.task.take();
    }

    /// Leaves the bytes to a task, until the connection is over or `cut` is cancelled. Being cut shows to whoever waits.
    pub(super) fn detach(&mut self, tasks: &TaskSet, cut: Arc<CancellationToken>) {
        if let Some(bytes) = self.bytes.take() {
            tasks.spawn("upstream connection", async move {
                cut.run_until_cancelled(bytes).await;
            });
        }
    }
}

/// `false`: there is nothing to poll.
fn advance(bytes: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>, cx: &mut Context<'_>) -> bool {
    let Some(future) = bytes else { return false };
    if future.as_mut().poll(cx).is_ready() {
        *bytes = None;
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

    /// A drive that hands back what it is sent, and its two ends.
    fn echo() -> (Drive, mpsc::UnboundedSender<u8>, mpsc::UnboundedReceiver<u8>) {
        let (request, mut requests) = mpsc::unbounded_channel();
        let (answers, answer) = mpsc::unbounded_channel();
        let drive = Drive::new(Arc::default(), async move {
            while let Some(message) = requests.recv().await {
                if answers.send(message).is_err() {
                    return;
                }
            }
        });
        (drive, request, answer)
    }

    #[test]
    fn the_task_that_polls_is_not_woken() {
        let (mut drive, request, mut answer) = echo();
        let woken = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        for message in 1..=3 {
            assert!(drive.poll(&mut cx, |cx| answer.poll_recv(cx)).is_pending());
            let before = woken.0.load(Ordering::Relaxed);
            request.send(message).expect("it is open");
            assert_eq!(woken.0.load(Ordering::Relaxed), before + 1, "what comes while nobody polls wakes");
            assert_eq!(drive.poll(&mut cx, |cx| answer.poll_recv(cx)), Poll::Ready(Some(message)));
            assert_eq!(woken.0.load(Ordering::Relaxed), before + 1);
        }
        drive.rest();
        request.send(4).expect("it is open");
        assert_eq!(woken.0.load(Ordering::Relaxed), 3, "nobody waits");
        drive.catch_up();
        assert_eq!(answer.try_recv(), Ok(4));
    }

    #[test]
    fn its_end_shows() {
        let (mut drive, request, mut answer) = echo();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(drive.poll(&mut cx, |cx| answer.poll_recv(cx)).is_pending());
        drop(request);
        assert_eq!(drive.poll(&mut cx, |cx| answer.poll_recv(cx)), Poll::Ready(None));
        assert_eq!(drive.poll(&mut cx, |_| Poll::Ready(1)), Poll::Ready(1));
    }

    #[test]
    fn one_that_never_rests_lets_others_have_their_turn() {
        let mut drive = Drive::new(
            Arc::default(),
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::Pending
            }),
        );
        let woken = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert!(drive.poll(&mut Context::from_waker(&waker), |_| Poll::<()>::Pending).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "and comes back");
    }

    #[tokio::test]
    async fn a_task_goes_on_by_itself_until_it_is_cut() {
        let (mut drive, request, mut answer) = echo();
        let (tasks, cut) = (TaskSet::new(), Arc::new(CancellationToken::new()));
        drive.detach(&tasks, Arc::clone(&cut));
        request.send(1).expect("it is open");
        assert_eq!(answer.recv().await, Some(1));
        cut.cancel();
        assert_eq!(poll_fn(|cx| drive.poll(cx, |cx| answer.poll_recv(cx))).await, None);
        assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost_between_threads() {
        for _ in 0..2000 {
            let (mut drive, request, mut answer) = echo();
            let (tell, told) = oneshot::channel();
            let other = tokio::spawn(async move {
                told.await.expect("it is told");
                request.send(7).expect("it is open");
            });
            tell.send(()).expect("it waits");
            let received = poll_fn(|cx| drive.poll(cx, |cx| answer.poll_recv(cx)));
            let received = tokio::time::timeout(Duration::from_secs(10), received).await.expect("it is woken");
            assert_eq!(received, Some(7));
            other.await.expect("no panic");
        }
    }
}
