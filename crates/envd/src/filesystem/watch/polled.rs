//! Watches that store their events until they are fetched.
//!
//! Each has a task that reads continuously, because watches of new subdirectories must be added even if no client
//! polls. A fetch also reads itself, because it must return everything written before the call.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connectrpc::ConnectError;
use hearth_envd_api::filesystem::FilesystemEvent;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Watch;
use crate::path_calls::Lane;
use crate::sys;

/// Events stored per watcher until they are fetched.
///
/// At a few hundred bytes each, this bounds the memory of an abandoned watcher. Beyond it the watcher fails rather than
/// lose some.
const BUFFERED_EVENTS_MAX: usize = 100_000;
/// Random bytes of a watcher's id, which make it unguessable.
const ID_BYTES: usize = 8;

/// The polled watchers, by id. Each exists until it is removed; the kernel's limit on inotify instances bounds them.
#[derive(Default)]
pub(in crate::filesystem) struct PolledWatchers {
    open: Mutex<HashMap<String, OpenWatcher>>,
}

struct OpenWatcher {
    watcher: Arc<Watcher>,
    /// Stops the reading task.
    _reading: DropGuard,
}

/// A polled watcher.
pub(in crate::filesystem) struct Watcher {
    /// Locked only by blocking calls, on threads that may block.
    buffered: Mutex<Buffered>,
    lane: Lane,
}

struct Buffered {
    watch: Watch,
    events: Vec<FilesystemEvent>,
    /// Sticky: a client must not believe that it has received every event.
    failed: Option<ConnectError>,
}

impl Buffered {
    fn drain(&mut self) {
        while self.failed.is_none() {
            match self.watch.drain() {
                Ok(drained) => {
                    self.events.extend(drained.events);
                    if self.events.len() > BUFFERED_EVENTS_MAX {
                        let text = format!("watcher error: more than {BUFFERED_EVENTS_MAX} events were not fetched");
                        self.failed = Some(ConnectError::resource_exhausted(text));
                    } else if drained.is_empty {
                        return;
                    }
                }
                Err(error) => self.failed = Some(error),
            }
        }
        self.events = Vec::new();
    }
}

impl Watcher {
    fn buffered(&self) -> MutexGuard<'_, Buffered> {
        // Events are added whole; a poisoned lock guards a valid list.
        self.buffered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all events since the last fetch. Not cancel safe: taken events are lost with the future.
    pub(in crate::filesystem) async fn take(self: Arc<Self>) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let lane = self.lane.clone();
        let taken = lane.run(move || {
            let mut buffered = self.buffered();
            buffered.drain();
            match &buffered.failed {
                Some(error) => Err(error.clone()),
                None => Ok(std::mem::take(&mut buffered.events)),
            }
        });
        taken.await?
    }
}

impl PolledWatchers {
    fn open(&self) -> MutexGuard<'_, HashMap<String, OpenWatcher>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a watch's events from now on. Returns the id to fetch them by.
    pub(in crate::filesystem) fn add(&self, watch: Watch) -> Result<String, ConnectError> {
        let random = sys::random_hex::<ID_BYTES>();
        let random = random.map_err(|error| ConnectError::internal(format!("error creating watcher: {error}")))?;
        let id = format!("w{random}");
        let inotify = Arc::clone(&watch.inotify);
        let lane = watch.lane.clone();
        let buffered = Mutex::new(Buffered { watch, events: Vec::new(), failed: None });
        let watcher = Arc::new(Watcher { buffered, lane });
        let stop = CancellationToken::new();
        tokio::spawn(read_continuously(inotify, Arc::clone(&watcher), stop.clone()));
        self.open().insert(id.clone(), OpenWatcher { watcher, _reading: stop.drop_guard() });
        Ok(id)
    }

    pub(in crate::filesystem) fn find(&self, id: &str) -> Result<Arc<Watcher>, ConnectError> {
        self.open().get(id).map(|entry| Arc::clone(&entry.watcher)).ok_or_else(|| unknown(id))
    }

    pub(in crate::filesystem) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.open().remove(id).map(drop).ok_or_else(|| unknown(id))
    }
}

fn unknown(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}

async fn read_continuously(inotify: Arc<AsyncFd<OwnedFd>>, watcher: Arc<Watcher>, stop: CancellationToken) {
    loop {
        // Both arms are cancel safe: becoming readable takes nothing from the queue.
        tokio::select! {
            () = stop.cancelled() => return,
            ready = inotify.readable() => match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            }
        }
        let drained = Arc::clone(&watcher);
        // Rejected when its mount is blocked: the events remain in the kernel's queue, and the next one wakes this task
        // again.
        let _ = watcher.lane.run(move || drained.buffered().drain()).await;
    }
}
