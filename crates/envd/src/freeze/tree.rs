//! Control groups to freeze, and their state.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroups::Kind;

/// Groups that run on in hierarchy mode, with everything below them. Relative to the root.
///
/// A guest with its own init system cannot be frozen safely without them.
const ALLOWED: [&str; 6] = [
    "init.scope",
    "system.slice/systemd-journald.service",
    "system.slice/rpcbind.service",
    "system.slice/rpcbind.socket",
    "system.slice/rpc-statd.service",
    "socats",
];

/// Result of a traversal of the tree.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    pub(super) visited: usize,
    pub(super) allowlisted: usize,
    pub(super) truncated: bool,
    pub(super) pre_frozen: usize,
    /// Groups to freeze, each with everything below it.
    pub(super) requested: BTreeSet<PathBuf>,
    pub(super) failed: usize,
}

/// Returns the daemon's own group (`/proc/self/cgroup`, cgroups(7)), if it is below `root`.
///
/// The kernel reports it relative to the mount point; the root may be deeper.
pub(super) fn own_group(root: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut path = Path::new(own_path(&text)?);
    while path.components().next().is_some() {
        let group = root.join(path);
        if group.join("cgroup.procs").exists() {
            return Some(group);
        }
        let mut deeper = path.components();
        deeper.next();
        path = deeper.as_path();
    }
    None
}

fn own_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// Returns the groups that a freeze stops.
///
/// These are the groups of the daemon's children. With the daemon's `own` group, they include every group beside the
/// path from the root to it.
pub(super) fn targets(root: &Path, own: Option<&Path>, bound: usize, frozen_by_guest: &BTreeSet<PathBuf>) -> Sweep {
    let mut sweep = Sweep::default();
    let children = [Kind::User, Kind::Terminal].map(|kind| root.join(kind.name()));
    for group in &children {
        sweep.consider(group, frozen_by_guest);
    }
    let Some(own) = own else { return sweep };
    let allowed: Vec<PathBuf> = ALLOWED.iter().map(|path| root.join(path)).collect();
    // An ancestor of a group that must run is traversed instead of frozen.
    let is_ancestor = |group: &Path| own.starts_with(group) || allowed.iter().any(|path| path.starts_with(group));
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for group in subgroups(&folder) {
            if children.contains(&group) {
                continue;
            }
            if sweep.visited >= bound {
                sweep.truncated = true;
                return sweep;
            }
            if allowed.contains(&group) {
                sweep.visited += 1;
                sweep.allowlisted += 1;
            } else if group == own {
                // Groups that the daemon's commands created in its own group run on with it.
                sweep.visited += 1;
            } else if is_ancestor(&group) {
                sweep.visited += 1;
                open.push(group);
            } else {
                sweep.consider(&group, frozen_by_guest);
            }
        }
    }
    sweep
}

impl Sweep {
    fn consider(&mut self, group: &Path, frozen_by_guest: &BTreeSet<PathBuf>) {
        self.visited += 1;
        if frozen_by_guest.contains(group) {
            self.pre_frozen += 1;
        } else {
            self.requested.insert(group.to_owned());
        }
    }
}

/// Writes `1` to `cgroup.freeze` of the targets.
pub(super) fn freeze(root: &Path, own: Option<&Path>, bound: usize, frozen_by_guest: &BTreeSet<PathBuf>) -> Sweep {
    let mut sweep = targets(root, own, bound, frozen_by_guest);
    let (requested, failed) =
        std::mem::take(&mut sweep.requested).into_iter().partition(|group| write_freeze(group, "1"));
    let failed: BTreeSet<PathBuf> = failed;
    sweep.requested = requested;
    // A group that was removed meanwhile has no processes.
    sweep.failed = failed.iter().filter(|group| group.exists()).count();
    sweep
}

/// Thaws the groups of the daemon's children. Returns true if all groups are thawed.
///
/// With the list of groups frozen by the guest, it also thaws every group that is not on the list.
pub(super) fn thaw(root: &Path, frozen_by_guest: Option<&BTreeSet<PathBuf>>, bound: usize) -> bool {
    let mut groups: BTreeSet<PathBuf> = match frozen_by_guest {
        Some(frozen_by_guest) => frozen_groups(root, bound).difference(frozen_by_guest).cloned().collect(),
        None => BTreeSet::new(),
    };
    groups.extend([Kind::User, Kind::Terminal].map(|kind| root.join(kind.name())));
    // Every group is thawed, even if one fails.
    let failed = groups.iter().filter(|group| !write_freeze(group, "0") && group.exists()).count();
    failed == 0
}

/// Returns every group whose `cgroup.freeze` is `1`, among at most `bound` visited groups.
pub(super) fn frozen_groups(root: &Path, bound: usize) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = subgroups(root);
    let mut visited = 0;
    while let Some(group) = open.pop() {
        visited += 1;
        if visited > bound {
            break;
        }
        open.extend(subgroups(&group));
        if is_freeze_requested(&group) {
            found.insert(group);
        }
    }
    found
}

pub(super) fn is_freeze_requested(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
}

/// Returns true if all processes of the group are stopped, or if the group was removed.
pub(super) fn is_frozen(group: &Path) -> bool {
    match fs::read_to_string(group.join("cgroup.events")) {
        Ok(events) => events.lines().any(|line| line == "frozen 1"),
        Err(_) => !group.exists(),
    }
}

fn write_freeze(group: &Path, value: &str) -> bool {
    fs::write(group.join("cgroup.freeze"), value).is_ok()
}

/// Returns the direct subgroups of a group, sorted.
fn subgroups(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a directory with the layout of control groups. Real ones are tested with the whole daemon.
    fn tree(groups: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("create a temporary directory");
        for group in groups {
            let path = root.path().join(group);
            fs::create_dir_all(&path).expect("create");
            fs::write(path.join("cgroup.freeze"), "0\n").expect("write");
        }
        root
    }

    fn names(root: &Path, groups: &BTreeSet<PathBuf>) -> Vec<String> {
        groups.iter().map(|group| group.strip_prefix(root).expect("below the root").display().to_string()).collect()
    }

    #[test]
    fn a_sweep_skips_groups_that_must_run() {
        let root = tree(&[
            "user",
            "ptys",
            "init.scope",
            "machine.slice/a",
            "system.slice/cron.service",
            "system.slice/envd.service",
            "system.slice/rpcbind.service",
            "system.slice/systemd-journald.service",
        ]);
        let own = root.path().join("system.slice/envd.service");
        let sweep = targets(root.path(), Some(&own), 512, &BTreeSet::new());
        assert_eq!(
            names(root.path(), &sweep.requested),
            ["machine.slice", "ptys", "system.slice/cron.service", "user"]
        );
        assert_eq!((sweep.allowlisted, sweep.truncated, sweep.pre_frozen), (3, false, 0));
        let frozen_by_guest = BTreeSet::from([root.path().join("machine.slice")]);
        let sweep = targets(root.path(), Some(&own), 512, &frozen_by_guest);
        assert_eq!(sweep.pre_frozen, 1);
        assert!(!sweep.requested.contains(&root.path().join("machine.slice")));
        assert!(targets(root.path(), Some(&own), 3, &BTreeSet::new()).truncated);
        let legacy = targets(root.path(), None, 512, &BTreeSet::new());
        assert_eq!(names(root.path(), &legacy.requested), ["ptys", "user"]);
    }

    #[test]
    fn groups_frozen_by_the_guest_remain_frozen() {
        let root = tree(&["user/a", "ptys", "box/paused", "box/other"]);
        fs::write(root.path().join("box/paused/cgroup.freeze"), "1\n").expect("write");
        let frozen_by_guest = frozen_groups(root.path(), 100);
        assert_eq!(names(root.path(), &frozen_by_guest), ["box/paused"]);
        let sweep = freeze(root.path(), Some(&root.path().join("envd")), 100, &frozen_by_guest);
        assert_eq!(names(root.path(), &sweep.requested), ["box", "ptys", "user"]);
        assert!(is_freeze_requested(&root.path().join("user")));
        assert!(thaw(root.path(), Some(&frozen_by_guest), 100));
        assert_eq!(frozen_groups(root.path(), 100), frozen_by_guest);
    }

    #[test]
    fn own_group_of_the_unified_hierarchy() {
        assert_eq!(own_path("0::/system.slice/envd.service\n"), Some("system.slice/envd.service"));
        assert_eq!(own_path("12:pids:/x\n0::/\n"), Some(""));
        assert_eq!(own_path("12:pids:/x\n"), None);
    }
}
