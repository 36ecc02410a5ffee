//! Polls a rarely ready future only after its waker fired.
//!
//! A task that waits for work and for a stop signal polls both futures whenever there is work. When many tasks wait for
//! the same stop signal, each of those polls takes a lock that all of them share. [`WakeGated`] avoids this: it polls
//! its future again only after the future has woken its task.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// Future that is polled only after it was woken. As cancel safe as the inner future.
#[derive(Debug)]
pub struct WakeGated<F> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
}

#[derive(Debug)]
struct Woken {
    is_woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        // Set before the task is woken, so that the task's poll sees it.
        self.is_woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F> WakeGated<F> {
    /// Wraps `future`. The first poll always reaches it.
    pub fn new(future: F) -> Self {
        let woken = Woken { is_woken: AtomicBool::new(true), task: AtomicWaker::new() };
        Self { future: Box::pin(future), woken: Arc::new(woken) }
    }
}

impl<F: Future> Future for WakeGated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Registered before the flag is read: a wake that sets the flag afterwards also wakes this task.
        self.woken.task.register(context.waker());
        if !self.woken.is_woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn polls_the_future_only_after_a_wake() {
        let (token, polls) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let (cancelled, counted) = (token.clone(), Arc::clone(&polls));
        let counting = async move {
            let mut cancelled = Box::pin(cancelled.cancelled());
            poll_fn(|context| {
                counted.fetch_add(1, Ordering::Relaxed);
                cancelled.as_mut().poll(context)
            })
            .await;
        };
        let mut gated = WakeGated::new(counting);
        for _ in 0..100 {
            assert!(futures::poll!(&mut gated).is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        let waiting = tokio::spawn(gated);
        tokio::task::yield_now().await;
        token.cancel();
        waiting.await.expect("no panic");
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
