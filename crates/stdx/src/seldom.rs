//! A future that is seldom ready, beside one that is often polled.
//!
//! Whoever waits for work and for a stop at the same time polls both whenever there is work. A stop that many tasks wait for takes
//! a lock that they share with each of those polls. This one is asked again only after it said that something happened.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// Polls a future only after it was woken. As cancel safe as the future.
#[derive(Debug)]
pub struct Seldom<F> {
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
        // Before the task is woken, so that it sees it.
        self.is_woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F> Seldom<F> {
    /// The future is polled for the first time with this one.
    pub fn new(future: F) -> Self {
        let woken = Woken { is_woken: AtomicBool::new(true), task: AtomicWaker::new() };
        Self { future: Box::pin(future), woken: Arc::new(woken) }
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Before the flag is looked at: whoever sets it afterwards wakes this task.
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
    async fn it_is_asked_when_something_happened() {
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
        let mut seldom = Seldom::new(counting);
        for _ in 0..100 {
            assert!(futures::poll!(&mut seldom).is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        let waiting = tokio::spawn(seldom);
        tokio::task::yield_now().await;
        token.cancel();
        waiting.await.expect("no panic");
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
