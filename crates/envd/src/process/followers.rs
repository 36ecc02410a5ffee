//! Followers of a process, and the distribution of output to them.
//!
//! ```text
//! output ──publish──> pieces not yet taken by every follower (bounded) ──next──> each follower, at its own pace
//! ```
//!
//! Output is stored once for all followers. While the slowest follower is [`RETAINED_BYTES_MAX`] behind, no output is
//! read from the process, so a follower that reads, however slowly, loses nothing. One that takes almost nothing within
//! [`STALL_TIMEOUT`] is dropped with an error; the process and the other followers continue. The output that it did
//! not take and later output is retained, within the limit, for the next follower. Without followers, and without one
//! that was dropped, output is discarded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_envd_api::process::__buffa::oneof::process_event::data_event::Output;
use hearth_envd_api::process::process_event::EndEvent;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Limit of a process's output that is stored for its followers, in bytes.
///
/// Beyond it the process has to wait, or the oldest output retained for a later follower is dropped.
pub(super) const RETAINED_BYTES_MAX: u64 = 2 << 20;
/// Size counted for a piece in addition to its text: single letters must not fill the memory with their headers.
const PIECE_OVERHEAD_BYTES: u64 = 128;
/// Time that a process waits for a follower that takes less than [`STALL_BYTES_MIN`].
///
/// Between the daemon and a client are the buffers of several connections, each of which is refilled only when a third
/// of it is free, up to a mebibyte: the progress of a client that reads 50 KB per second is visible every twenty
/// seconds.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Progress within [`STALL_TIMEOUT`] that prevents a drop: one piece of full size, in bytes.
const STALL_BYTES_MIN: u64 = 32 << 10;

/// Output of one process and the cursors of its followers. Shared by the process's task and the followers.
#[derive(Debug, Default)]
pub(super) struct Followers {
    inner: Mutex<Inner>,
    /// A piece or the end was added, or a follower was dropped.
    changed: Notify,
    /// A follower took a piece or was removed.
    room: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Pieces that some follower has not taken yet, or that are retained for the next one.
    pieces: VecDeque<Piece>,
    /// Number of the first piece; numbers have no gaps.
    first: u64,
    /// Total size of all pieces ever added to `pieces`, overhead included.
    published: u64,
    followers: BTreeMap<u64, Cursor>,
    next_follower: u64,
    /// First piece retained for the next follower, after one was dropped.
    replay: Option<u64>,
    /// Set when the process has ended.
    end: Option<EndEvent>,
    /// Output in bytes, with and without followers.
    bytes: u64,
}

#[derive(Debug)]
struct Piece {
    output: Arc<Output>,
    /// `Inner::published` before this piece.
    starts_at: u64,
}

/// Position of a follower.
#[derive(Debug)]
struct Cursor {
    /// Number of the next piece.
    next: u64,
    /// Total size of all earlier pieces.
    taken: u64,
    /// Start of the process's current wait for this follower, and `taken` at that time.
    waiting_since: Option<(Instant, u64)>,
}

/// A piece of output, or the reason for the end of the feed.
#[derive(Debug, PartialEq)]
pub(super) enum Item {
    Data(Output),
    End(EndEvent),
    /// The follower took almost nothing for too long.
    Dropped,
}

/// A follower's feed. Dropping it removes the follower, and the process no longer waits for it.
#[derive(Debug)]
pub(super) struct Feed {
    followers: Arc<Followers>,
    id: u64,
}

impl Feed {
    /// Returns the next piece, or the end after the last one. Cancel safe.
    pub(super) async fn next(&mut self) -> Item {
        loop {
            // Registered before the check, so that no notification is missed.
            let changed = self.followers.changed.notified();
            let taken = self.followers.inner().take(self.id);
            match taken {
                Some(Taken::Piece(output)) => {
                    self.followers.room.notify_waiters();
                    return Item::Data(Arc::unwrap_or_clone(output));
                }
                Some(Taken::End(end)) => return Item::End(end),
                Some(Taken::Dropped) => return Item::Dropped,
                None => changed.await,
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.followers.inner().remove_follower(self.id);
        self.followers.room.notify_waiters();
    }
}

/// Result of a follower's attempt to take a piece.
enum Taken {
    Piece(Arc<Output>),
    End(EndEvent),
    Dropped,
}

impl Followers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every section leaves a valid list.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a follower of all output from now on, and of output retained after a drop.
    pub(super) fn add(self: &Arc<Self>) -> Feed {
        let id = self.inner().add();
        Feed { followers: Arc::clone(self), id }
    }

    /// Publishes a piece of output to every follower once there is room.
    ///
    /// Cancel safe: it waits first; a piece that was not published is lost to all followers.
    pub(super) async fn publish(&self, output: Output) {
        loop {
            // Registered before the check, so that no notification is missed.
            let room = self.room.notified();
            let (dropped, wait_until) = self.inner().drop_stalled(Instant::now());
            if dropped {
                self.changed.notify_waiters();
            }
            let Some(wait_until) = wait_until else { break };
            let _ = tokio::time::timeout_at(wait_until, room).await;
        }
        self.inner().push(output);
        self.changed.notify_waiters();
    }

    /// Returns the amount of output so far, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.inner().bytes
    }

    /// Publishes the end to current and later followers. Returns immediately: each first takes its remaining pieces.
    pub(super) fn finish(&self, end: EndEvent) {
        self.inner().end = Some(end);
        self.changed.notify_waiters();
    }

    /// Returns true if output is retained for the next follower.
    pub(super) fn has_replay(&self) -> bool {
        self.inner().replay.is_some()
    }

    /// Drops output that is retained for the next follower.
    pub(super) fn drop_replay(&self) {
        let mut inner = self.inner();
        inner.replay = None;
        inner.trim();
    }
}

impl Inner {
    fn add(&mut self) -> u64 {
        let id = self.next_follower;
        self.next_follower += 1;
        let next = self.replay.take().unwrap_or(self.first + self.pieces.len() as u64);
        let taken = self.starts_at(next);
        self.followers.insert(id, Cursor { next, taken, waiting_since: None });
        id
    }

    fn remove_follower(&mut self, id: u64) {
        self.followers.remove(&id);
        self.trim();
    }

    /// Returns the total size of all pieces before a piece.
    fn starts_at(&self, number: u64) -> u64 {
        self.piece(number).map_or(self.published, |piece| piece.starts_at)
    }

    fn piece(&self, number: u64) -> Option<&Piece> {
        self.pieces.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn take(&mut self, id: u64) -> Option<Taken> {
        let Some(next) = self.followers.get(&id).map(|cursor| cursor.next) else { return Some(Taken::Dropped) };
        let Some(piece) = self.piece(next) else { return self.end.clone().map(Taken::End) };
        let output = Arc::clone(&piece.output);
        let taken = self.starts_at(next + 1);
        if let Some(cursor) = self.followers.get_mut(&id) {
            (cursor.next, cursor.taken) = (next + 1, taken);
        }
        self.trim();
        Some(Taken::Piece(output))
    }

    /// Drops followers for which the process waited too long.
    ///
    /// Returns true if there were any, and the time until which to wait for those that are too far behind for another
    /// piece.
    fn drop_stalled(&mut self, now: Instant) -> (bool, Option<Instant>) {
        let (mut stalled, mut wait_until) = (Vec::new(), None::<Instant>);
        for (id, cursor) in &mut self.followers {
            if self.published - cursor.taken < RETAINED_BYTES_MAX {
                continue;
            }
            let (mut since, before) = *cursor.waiting_since.get_or_insert((now, cursor.taken));
            if now >= since + STALL_TIMEOUT {
                if cursor.taken - before < STALL_BYTES_MIN {
                    stalled.push((*id, cursor.next));
                    continue;
                }
                cursor.waiting_since = Some((now, cursor.taken));
                since = now;
            }
            let until = since + STALL_TIMEOUT;
            wait_until = Some(wait_until.map_or(until, |earlier| earlier.min(until)));
        }
        for (id, next) in &stalled {
            self.followers.remove(id);
            self.replay = Some(self.replay.map_or(*next, |earlier| earlier.min(*next)));
        }
        (!stalled.is_empty(), wait_until)
    }

    fn push(&mut self, output: Output) {
        let bytes = length(&output);
        self.bytes += bytes;
        if self.followers.is_empty() && self.replay.is_none() {
            return;
        }
        self.pieces.push_back(Piece { output: Arc::new(output), starts_at: self.published });
        self.published += bytes + PIECE_OVERHEAD_BYTES;
        self.trim();
    }

    /// Drops pieces that every follower has taken, and the oldest retained ones beyond the limit.
    ///
    /// A process never waits because of retained pieces.
    fn trim(&mut self) {
        let needed = self.followers.values().map(|cursor| cursor.next).min();
        while let Some(piece) = self.pieces.front() {
            let is_needed = needed.is_some_and(|number| number <= self.first);
            let is_retained = self.replay.is_some_and(|number| number <= self.first)
                && self.published - piece.starts_at <= RETAINED_BYTES_MAX;
            if is_needed || is_retained {
                break;
            }
            self.pieces.pop_front();
            self.first += 1;
        }
        self.replay = self.replay.map(|number| number.max(self.first));
        if self.pieces.is_empty() {
            // A silent process occupies no memory.
            self.pieces = VecDeque::new();
        }
    }
}

fn length(output: &Output) -> u64 {
    let (Output::Stdout(bytes) | Output::Stderr(bytes) | Output::Pty(bytes)) = output;
    bytes.len() as u64
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Size of the pieces, and their number within the limit.
    const PIECE_BYTES: usize = 32 << 10;
    const PIECES: usize = (RETAINED_BYTES_MAX as usize).div_ceil(PIECE_BYTES + PIECE_OVERHEAD_BYTES as usize);

    fn piece(number: usize) -> Output {
        let mut text = vec![b'x'; PIECE_BYTES];
        text[..8].copy_from_slice(&(number as u64).to_be_bytes());
        Output::Stdout(text)
    }

    fn number(item: &Item) -> usize {
        let Item::Data(Output::Stdout(text)) = item else { panic!("{item:?}") };
        u64::from_be_bytes(text[..8].try_into().expect("eight bytes")).try_into().expect("fits")
    }

    /// Fills the limit: another piece would have to wait.
    fn fill(followers: &Followers) {
        for number in 0..PIECES {
            assert_eq!(followers.publish(piece(number)).now_or_never(), Some(()), "{number}");
        }
    }

    /// Returns the numbers of a feed's remaining pieces, and the item after them.
    async fn rest(mut feed: Feed) -> (Vec<usize>, Item) {
        let mut numbers = Vec::new();
        loop {
            match feed.next().await {
                item @ Item::Data(_) => numbers.push(number(&item)),
                last => return (numbers, last),
            }
        }
    }

    fn end() -> Item {
        Item::End(EndEvent::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_follower_no_longer_blocks_the_process() {
        let followers = Arc::new(Followers::default());
        let (stalled, other) = (followers.add(), followers.add());
        fill(&followers);
        let other = tokio::spawn(rest(other));
        let mut waiting = Box::pin(followers.publish(piece(PIECES)));
        tokio::task::yield_now().await;
        assert_eq!(waiting.as_mut().now_or_never(), None, "the stalled follower has not read");
        drop(stalled);
        assert_eq!(waiting.now_or_never(), Some(()));
        followers.finish(EndEvent::default());
        assert_eq!(other.await.expect("no panic"), ((0..=PIECES).collect(), end()));
        assert_eq!(followers.inner().pieces.capacity(), 0, "nothing is retained");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_follower_is_dropped_and_the_next_gets_retained_output() {
        let followers = Arc::new(Followers::default());
        let (mut stalled, other) = (followers.add(), followers.add());
        let other = tokio::spawn(rest(other));
        let start = Instant::now();
        for number in 0..2 * PIECES {
            followers.publish(piece(number)).await;
        }
        assert_eq!(start.elapsed(), STALL_TIMEOUT, "the process waited once");
        assert_eq!(stalled.next().await, Item::Dropped);
        drop(stalled);
        let late = followers.add();
        let too_late = followers.add();
        followers.finish(EndEvent::default());
        assert_eq!(
            other.await.expect("no panic"),
            ((0..2 * PIECES).collect(), end()),
            "the other follower lost nothing"
        );
        let (numbers, last) = rest(late).await;
        assert_eq!((numbers.last(), last), (Some(&(2 * PIECES - 1)), end()));
        assert!(numbers.len() >= PIECES - 1 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        assert_eq!(rest(too_late).await, (vec![], end()), "retained output is sent once");
    }

    #[tokio::test(start_paused = true)]
    async fn retained_output_starts_where_a_dropped_follower_stopped() {
        let followers = Arc::new(Followers::default());
        let mut stalled = followers.add();
        fill(&followers);
        for expected in 0..3 {
            assert_eq!(number(&stalled.next().await), expected);
        }
        for number in PIECES..PIECES + 3 {
            followers.publish(piece(number)).await;
        }
        followers.publish(piece(PIECES + 3)).await;
        assert_eq!(stalled.next().await, Item::Dropped);
        followers.finish(EndEvent::default());
        let (numbers, _) = rest(followers.add()).await;
        // The oldest pieces were dropped for the last one.
        assert_eq!(numbers, (5..=PIECES + 3).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_reads_slowly_loses_nothing() {
        let followers = Arc::new(Followers::default());
        let mut slow = followers.add();
        let total = 2 * PIECES;
        let reader = tokio::spawn(async move {
            let mut numbers = Vec::new();
            loop {
                tokio::time::sleep(STALL_TIMEOUT - Duration::from_secs(1)).await;
                match slow.next().await {
                    item @ Item::Data(_) => numbers.push(number(&item)),
                    last => return (numbers, last),
                }
            }
        });
        for number in 0..total {
            followers.publish(piece(number)).await;
            assert!(followers.inner().pieces.len() <= PIECES, "the limit holds");
        }
        followers.finish(EndEvent::default());
        assert_eq!(reader.await.expect("no panic"), ((0..total).collect(), end()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_reads_almost_nothing_is_dropped() {
        let followers = Arc::new(Followers::default());
        let mut trickling = followers.add();
        let writer = tokio::spawn({
            let followers = Arc::clone(&followers);
            async move {
                for _ in 0..2 * RETAINED_BYTES_MAX / PIECE_OVERHEAD_BYTES {
                    followers.publish(Output::Pty(b"x".to_vec())).await;
                }
            }
        });
        let start = Instant::now();
        while trickling.next().await != Item::Dropped {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(start.elapsed() < 3 * STALL_TIMEOUT, "{:?}", start.elapsed());
        writer.await.expect("no panic");
    }

    #[tokio::test]
    async fn every_follower_receives_the_end() {
        let followers = Arc::new(Followers::default());
        let early = followers.add();
        followers.publish(piece(7)).await;
        let late = followers.add();
        followers.finish(EndEvent::default());
        assert_eq!(rest(early).await, (vec![7], end()));
        assert_eq!(rest(late).await, (vec![], end()));
        assert_eq!(rest(followers.add()).await, (vec![], end()));
    }

    #[tokio::test]
    async fn output_without_followers_is_discarded() {
        let followers = Arc::new(Followers::default());
        drop(followers.add());
        followers.publish(piece(0)).await;
        assert_eq!(followers.inner().pieces.len(), 0);
        assert_eq!(followers.bytes(), PIECE_BYTES as u64);
        assert!(!followers.has_replay());
    }
}
