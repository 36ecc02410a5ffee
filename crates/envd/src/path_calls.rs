//! Bounds on calls that may block on a path.
//!
//! A system call on a path can block forever and cannot be cancelled: a FUSE or network mount with an unresponsive
//! server blocks its caller until the unmount, even if the client disconnected long ago. Therefore every such call
//! occupies a slot. There are fewer slots than threads, and process starts have slots of their own
//! ([`crate::state::State`]). No operation that the host or a client needs to repair the guest waits behind a blocked
//! file call.
//!
//! Within a set of slots each mount has a share, so an unresponsive mount blocks only calls on itself. A call's mount
//! is the first one that its path crosses; it is determined without accessing that mount ([`mount`]). Calls on several
//! paths use the shares of all their mounts except the root's.
//!
//! A call without a free slot waits as long as other calls return. It is rejected when none has returned for
//! [`SLOT_TIMEOUT`]: the slots are then blocked, not busy. Waiting is cancel safe and occupies no thread; a running call
//! cannot be cancelled and occupies its slot until its system call returns.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use connectrpc::ConnectError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

mod mount;

use mount::MountId;

/// Concurrent file calls over all mounts. Bounds their threads' memory; one client's connections need fewer.
pub(crate) const FILE_CALLS_MAX: usize = 192;
/// Concurrent file calls on one mount: three unresponsive mounts leave no slot to the others.
pub(crate) const FILE_CALLS_PER_MOUNT_MAX: usize = 64;
/// Concurrent process starts.
pub(crate) const STARTS_MAX: usize = 64;
/// Concurrent process starts with a working directory or a program on the same mount.
pub(crate) const STARTS_PER_MOUNT_MAX: usize = 32;

/// Time that a call waits for a slot while no other call returns.
const SLOT_TIMEOUT: Duration = Duration::from_secs(10);

/// A set of slots.
#[derive(Debug)]
pub(crate) struct PathCalls {
    /// Name of the calls in error texts.
    kind: &'static str,
    per_mount: usize,
    all: Slots,
    /// Mounts with running or waiting calls.
    mounts: Mutex<HashMap<MountId, Weak<Slots>>>,
}

#[derive(Debug)]
struct Slots {
    free: Arc<Semaphore>,
    /// Count of returned calls. It increases while the slots are busy rather than blocked.
    returned: AtomicU64,
    max: usize,
    /// Mount point; empty for all mounts together.
    mount_point: PathBuf,
}

/// The slots for calls on certain paths.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    calls: Arc<PathCalls>,
    /// Sorted by id without duplicates, so that calls on the same mounts never deadlock.
    mounts: Vec<Arc<Slots>>,
}

/// Error of a call that has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("too many {kind} are blocked{place}: none of {max} has returned for {} seconds", SLOT_TIMEOUT.as_secs())]
    Blocked { kind: &'static str, place: String, max: usize },
    #[error("the call did not finish: {0}")]
    Lost(#[from] tokio::task::JoinError),
}

impl From<CallError> for ConnectError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Blocked { .. } => Self::resource_exhausted(error.to_string()),
            CallError::Lost(_) => Self::internal(error.to_string()),
        }
    }
}

/// Cancellation of a long call after its client has disconnected.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    #[cfg(test)]
    pub(crate) fn cancelled() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Fails once the client has disconnected.
    pub(crate) fn check(&self) -> std::io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(std::io::Error::new(std::io::ErrorKind::Interrupted, "the client has disconnected"));
        }
        Ok(())
    }
}

/// Cancels when dropped.
struct CancelOnDrop(Cancellation);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl PathCalls {
    pub(crate) fn new(kind: &'static str, max: usize, per_mount: usize) -> Arc<Self> {
        Arc::new(Self { kind, per_mount, all: Slots::new(max, PathBuf::new()), mounts: Mutex::default() })
    }

    /// Returns the slots for calls on `paths`. Accesses only directories of the root file system.
    pub(crate) fn lane<'a>(self: &Arc<Self>, paths: impl IntoIterator<Item = &'a Path>) -> Lane {
        let mut found: Vec<(MountId, PathBuf)> = paths.into_iter().map(mount::first_crossed).collect();
        found.sort();
        found.dedup_by_key(|(id, _)| *id);
        // A call that blocks on another mount must not use up the root's slots.
        if found.len() > 1 {
            found.retain(|(_, mount_point)| mount_point != Path::new("/"));
        }
        // Every section is one step on a valid map.
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        mounts.retain(|_, slots| slots.strong_count() > 0);
        let mut slots = |(id, mount_point): (MountId, PathBuf)| {
            if let Some(known) = mounts.get(&id).and_then(Weak::upgrade) {
                return known;
            }
            let fresh = Arc::new(Slots::new(self.per_mount, mount_point));
            mounts.insert(id, Arc::downgrade(&fresh));
            fresh
        };
        let found = found.into_iter().map(&mut slots).collect();
        Lane { calls: Arc::clone(self), mounts: found }
    }
}

impl Slots {
    fn new(max: usize, mount_point: PathBuf) -> Self {
        Self { free: Arc::new(Semaphore::new(max)), returned: AtomicU64::new(0), max, mount_point }
    }

    /// Waits for a slot. Cancel safe.
    async fn acquire(&self, kind: &'static str) -> Result<OwnedSemaphorePermit, CallError> {
        let mut acquiring = std::pin::pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            let before = self.returned.load(Ordering::Relaxed);
            // The semaphore is never closed.
            if let Ok(Ok(slot)) = tokio::time::timeout(SLOT_TIMEOUT, &mut acquiring).await {
                return Ok(slot);
            }
            if self.returned.load(Ordering::Relaxed) == before {
                let is_all = self.mount_point.as_os_str().is_empty();
                let place = if is_all { String::new() } else { format!(" on {}", self.mount_point.display()) };
                return Err(CallError::Blocked { kind, place, max: self.max });
            }
        }
    }
}

/// The slots of a running call.
struct RunningCall {
    lane: Lane,
    _slots: Vec<OwnedSemaphorePermit>,
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        for slots in self.lane.mounts.iter().map(Arc::as_ref).chain([&self.lane.calls.all]) {
            slots.returned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Lane {
    /// Runs `work` on a thread that may block. Work that has started is finished, even if the client disconnects.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let mut slots = Vec::with_capacity(self.mounts.len() + 1);
        // A call that waits for an unresponsive mount must not occupy one of the slots of all mounts.
        for mount in self.mounts.iter().map(Arc::as_ref).chain([&self.calls.all]) {
            slots.push(mount.acquire(self.calls.kind).await?);
        }
        let running = RunningCall { lane: self.clone(), _slots: slots };
        let done = tokio::task::spawn_blocking(move || {
            let _running = running;
            work()
        });
        Ok(done.await?)
    }

    /// Runs work that checks regularly for its cancellation.
    pub(crate) async fn run_cancellable<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cancellation) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let cancellation = Cancellation::default();
        let _cancel = CancelOnDrop(cancellation.clone());
        self.run(move || work(&cancellation)).await
    }
}

/// A value whose drop may block; the drop runs on a thread that may block.
///
/// Closing a file on a FUSE mount waits for its server ("flush"), and closing the last descriptor of a large nameless
/// file frees its blocks.
#[derive(Debug)]
pub(crate) struct BlockingDrop<T: Send + 'static> {
    value: Option<T>,
    lane: Lane,
    /// The drop is fast on a local disk.
    is_light: bool,
}

impl<T: Send + 'static> BlockingDrop<T> {
    pub(crate) fn new(value: T, lane: Lane) -> Self {
        Self { value: Some(value), lane, is_light: false }
    }

    /// Wraps a value that is dropped directly if it is on the root file system.
    pub(crate) fn light(value: T, lane: Lane) -> Self {
        Self { value: Some(value), lane, is_light: true }
    }

    /// Returns the value; its drop may block the caller.
    pub(crate) fn into_inner(mut self) -> T {
        self.value.take().expect("present until it is taken or dropped")
    }
}

impl<T: Send + 'static> std::ops::Deref for BlockingDrop<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("present until it is taken or dropped")
    }
}

impl<T: Send + 'static> Drop for BlockingDrop<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        let runtime = tokio::runtime::Handle::try_current();
        match runtime {
            Ok(runtime) if !(self.is_light && self.lane.is_root_only()) => {
                drop(runtime.spawn(self.lane.clone().discard(value)));
            }
            _ => drop(value),
        }
    }
}

impl Lane {
    /// Returns true if no path of the lane leaves the root file system.
    fn is_root_only(&self) -> bool {
        self.mounts.iter().all(|slots| slots.mount_point.as_os_str() == "/")
    }

    /// Waits for a slot without a time limit, then drops the value.
    async fn discard<T: Send + 'static>(self, value: T) {
        let mut slots = Vec::with_capacity(self.mounts.len() + 1);
        for mount in self.mounts.iter().map(Arc::as_ref).chain([&self.calls.all]) {
            // The semaphore is never closed.
            slots.extend(Arc::clone(&mount.free).acquire_owned().await);
        }
        let running = RunningCall { lane: self.clone(), _slots: slots };
        tokio::task::spawn_blocking(move || {
            drop(value);
            drop(running);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt;

    use super::*;

    fn calls() -> Arc<PathCalls> {
        PathCalls::new("file calls", 3, 2)
    }

    /// Starts a call that blocks until the sender is dropped.
    fn block(lane: &Lane) -> (mpsc::Sender<()>, tokio::task::JoinHandle<Result<(), CallError>>) {
        let (release, blocked) = mpsc::channel::<()>();
        let lane = lane.clone();
        (release, tokio::spawn(async move { lane.run(move || assert!(blocked.recv().is_err())).await }))
    }

    // Lets the spawned tasks run; the clock of the test does not advance.
    async fn settled() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_blocked_mount_blocks_only_its_own_calls() {
        let calls = calls();
        let (root, proc) = (calls.lane([Path::new("/")]), calls.lane([Path::new("/proc/self")]));
        let blocked = [block(&proc), block(&proc)];
        settled().await;
        assert_eq!(proc.run(|| 1).now_or_never().map(Result::ok), None, "the call waits for a slot");
        assert_eq!(root.run(|| 2).await.expect("a free slot"), 2);
        let both = calls.lane([Path::new("/proc/self"), Path::new("/"), Path::new("/etc")]);
        assert_eq!(both.mounts.len(), 1, "the call does not use the root's slots");
        assert!(both.run(|| 3).now_or_never().is_none());
        for (release, call) in blocked {
            drop(release);
            call.await.expect("no panic").expect("run");
        }
        assert_eq!(both.run(|| 3).await.expect("a free slot"), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_rejected_when_slots_are_blocked_but_not_when_busy() {
        let calls = calls();
        let lane = calls.lane([Path::new("/")]);
        let (first, second) = (block(&lane), block(&lane));
        settled().await;
        // The paused clock does not advance while blocking threads run, so the test advances it.
        let waiting = tokio::spawn({
            let lane = lane.clone();
            async move { lane.run(|| ()).await }
        });
        settled().await;
        lane.mounts[0].returned.fetch_add(1, Ordering::Relaxed);
        tokio::time::advance(SLOT_TIMEOUT + Duration::from_millis(1)).await;
        settled().await;
        assert!(!waiting.is_finished(), "the call waits because others return");
        tokio::time::advance(SLOT_TIMEOUT + Duration::from_millis(1)).await;
        let refused = waiting.await.expect("no panic").expect_err("rejected");
        assert_eq!(refused.to_string(), "too many file calls are blocked on /: none of 2 has returned for 10 seconds");
        drop((first.0, second.0));
        first.1.await.expect("no panic").expect("run");
        second.1.await.expect("no panic").expect("run");
        lane.run(|| ()).await.expect("a free slot");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn long_work_is_cancelled_with_its_client() {
        let lane = calls().lane([Path::new("/")]);
        let (tell, told) = mpsc::channel();
        let (started, has_started) = tokio::sync::oneshot::channel();
        let call = tokio::spawn(async move {
            lane.run_cancellable(move |cancellation| {
                let _ = started.send(cancellation.check().is_ok());
                while cancellation.check().is_ok() {
                    std::thread::yield_now();
                }
                tell.send(()).expect("send to the test");
            })
            .await
        });
        assert!(has_started.await.expect("start"));
        call.abort();
        told.recv_timeout(Duration::from_secs(60)).expect("the call stopped");
    }
}
