//! Cooperative scheduling of a connection's I/O.
//!
//! hyper reads and parses as long as its socket has bytes, so a peer that sends without pause would occupy a worker of
//! the runtime. tokio's own budget counts reads of any size and does not apply where a connection is polled outside of
//! it. A [`ByteBudget`] counts bytes: when it is used up, the socket reports once that it is not ready and wakes the
//! task, which moves to the end of the runtime's queue.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf, Take};

/// Bytes that a connection may read and write before it yields, and the maximum of one read.
///
/// Parsing the most expensive input of this size, chunk sizes made of zeros, takes about a millisecond. Copying it
/// takes some microseconds; compared to that, one more poll is negligible.
const BUDGET_BYTES: usize = 64 << 10;
/// Minimum charge of a read or write, which costs a system call however short it is.
///
/// A budget with less than this is used up.
const CHARGE_BYTES_MIN: usize = 2 << 10;

/// Bytes that a connection may still read and write before it yields.
///
/// All fields belong to the task that is polling the connection; they are atomic only so that its parts can share them.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    remaining: AtomicUsize,
    was_exhausted: AtomicBool,
}

impl Default for ByteBudget {
    fn default() -> Self {
        Self { remaining: AtomicUsize::new(BUDGET_BYTES), was_exhausted: AtomicBool::new(false) }
    }
}

impl ByteBudget {
    /// Refills the budget, because the connection waited or other tasks were polled.
    pub(crate) fn reset(&self) {
        self.remaining.store(BUDGET_BYTES, Ordering::Relaxed);
        self.was_exhausted.store(false, Ordering::Relaxed);
    }

    /// Returns the remaining bytes, or is pending once when the budget is used up.
    ///
    /// The task is woken, and its next poll has a new budget.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let remaining = self.remaining.load(Ordering::Relaxed);
        if remaining >= CHARGE_BYTES_MIN {
            return Poll::Ready(remaining);
        }
        self.remaining.store(BUDGET_BYTES, Ordering::Relaxed);
        self.was_exhausted.store(true, Ordering::Relaxed);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads at most the remaining bytes and charges them.
    pub(crate) fn poll_read<R: AsyncRead + Unpin>(
        &self,
        io: &mut Take<R>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let remaining = ready!(self.poll(cx));
        let before = buffer.filled().len();
        io.set_limit(remaining as u64);
        let result = Pin::new(io).poll_read(cx, buffer);
        self.settle(result, |()| buffer.filled().len() - before)
    }

    /// Charges the bytes of a write.
    pub(crate) fn charge_written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.settle(result, |bytes| *bytes)
    }

    fn settle<T>(&self, result: Poll<io::Result<T>>, bytes: impl FnOnce(&T) -> usize) -> Poll<io::Result<T>> {
        match &result {
            Poll::Ready(Ok(moved)) => self.charge(bytes(moved)),
            Poll::Ready(Err(_)) => {}
            // While the task waits for the peer, other tasks are polled, too.
            Poll::Pending => self.reset(),
        }
        result
    }

    /// Charges a read or write of that many bytes.
    pub(crate) fn charge(&self, bytes: usize) {
        let remaining = self.remaining.load(Ordering::Relaxed);
        self.remaining.store(remaining.saturating_sub(bytes.max(CHARGE_BYTES_MIN)), Ordering::Relaxed);
    }

    /// Returns true if the budget was used up since [`reset`](Self::reset); polling in a loop has to stop then.
    pub(crate) fn was_exhausted(&self) -> bool {
        self.was_exhausted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn a_used_up_budget_is_pending_once() {
        let (budget, cx) = (ByteBudget::default(), &mut Context::from_waker(Waker::noop()));
        budget.charge(BUDGET_BYTES - CHARGE_BYTES_MIN);
        assert!(budget.poll(cx).is_ready());
        budget.charge(1);
        assert!(budget.poll(cx).is_pending() && budget.was_exhausted());
        assert!(budget.poll(cx).is_ready());
        budget.reset();
        assert!(!budget.was_exhausted());
    }

    #[test]
    fn short_reads_have_a_minimum_charge() {
        let (budget, cx) = (ByteBudget::default(), &mut Context::from_waker(Waker::noop()));
        let reads = (0..).take_while(|_| budget.poll(cx).is_ready() && (budget.charge(1), true).1).count();
        assert_eq!(reads, BUDGET_BYTES / CHARGE_BYTES_MIN);
    }

    #[tokio::test]
    async fn a_read_is_limited_to_the_budget() {
        let budget = ByteBudget::default();
        let input: &[u8] = &[b'x'; 3 * BUDGET_BYTES];
        let (mut input, mut buffer) = (input.take(0), vec![0; 2 * BUDGET_BYTES]);
        let mut buffer = ReadBuf::new(&mut buffer);
        for expected in [BUDGET_BYTES, 2 * BUDGET_BYTES, 2 * BUDGET_BYTES] {
            let mut polls = 0;
            std::future::poll_fn(|cx| {
                polls += 1;
                budget.poll_read(&mut input, cx, &mut buffer)
            })
            .await
            .expect("memory");
            assert_eq!(buffer.filled().len(), expected);
            assert!(polls <= 2);
        }
        assert!(buffer.filled().iter().all(|byte| *byte == b'x'));
    }
}
