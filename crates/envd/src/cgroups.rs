//! Control groups of the guest's processes (cgroups(7), version 2).
//!
//! ```text
//! root ─┬─ envd          the daemon; created by PID 1
//!       ├─ ptys ─┬─ one leaf per terminal
//!       └─ user ─┬─ one leaf per process
//! ```
//!
//! `ptys` and `user` have limits and weights, so that no command takes the guest's memory or CPU from the daemon. A
//! leaf has no controllers, which makes it cheap; it exists so that a kill reaches every descendant of the process.
//! Without control groups, as in tests, commands run outside of any leaf.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Type of the unified hierarchy's file system (statfs(2)).
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Upper bound of the memory reserved for the daemon and the kernel, in bytes; the reserve is an eighth of the guest's.
const MEMORY_RESERVE_MAX: u64 = 128 << 20;
/// Orphaned groups checked per sweep. A sweep runs when a process ends.
const SWEEP_MAX: usize = 64;
/// Nesting depth to which groups that a guest's program created below its leaf are removed.
const DEPTH_MAX: usize = 32;

/// Parent group of a process's leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    User,
    Terminal,
}

impl Kind {
    /// Returns the group's name and weights, which the contract fixes.
    fn properties(self) -> (&'static str, [(&'static str, &'static str); 2]) {
        match self {
            Self::User => ("user", [("cpu.weight", "50"), ("io.weight", "default 10")]),
            Self::Terminal => ("ptys", [("cpu.weight", "200"), ("io.weight", "default 50")]),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        self.properties().0
    }
}

/// The daemon's control groups.
#[derive(Debug)]
pub(crate) struct Groups {
    root: PathBuf,
    next: AtomicU64,
    /// Groups whose process has ended while descendants still run in them. Each is removed once it is empty.
    orphaned: Mutex<VecDeque<PathBuf>>,
}

/// A process's own group. Dropping it removes it, immediately or once it is empty.
#[derive(Debug)]
pub(crate) struct Leaf {
    groups: Arc<Groups>,
    path: PathBuf,
}

impl Groups {
    /// Creates the two groups below `root`, or uses those of an earlier daemon.
    ///
    /// Returns `None` and prints a message to the console when that is impossible.
    pub(crate) fn open(root: &Path) -> Option<Arc<Self>> {
        let unified = rustix::fs::statfs(root).is_ok_and(|found| u64::try_from(found.f_type) == Ok(CGROUP2_MAGIC));
        if !unified {
            eprintln!("envd: {} has no unified control groups", root.display());
            return None;
        }
        let memory = memory_limit();
        for kind in [Kind::User, Kind::Terminal] {
            if let Err(error) = ensure_group(root, kind, memory) {
                eprintln!("envd: creating the control group {}: {error}", kind.name());
                return None;
            }
        }
        let groups = Self { root: root.to_owned(), next: AtomicU64::new(0), orphaned: Mutex::default() };
        groups.adopt();
        Some(Arc::new(groups))
    }

    /// The directory of the hierarchy's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Creates a group for one process. Its name is unique also among those of earlier daemons.
    pub(crate) fn leaf(self: &Arc<Self>, kind: Kind) -> io::Result<Leaf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(kind.name()).join(format!("{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Leaf { groups: Arc::clone(self), path })
    }

    fn orphaned(&self) -> MutexGuard<'_, VecDeque<PathBuf>> {
        // Every section is one step on a valid queue.
        self.orphaned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adopts groups that an earlier daemon left behind.
    fn adopt(&self) {
        for kind in [Kind::User, Kind::Terminal] {
            let entries = fs::read_dir(self.root.join(kind.name())).into_iter().flatten().flatten();
            self.orphaned().extend(
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
    }

    /// Removes groups that have become empty; the others are checked again later.
    fn sweep(&self) {
        let mut orphaned = self.orphaned();
        for _ in 0..orphaned.len().min(SWEEP_MAX) {
            let Some(path) = orphaned.pop_front() else { return };
            if !remove(&path, DEPTH_MAX) {
                orphaned.push_back(path);
            }
        }
    }
}

impl Leaf {
    /// Opens `cgroup.procs`: a process that writes `0` to it enters the group (cgroups(7)).
    pub(crate) fn open_procs(&self) -> io::Result<File> {
        File::options().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Kills all processes in the group and in the groups below it. Fails on kernels before 5.14.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        self.groups.orphaned().push_back(std::mem::take(&mut self.path));
        self.groups.sweep();
    }
}

/// Removes a group and the empty ones below it. Returns true if the group no longer exists.
fn remove(path: &Path, depth: usize) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => return true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
        Err(_) if depth == 0 || is_populated(path) => return false,
        Err(_) => {}
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path(), depth - 1);
    }
    fs::remove_dir(path).is_ok()
}

/// Returns true if a process runs in the group or below it. A group that cannot be read counts as removed.
fn is_populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events")).is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

fn ensure_group(root: &Path, kind: Kind, memory: Option<u64>) -> io::Result<()> {
    let (name, weights) = kind.properties();
    let group = root.join(name);
    match fs::create_dir(&group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let limit = memory.map(|bytes| bytes.to_string());
    let limits = limit.iter().flat_map(|limit| [("memory.high", limit.as_str()), ("memory.max", limit.as_str())]);
    for (file, value) in weights.into_iter().chain(limits) {
        let path = group.join(file);
        // The file is missing when its controller is not enabled.
        if path.exists() {
            fs::write(path, value)?;
        }
    }
    Ok(())
}

/// Memory limit of all commands together, in bytes.
fn memory_limit() -> Option<u64> {
    let total = crate::metrics::memory_total()?;
    Some(total - (total / 8).min(MEMORY_RESERVE_MAX))
}
