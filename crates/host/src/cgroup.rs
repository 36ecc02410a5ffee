//! Control groups: one per VMM, so that all of it can be found and ended together.
//!
//! Only the unified hierarchy (cgroups(7), version 2) is used. A host may have it without controllers, or not at all; a
//! group then limits nothing, or there is none, and [`Groups::limits`] says so for people.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a group could not be made.
#[derive(Debug, thiserror::Error)]
#[error("creating the control group `{}`", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// The groups of one instance. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Groups {
    root: Option<PathBuf>,
    limits: String,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    path: PathBuf,
}

impl Groups {
    /// The groups below `hearth-<instance>`. What an earlier daemon left there is for [`sweep`](Self::sweep).
    #[must_use]
    pub fn open(instance: &str) -> Self {
        let Some(mount) = unified_mount() else {
            return Self { root: None, limits: "no unified control group hierarchy is mounted".to_owned() };
        };
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let root = mount.join(format!("hearth-{instance}"));
        if let Err(error) = fs::create_dir_all(&root) {
            let limits = format!("control groups cannot be made in {} ({error})", mount.display());
            return Self { root: None, limits };
        }
        let limits = match controllers.trim() {
            "" => "the unified hierarchy has no controllers: processes are grouped, not limited".to_owned(),
            names => format!("controllers available: {names}"),
        };
        Self { root: Some(root), limits }
    }

    /// What groups can and cannot do here, for people.
    #[must_use]
    pub fn limits(&self) -> &str {
        &self.limits
    }

    /// Makes a group; `None` where there are no groups.
    pub fn create(&self, name: &str) -> Result<Option<Group>, Error> {
        let Some(root) = &self.root else { return Ok(None) };
        let path = root.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Some(Group { path })),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(Some(Group { path })),
            Err(source) => Err(Error { path, source }),
        }
    }

    /// Ends and removes what an earlier daemon left. Only before the first group is made.
    pub async fn sweep(&self) {
        let Some(root) = &self.root else { return };
        let groups = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in groups.filter(|path| path.is_dir()) {
            if let Err((group, error)) = (Group { path }).remove().await {
                tracing::warn!(path = %group.path.display(), %error, "could not remove a control group");
            }
        }
    }

    /// Removes the instance's own group once nothing is in it.
    pub fn close(&self) {
        if let Some(root) = &self.root {
            let _ = fs::remove_dir(root);
        }
    }
}

impl Group {
    /// The file that takes process numbers.
    pub(crate) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Kills what is still in the group and removes it. A group that is gone is success.
    ///
    /// # Errors
    /// It is still there, and so may be what is in it.
    pub async fn remove(self) -> Result<(), (Self, io::Error)> {
        /// A killed process leaves its group once the kernel has torn it down.
        const ATTEMPTS: u32 = 50;
        // cgroup.kill is there since Linux 5.14; its absence shows in the removal.
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

/// Where the unified hierarchy is mounted (proc(5), mountinfo: the type follows the separator `-`).
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
    async fn a_group_holds_a_process_and_goes() {
        let groups = Groups::open(&format!("test-{}", std::process::id()));
        let Some(group) = groups.create("one").expect("creates") else {
            println!("skipped: {}", groups.limits());
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
        // A daemon that dies leaves a group with a process in it.
        let lost = groups.create("two").expect("creates").expect("groups are there");
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
