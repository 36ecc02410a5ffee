//! Leftovers of a server on the machine, found by the names that only it uses.
//!
//! The testkit does the same for Rust tests; this copy avoids a dependency of xtask on the crates that it builds.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::phases::output;

/// Folder of lock files: each server of the machine locks a number, which its namespaces, links and tables contain.
const LOCKS: &str = "/run/lock/hearth";

/// Lists everything that belongs to the server of a data directory and must not exist after its stop.
pub(crate) fn of(data: &Path) -> Vec<String> {
    let mut found = processes(data);
    let text = data.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&*text)).map(|line| format!("mount {line}")));
    for folder in ["executions", "run"] {
        found
            .extend(names(&data.join(folder)).into_iter().map(|name| format!("{folder}/{name} in the data directory")));
    }
    found.extend(groups(&mounts, &text));
    for number in numbers(Path::new(LOCKS), &text) {
        let namespaces = names(Path::new("/run/netns")).into_iter();
        let prefix = format!("hearth-{number}-");
        found.extend(
            namespaces.filter(|name| name.starts_with(&prefix)).map(|name| format!("network namespace {name}")),
        );
        let links = names(Path::new("/sys/class/net")).into_iter();
        let prefix = format!("hrt{number}-");
        found.extend(links.filter(|name| name.starts_with(&prefix)).map(|name| format!("link {name}")));
        // A user who may not list tables could not have created one either.
        let tables = output(Command::new("nft").args(["list", "tables"])).unwrap_or_default();
        let table = format!("table inet hearth-{number}");
        found.extend(tables.lines().filter(|line| *line == table).map(str::to_owned));
    }
    found
}

/// Lists the processes, other than this one, whose command line contains the folder.
pub(crate) fn processes(folder: &Path) -> Vec<String> {
    let text = folder.to_string_lossy();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for pid in names(Path::new("/proc")) {
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // A process may exit between the two reads.
        let words = fs::read(Path::new("/proc").join(&pid).join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains(&*text) {
            found.push(format!("process {pid}: {}", words.chars().take(120).collect::<String>()));
        }
    }
    found
}

/// Returns the numbers whose lock file contains the data directory as its last owner.
fn numbers(locks: &Path, data: &str) -> Vec<String> {
    let number = |name: String| {
        let owner = fs::read_to_string(locks.join(&name)).unwrap_or_default();
        let number = name.strip_prefix("instance-")?.strip_suffix(".lock")?;
        (owner.trim() == data).then(|| number.to_owned())
    };
    names(locks).into_iter().filter_map(number).collect()
}

/// Returns the control group of the data directory, which has its path as name, with dashes for slashes.
fn groups(mounts: &str, data: &str) -> Option<String> {
    let unified = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| place.split(' ').nth(4))?
    })?;
    let group = Path::new(unified).join(format!("hearth-{}", data.trim_matches('/').replace('/', "-")));
    group.exists().then(|| format!("control group {}", group.display()))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_process_is_found_by_its_command_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo up; read line"]).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().expect("sh");
        // Once it has printed something, its command line is set.
        let mut printed = [0_u8; 3];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut printed).expect("it prints");
        let found = of(folder.path());
        assert!(found.iter().any(|line| line.contains(&child.id().to_string())), "{found:?}");
        drop(child.stdin.take());
        child.wait().expect("it exits");
        assert_eq!(of(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn executions_and_sockets_are_leftovers() {
        let data = tempfile::tempdir().expect("a folder");
        for folder in ["executions/one", "run/node.sock", "artifacts/set"] {
            fs::create_dir_all(data.path().join(folder)).expect("a folder");
        }
        assert_eq!(of(data.path()), ["executions/one in the data directory", "run/node.sock in the data directory"]);
    }

    #[test]
    fn numbers_and_groups_are_found_by_the_data_directory() {
        let locks = tempfile::tempdir().expect("a folder");
        for (name, owner) in [("instance-0.lock", "/data/a"), ("instance-3.lock", "/data/b\n"), ("other", "/data/b")] {
            fs::write(locks.path().join(name), owner).expect("a lock");
        }
        assert_eq!(numbers(locks.path(), "/data/b"), ["3"]);
        let mount = tempfile::tempdir().expect("a folder");
        let mounts =
            format!("22 1 0:20 / /proc rw - proc proc rw\n31 1 0:27 / {} rw - cgroup2 none rw", mount.path().display());
        assert_eq!(groups(&mounts, "/data/b"), None);
        fs::create_dir(mount.path().join("hearth-data-b")).expect("a group");
        assert!(groups(&mounts, "/data/b").is_some_and(|group| group.ends_with("/hearth-data-b")));
    }
}
