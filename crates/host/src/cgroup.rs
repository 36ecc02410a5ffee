//! Control groups: one per VMM, so that all its processes can be found and killed together.
//!
//! Only the unified hierarchy (cgroups(7), version 2) is used. A host may have it without controllers, in which case
//! groups limit nothing, or not at all, in which case there are no groups. [`Groups::support`] describes the situation
//! for operators.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Failure to create a control group.
#[derive(Debug, thiserror::Error)]
#[error("creating the control group `{}`", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Control groups of one instance. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Groups {
    root: Option<PathBuf>,
    support: String,
}

/// A control group of one VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    path: PathBuf,
}

impl Groups {
    /// Opens the groups below `hearth-<instance>`.
    ///
    /// Groups that an earlier daemon left there are removed by [`sweep`](Self::sweep).
    #[must_use]
    pub fn open(instance: &str) -> Self {
        let Some(mount) = unified_mount() else {
            return Self { root: None, support: "no unified control group hierarchy is mounted".to_owned() };
        };
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let root = mount.join(format!("hearth-{instance}"));
        if let Err(error) = fs::create_dir_all(&root) {
            let support = format!("control groups cannot be created in {} ({error})", mount.display());
            return Self { root: None, support };
        }
        let support = match controllers.trim() {
            "" => "the unified hierarchy has no controllers: processes are grouped, not limited".to_owned(),
            names => format!("controllers available: {names}"),
        };
        Self { root: Some(root), support }
    }

    /// Describes, for operators, what control groups can do on this host.
    #[must_use]
    pub fn support(&self) -> &str {
        &self.support
    }

    /// Creates a group or returns an existing one of that name; `None` if the host has no groups.
    pub fn create(&self, name: &str) -> Result<Option<Group>, Error> {
        let Some(root) = &self.root else { return Ok(None) };
        let path = root.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Some(Group { path })),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(Some(Group { path })),
            Err(source) => Err(Error { path, source }),
        }
    }

    /// Kills and removes the groups that an earlier daemon left. Call it before the first `create`.
    pub async fn sweep(&self) {
        let Some(root) = &self.root else { return };
        let groups = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in groups.filter(|path| path.is_dir()) {
            if let Err((group, error)) = (Group { path }).remove().await {
                tracing::warn!(path = %group.path.display(), %error, "could not remove a control group");
            }
        }
    }

    /// Removes the instance's own group if it is empty.
    pub fn close(&self) {
        if let Some(root) = &self.root {
            let _ = fs::remove_dir(root);
        }
    }
}

impl Group {
    /// The file that accepts process ids.
    pub(crate) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Kills all processes in the group and removes it. A group that does not exist is success.
    ///
    /// # Errors
    /// The group still exists, and possibly processes in it.
    pub async fn remove(self) -> Result<(), (Self, io::Error)> {
        /// A killed process leaves its group only after the kernel has torn it down.
        const ATTEMPTS: u32 = 50;
        // cgroup.kill exists since Linux 5.14. Without it the removal fails while processes are in the group.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        for attempt in 0..ATTEMPTS {
            match fs::remove_dir(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if attempt + 1 == ATTEMPTS => return Err((self, error)),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
        Ok(())
    }
}

/// Returns the mount point of the unified hierarchy.
///
/// In mountinfo the type follows the separator `-` (proc(5)).
fn unified_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(parse_mount).filter(|path: &PathBuf| Path::new(path).is_dir())
}

fn parse_mount(line: &str) -> Option<PathBuf> {
    let (head, tail) = line.split_once(" - ")?;
    tail.starts_with("cgroup2 ").then(|| head.split(' ').nth(4).map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_among_mounts() {
        let line = "35 25 0:30 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(parse_mount(line), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(parse_mount("36 25 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }

    #[tokio::test]
    async fn a_group_holds_a_process_and_is_removed() {
        let groups = Groups::open(&format!("test-{}", std::process::id()));
        let Some(group) = groups.create("one").expect("creates") else {
            println!("skipped: {}", groups.support());
            return;
        };
        let mut spawn = crate::process::Spawn::new("sleep");
        spawn.args(["1000".into()]).cgroup(&group);
        let process = spawn.spawn().expect("starts");
        let members = fs::read_to_string(group.procs()).expect("reads");
        assert_eq!(members.trim(), process.pid().to_string());
        process.kill().expect("kills");
        process.wait().await;
        let path = group.path.clone();
        group.remove().await.expect("removes");
        assert!(!path.exists());
        // A daemon that crashes leaves a group with a process in it.
        let lost = groups.create("two").expect("creates").expect("the host has groups");
        let mut spawn = crate::process::Spawn::new("sleep");
        spawn.args(["1000".into()]).cgroup(&lost);
        let process = spawn.spawn().expect("starts");
        let path = lost.path.clone();
        drop(lost);
        groups.sweep().await;
        process.wait().await;
        assert!(!path.exists());
        groups.close();
    }
}
