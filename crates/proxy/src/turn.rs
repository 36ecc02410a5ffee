//! Cooperative scheduling of a connection's bytes.
//!
//! hyper reads and parses for as long as its socket has bytes, so a peer that sends without pause would occupy a worker of the
//! runtime. tokio's own budget counts reads, of any size, and does not apply where a connection is polled outside of it. A turn
//! counts bytes: when it is over, the socket reports that it is not ready, once, and wakes the task, which goes to the end of
//! the runtime's queue.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf, Take};

/// Bytes that a connection moves in one turn, and reads at once. Parsing the most expensive input of this size, chunk sizes made
/// of zeros, takes about a millisecond. Copying it takes some microseconds, beside which one more poll is not noticeable.
const TURN_BYTES: usize = 64 << 10;
/// Least charge of one read or write, which costs a system call however short it is. With less than this left a turn is over.
const CHARGE_BYTES_MIN: usize = 2 << 10;

/// What is left of a turn. All fields belong to the task that polls the connection at the moment; being atomic only makes them
/// shareable between the parts of it.
#[derive(Debug)]
pub(crate) struct Turn {
    left: AtomicUsize,
    is_over: AtomicBool,
}

impl Default for Turn {
    fn default() -> Self {
        Self { left: AtomicUsize::new(TURN_BYTES), is_over: AtomicBool::new(false) }
    }
}

impl Turn {
    /// Starts a new turn: the connection waited for something else, or others had their turn.
    pub(crate) fn begin(&self) {
        self.left.store(TURN_BYTES, Ordering::Relaxed);
        self.is_over.store(false, Ordering::Relaxed);
    }

    /// Bytes that may be moved now. Pending once at the end of a turn; the task is woken, and its next poll is in a new turn.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left >= CHARGE_BYTES_MIN {
            return Poll::Ready(left);
        }
        self.left.store(TURN_BYTES, Ordering::Relaxed);
        self.is_over.store(true, Ordering::Relaxed);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads at most what is left of the turn, and charges it.
    pub(crate) fn poll_read<R: AsyncRead + Unpin>(
        &self,
        io: &mut Take<R>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = ready!(self.poll(cx));
        let before = buffer.filled().len();
        io.set_limit(left as u64);
        let result = Pin::new(io).poll_read(cx, buffer);
        self.settle(result, |()| buffer.filled().len() - before)
    }

    /// Charges what was written.
    pub(crate) fn written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.settle(result, |bytes| *bytes)
    }

    fn settle<T>(&self, result: Poll<io::Result<T>>, bytes: impl FnOnce(&T) -> usize) -> Poll<io::Result<T>> {
        match &result {
            Poll::Ready(Ok(moved)) => self.charge(bytes(moved)),
            Poll::Ready(Err(_)) => {}
            // Waiting for the peer lets others have their turn, too.
            Poll::Pending => self.begin(),
        }
        result
    }

    /// Charges a read or write of so many bytes.
    pub(crate) fn charge(&self, bytes: usize) {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(bytes.max(CHARGE_BYTES_MIN)), Ordering::Relaxed);
    }

    /// Whether the turn ended since [`begin`](Self::begin): whoever polls in a loop returns to the runtime.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn a_turn_ends_once_and_a_new_one_begins() {
        let (turn, cx) = (Turn::default(), &mut Context::from_waker(Waker::noop()));
        turn.charge(TURN_BYTES - CHARGE_BYTES_MIN);
        assert!(turn.poll(cx).is_ready());
        turn.charge(1);
        assert!(turn.poll(cx).is_pending() && turn.is_over());
        assert!(turn.poll(cx).is_ready());
        turn.begin();
        assert!(!turn.is_over());
    }

    #[test]
    fn short_reads_are_not_free() {
        let (turn, cx) = (Turn::default(), &mut Context::from_waker(Waker::noop()));
        let reads = (0..).take_while(|_| turn.poll(cx).is_ready() && (turn.charge(1), true).1).count();
        assert_eq!(reads, TURN_BYTES / CHARGE_BYTES_MIN);
    }

    #[tokio::test]
    async fn a_read_takes_no_more_than_a_turn() {
        let turn = Turn::default();
        let input: &[u8] = &[b'x'; 3 * TURN_BYTES];
        let (mut input, mut buffer) = (input.take(0), vec![0; 2 * TURN_BYTES]);
        let mut buffer = ReadBuf::new(&mut buffer);
        for expected in [TURN_BYTES, 2 * TURN_BYTES, 2 * TURN_BYTES] {
            let mut polls = 0;
            std::future::poll_fn(|cx| {
                polls += 1;
                turn.poll_read(&mut input, cx, &mut buffer)
            })
            .await
            .expect("memory");
            assert_eq!(buffer.filled().len(), expected);
            assert!(polls <= 2);
        }
        assert!(buffer.filled().iter().all(|byte| *byte == b'x'));
    }
}
