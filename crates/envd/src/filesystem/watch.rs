//! Watches on directories (inotify(7)).
//!
//! A [`Watch`] translates kernel events into the contract's. A [`stream`] owns a watch and pushes its events; a
//! [polled](PolledWatchers) watcher stores them until they are fetched.
//!
//! A recursive watch is one kernel watch per directory, updated as directories are created, moved and removed. When the
//! kernel's queue overflows, events are lost: the watch continues and reports every existing entry as created, so that
//! a client learns the current entries (but not the removed ones).

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use connectrpc::ConnectError;
use hearth_envd_api::filesystem::{EventType, FilesystemEvent};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::entry::describe;
use crate::path_calls::Lane;
use crate::users::NameCache;
use crate::{sys, temporary};

mod polled;
mod stream;

pub(super) use polled::PolledWatchers;
pub(super) use stream::stream;

/// Bytes of the buffer for one read of kernel events.
const BUFFER_BYTES: usize = 16 * 1024;
/// Kernel events handled in one batch, before other tasks run. The kernel queues as many by default.
const BATCH_EVENTS_MAX: usize = 16_384;

/// Entries reported after an overflow. A polled watcher stores twice as many.
const RESCANNED_MAX: usize = 50_000;

/// Limit of moves that wait for their second event. Only events of other directories lie between the two events.
const PENDING_MOVES_MAX: usize = 64;

/// Options of a watch; the client sets them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) recursive: bool,
    pub(super) include_entry: bool,
    pub(super) allow_network_mounts: bool,
}

/// A watched directory.
pub(super) struct Watch {
    root: PathBuf,
    options: Options,
    /// Slots for calls that examine changed paths.
    lane: Lane,
    /// Shared with the task that waits for it to become readable.
    inotify: Arc<AsyncFd<OwnedFd>>,
    /// Watched directories, relative to the root, by watch descriptor. Empty once the root is removed.
    folders: HashMap<i32, PathBuf>,
    /// Cookies of temporary files' moves whose second event has not arrived yet, newest first.
    pending_moves: VecDeque<u32>,
}

/// A kernel event, copied out of the buffer.
struct KernelEvent {
    watch: i32,
    flags: ReadFlags,
    /// Common to the two events of a move.
    cookie: u32,
    name: Option<OsString>,
}

/// Events of one batch.
pub(super) struct Batch {
    events: Vec<FilesystemEvent>,
    /// The queue is empty: the descriptor becomes readable again on the next event.
    is_empty: bool,
}

impl Watch {
    /// Starts to watch: every change after the return is reported. Blocks; must run inside a Tokio runtime.
    pub(super) fn open(root: PathBuf, options: Options, lane: Lane) -> Result<Self, ConnectError> {
        let found = std::fs::metadata(&root).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ConnectError::not_found(format!("path {} not found", root.display())),
            _ => ConnectError::internal(format!("error getting file info: {error}")),
        })?;
        if !found.is_dir() {
            return Err(ConnectError::invalid_argument(format!("path {} not a directory", root.display())));
        }
        if !options.allow_network_mounts && is_network_mount(&root) {
            let text = format!("cannot watch path on network filesystem: {}", root.display());
            return Err(ConnectError::invalid_argument(text));
        }
        let failed = |error: io::Error| ConnectError::internal(format!("error creating watcher: {error}"));
        let inotify =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        let inotify = Arc::new(sys::pollable(inotify).map_err(failed)?);
        let mut watch = Self { root, options, lane, inotify, folders: HashMap::new(), pending_moves: VecDeque::new() };
        watch.add(Path::new("")).map_err(failed)?;
        if options.recursive {
            watch.add_below(Path::new(""), |_| {}).map_err(failed)?;
        }
        Ok(watch)
    }

    /// Watches one directory. If it is watched already, the kernel returns the existing descriptor.
    fn add(&mut self, relative: &Path) -> io::Result<i32> {
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVE_SELF
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        // The root may be a link; below it links are not followed.
        if !relative.as_os_str().is_empty() {
            flags |= WatchFlags::DONT_FOLLOW;
        }
        let number = inotify::add_watch(self.inotify.get_ref(), self.root.join(relative), flags)?;
        self.folders.insert(number, relative.to_owned());
        Ok(number)
    }

    /// Watches everything below a directory and passes each found path to `found`.
    ///
    /// Directories that are unreadable or were removed are left out; only the kernel's limits are an error.
    fn add_below(&mut self, relative: &Path, mut found: impl FnMut(PathBuf)) -> io::Result<()> {
        let top = self.root.join(relative);
        // The root itself may be a link.
        let entries = walkdir::WalkDir::new(&top).min_depth(1).into_iter();
        for entry in entries.filter_entry(|entry| !temporary::is_temporary(entry.file_name())).flatten() {
            let Ok(path) = entry.path().strip_prefix(&self.root).map(Path::to_owned) else { continue };
            if entry.file_type().is_dir()
                && let Err(error) = self.add(&path)
                && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory)
            {
                return Err(error);
            }
            found(path);
        }
        Ok(())
    }

    /// Removes the watches of a directory and of all below it that have moved away.
    fn recheck(&mut self, relative: &Path) {
        let below = self.folders.iter().filter(|(_, path)| path.starts_with(relative));
        let below: Vec<_> = below.map(|(number, path)| (*number, path.clone())).collect();
        for (number, path) in below {
            if self.add(&path).ok() != Some(number) {
                self.unwatch(number);
            }
        }
    }

    fn unwatch(&mut self, number: i32) {
        self.folders.remove(&number);
        // Fails when the directory is removed, because its watch is then removed too.
        let _ = inotify::remove_watch(self.inotify.get_ref(), number);
    }

    /// Returns the events that are in the kernel's queue now. Blocks while new directories are scanned.
    fn drain(&mut self) -> Result<Batch, ConnectError> {
        let mut drained = Batch { events: Vec::new(), is_empty: false };
        let mut handled = 0;
        while handled < BATCH_EVENTS_MAX {
            let kernel_events =
                self.read().map_err(|error| ConnectError::internal(format!("watcher error: {error}")))?;
            if kernel_events.is_empty() {
                drained.is_empty = true;
                break;
            }
            handled += kernel_events.len();
            for event in kernel_events {
                self.translate(&event, &mut drained.events);
            }
        }
        Ok(drained)
    }

    /// Returns the events of one read; empty if there are none.
    fn read(&self) -> Result<Vec<KernelEvent>, Errno> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        let mut kernel_events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => kernel_events.push(KernelEvent {
                    watch: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned()),
                }),
                Err(Errno::AGAIN) => return Ok(kernel_events),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            if reader.is_buffer_empty() {
                return Ok(kernel_events);
            }
        }
    }

    fn translate(&mut self, event: &KernelEvent, events: &mut Vec<FilesystemEvent>) {
        let flags = event.flags;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            let found = self.rescan();
            events.extend(found.iter().map(|path| self.event(path, EventType::EVENT_TYPE_CREATE)));
            return;
        }
        let Some(folder) = self.folders.get(&event.watch).cloned() else { return };
        if flags.contains(ReadFlags::IGNORED) {
            self.folders.remove(&event.watch);
            return;
        }
        if event.name.as_ref().is_some_and(|name| self.is_hidden(&folder, name, event)) {
            return;
        }
        let is_root = folder.as_os_str().is_empty();
        // The removal of a directory is reported by its parent, if that is watched.
        if !is_root && flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
            if flags.contains(ReadFlags::MOVE_SELF) {
                self.recheck(&folder);
            }
            return;
        }
        let relative = event.name.as_ref().map_or_else(|| folder.clone(), |name| folder.join(name));
        for kind in kinds(flags) {
            events.push(self.event(&relative, kind));
        }
        if flags.contains(ReadFlags::MOVE_SELF) {
            // The root was moved: changes at its new place are not reported.
            let numbers: Vec<_> = self.folders.keys().copied().collect();
            numbers.into_iter().for_each(|number| self.unwatch(number));
        }
        let arrived = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) && flags.contains(ReadFlags::ISDIR);
        if arrived && self.options.recursive && self.add(&relative).is_ok() {
            let mut found = Vec::new();
            // At the kernel's limit some directories are not watched; their existing entries are reported nevertheless.
            let _ = self.add_below(&relative, |path| found.push(path));
            events.extend(found.iter().map(|path| self.event(path, EventType::EVENT_TYPE_CREATE)));
        }
    }

    /// Returns true for the daemon's temporary files, and for the rename by which one replaces another file.
    ///
    /// The daemon causes the events of a write for such a replacement.
    fn is_hidden(&mut self, folder: &Path, name: &OsStr, event: &KernelEvent) -> bool {
        if temporary::is_temporary(name) {
            if event.flags.contains(ReadFlags::MOVED_FROM) && temporary::is_replacement(name) {
                self.pending_moves.truncate(PENDING_MOVES_MAX - 1);
                self.pending_moves.push_front(event.cookie);
            }
            return true;
        }
        if event.flags.contains(ReadFlags::MOVED_TO)
            && let Some(place) = self.pending_moves.iter().position(|cookie| *cookie == event.cookie)
        {
            self.pending_moves.remove(place);
            return true;
        }
        // The kernel has a name for a nameless file, but no path leads to it.
        let is_change = !event.flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO | ReadFlags::DELETE);
        is_change && temporary::may_be_nameless(name) && self.root.join(folder).join(name).symlink_metadata().is_err()
    }

    /// Returns all existing entries after events were lost. Directories created meanwhile are watched from now on.
    fn rescan(&mut self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut take = |path: PathBuf| {
            if found.len() < RESCANNED_MAX {
                found.push(path);
            }
        };
        if self.options.recursive {
            // At the kernel's limit some directories are not watched; their existing entries are reported nevertheless.
            let _ = self.add_below(Path::new(""), take);
        } else {
            let names = std::fs::read_dir(&self.root).into_iter().flatten().flatten().map(|entry| entry.file_name());
            names.filter(|name| !temporary::is_temporary(name)).for_each(|name| take(name.into()));
        }
        found
    }

    fn event(&self, relative: &Path, kind: EventType) -> FilesystemEvent {
        let name = if relative.as_os_str().is_empty() { ".".into() } else { relative.to_string_lossy() };
        let entry_exists = !matches!(kind, EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME);
        let look = || describe(&self.path_of(relative), &mut NameCache::default()).ok();
        let entry = (self.options.include_entry && entry_exists).then(look).flatten();
        FilesystemEvent { name: name.into_owned(), r#type: kind.into(), entry: entry.into(), ..Default::default() }
    }

    fn path_of(&self, relative: &Path) -> PathBuf {
        if relative.as_os_str().is_empty() { self.root.clone() } else { self.root.join(relative) }
    }
}

/// Returns the contract's events of one kernel event, in the contract's order.
fn kinds(flags: ReadFlags) -> impl Iterator<Item = EventType> {
    [
        (ReadFlags::CREATE | ReadFlags::MOVED_TO, EventType::EVENT_TYPE_CREATE),
        (ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF, EventType::EVENT_TYPE_RENAME),
        (ReadFlags::ATTRIB, EventType::EVENT_TYPE_CHMOD),
        (ReadFlags::MODIFY, EventType::EVENT_TYPE_WRITE),
        (ReadFlags::DELETE | ReadFlags::DELETE_SELF, EventType::EVENT_TYPE_REMOVE),
    ]
    .into_iter()
    .filter(move |(bits, _)| flags.intersects(*bits))
    .map(|(_, kind)| kind)
}

/// Returns true on NFS, CIFS, SMB, SMB2 and FUSE, whose changes the kernel does not see (statfs(2)).
fn is_network_mount(path: &Path) -> bool {
    const NETWORK: [u32; 5] = [0x6969, 0xFF53_4D42, 0x517B, 0xFE53_4D42, 0x6573_5546];
    // The magic numbers have 32 bits; the field's type differs by architecture.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    rustix::fs::statfs(path).is_ok_and(|stat| NETWORK.contains(&(stat.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const EVERYTHING: Options = Options { recursive: true, include_entry: false, allow_network_mounts: true };

    fn open(root: &Path) -> Watch {
        let lane = crate::state::State::outside().file_calls.lane([root]);
        Watch::open(root.to_owned(), EVERYTHING, lane).expect("watch")
    }

    fn drain(watch: &mut Watch) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let drained = watch.drain().expect("drain");
            names.extend(drained.events.into_iter().map(|event| event.name));
            if drained.is_empty {
                return names;
            }
        }
    }

    #[tokio::test]
    async fn after_an_overflow_existing_entries_are_reported() {
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("read the queue's limit");
        let limit: usize = limit.trim().parse().expect("a number");
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let mut watch = open(folder.path());
        // Two events each time; the kernel would merge two adjacent events of the same kind.
        for _ in 0..=limit / 2 {
            fs::create_dir(folder.path().join("flood")).expect("create");
            fs::remove_dir(folder.path().join("flood")).expect("remove");
        }
        fs::create_dir_all(folder.path().join("late/deep")).expect("create");
        let names = drain(&mut watch);
        assert!(names.len() >= limit, "the queue overflowed");
        assert_eq!(names[names.len() - 2..], ["late", "late/deep"], "entries whose events were lost");
        fs::write(folder.path().join("late/deep/file"), "x").expect("write");
        assert_eq!(drain(&mut watch), ["late/deep/file", "late/deep/file"]);
    }

    #[tokio::test]
    async fn watches_of_removed_directories_are_removed() {
        let (inside, outside) = (
            tempfile::tempdir().expect("create a temporary directory"),
            tempfile::tempdir().expect("create a temporary directory"),
        );
        let mut watch = open(inside.path());
        for round in 0..10 {
            fs::create_dir_all(inside.path().join("a/b/c")).expect("create");
            drain(&mut watch);
            assert_eq!(watch.folders.len(), 4);
            if round % 2 == 0 {
                fs::remove_dir_all(inside.path().join("a")).expect("remove");
            } else {
                fs::rename(inside.path().join("a"), outside.path().join(round.to_string())).expect("move");
            }
            drain(&mut watch);
            // The kernel reports the end of a watch after its removal.
            drain(&mut watch);
            assert_eq!(watch.folders.len(), 1, "after round {round}: {:?}", watch.folders);
        }
    }
}
