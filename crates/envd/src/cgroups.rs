//! Control groups of the guest's processes (cgroups(7), version 2).
//!
//! ```text
//! root ─┬─ envd          the daemon; made by PID 1
//!       ├─ ptys ─┬─ one leaf a terminal
//!       └─ user ─┬─ one leaf a process
//! ```
//!
//! The two groups have limits and weights, so that no command takes the guest's memory or CPU from the daemon. A leaf has no
//! controllers, which makes it cheap; it is there so that a kill finds everything that the process started, however deep.
//! Who has no control groups, as in tests, runs commands without.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// statfs(2) of the unified hierarchy.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Memory that stays for the daemon and the kernel when commands take all they can: an eighth, at most this.
const MEMORY_KEPT_MAX: u64 = 128 << 20;
/// Left groups that are looked at when a process ends.
const SWEEP_MAX: usize = 64;
/// How deep groups are that a guest's program made in its leaf and left.
const DEPTH_MAX: usize = 32;

/// Which of the two groups a process goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    User,
    Terminal,
}

impl Kind {
    /// Names and weights of the contract.
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

/// The groups of this daemon.
#[derive(Debug)]
pub(crate) struct Groups {
    root: PathBuf,
    next: AtomicU64,
    /// Groups whose process has ended while others live on in them. They are removed when those have ended.
    left: Mutex<VecDeque<PathBuf>>,
}

/// A process's own group. Dropping it removes it, now or once it is empty.
#[derive(Debug)]
pub(crate) struct Leaf {
    groups: Arc<Groups>,
    path: PathBuf,
}

impl Groups {
    /// Makes the two groups below `root`, or uses those an earlier daemon made. `None`, with a word about it, where that
    /// cannot be.
    pub(crate) fn open(root: &Path) -> Option<Arc<Self>> {
        let unified = rustix::fs::statfs(root).is_ok_and(|found| u64::try_from(found.f_type) == Ok(CGROUP2_MAGIC));
        if !unified {
            eprintln!("envd: {} has no unified control groups", root.display());
            return None;
        }
        let memory = memory_limit();
        for kind in [Kind::User, Kind::Terminal] {
            if let Err(error) = make(root, kind, memory) {
                eprintln!("envd: making the control group {}: {error}", kind.name());
                return None;
            }
        }
        let groups = Self { root: root.to_owned(), next: AtomicU64::new(0), left: Mutex::default() };
        groups.adopt();
        Some(Arc::new(groups))
    }

    /// Where all groups are.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A new group for one process. Unique also among those of earlier daemons.
    pub(crate) fn leaf(self: &Arc<Self>, kind: Kind) -> io::Result<Leaf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(kind.name()).join(format!("{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Leaf { groups: Arc::clone(self), path })
    }

    fn left(&self) -> MutexGuard<'_, VecDeque<PathBuf>> {
        // Every section is one step on a valid queue.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what an earlier daemon left behind.
    fn adopt(&self) {
        for kind in [Kind::User, Kind::Terminal] {
            let entries = fs::read_dir(self.root.join(kind.name())).into_iter().flatten().flatten();
            self.left().extend(
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
    }

    /// Removes groups that have become empty; those that have not are looked at again later.
    fn sweep(&self) {
        let mut left = self.left();
        for _ in 0..left.len().min(SWEEP_MAX) {
            let Some(path) = left.pop_front() else { return };
            if !remove(&path, DEPTH_MAX) {
                left.push_back(path);
            }
        }
    }
}

impl Leaf {
    /// Where a process enters it: by writing `0` (cgroups(7)).
    pub(crate) fn door(&self) -> io::Result<File> {
        File::options().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Kills everything in it, also what runs in groups that were made below it. Kernels before 5.14 cannot.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        self.groups.left().push_back(std::mem::take(&mut self.path));
        self.groups.sweep();
    }
}

/// Removes a group and the empty ones below it; whether it is gone.
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

/// Whether a process lives in a group or below it. A group that cannot be asked is one that is gone.
fn is_populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events")).is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

fn make(root: &Path, kind: Kind, memory: Option<u64>) -> io::Result<()> {
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
        // Absent where its controller is.
        if path.exists() {
            fs::write(path, value)?;
        }
    }
    Ok(())
}

/// What all commands together may have of the guest's memory, in bytes.
fn memory_limit() -> Option<u64> {
    let total = crate::metrics::memory_total()?;
    Some(total - (total / 8).min(MEMORY_KEPT_MAX))
}
