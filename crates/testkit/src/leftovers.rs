//! Resources that an instance has on the machine, or left there.

use std::fs;
use std::path::Path;

use hearth_host::namespace;
use hearth_network::LOCK_FOLDER;

/// Names of all resources of one instance, except its database rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes with the data directory in their arguments, except the daemon itself. Each is a pid and a command line.
    pub processes: Vec<String>,
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// Network links in the host's namespace.
    pub links: Vec<String>,
    /// nftables tables.
    pub tables: Vec<String>,
    /// Control groups.
    pub groups: Vec<String>,
    /// Lines of the mount table that name the data directory.
    pub mounts: Vec<String>,
    /// Folders of executions.
    pub executions: Vec<String>,
    /// Files in the folder `run`, such as sockets.
    pub run: Vec<String>,
}

impl Leftovers {
    /// Lists the resources of the instance that owns a data directory.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        let mut found = Self {
            processes: processes(data_dir),
            groups: groups(data_dir),
            mounts: mounts(data_dir),
            executions: names(&data_dir.join("executions")),
            run: names(&data_dir.join("run")),
            ..Self::default()
        };
        for number in instances(data_dir) {
            found.namespaces.extend(namespace::list(&format!("hearth-{number}-")));
            found.links.extend(namespace::links(&format!("hrt{number}-")));
            let table = format!("inet hearth-{number}");
            if namespace::nft_table_exists(&table).unwrap_or(false) {
                found.tables.push(table);
            }
        }
        found
    }

    /// Returns true if the instance has no resources.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns only the resources of sandboxes.
    ///
    /// Omits the resources that a running daemon retains between sandboxes: slots, packet rules, sockets and its own
    /// control group.
    #[must_use]
    pub fn of_sandboxes(&self) -> Self {
        Self {
            processes: self.processes.clone(),
            groups: self.groups.iter().filter(|group| group.contains('/')).cloned().collect(),
            mounts: self.mounts.clone(),
            executions: self.executions.clone(),
            ..Self::default()
        }
    }
}

/// Returns the instance numbers whose lock file names the data directory as the latest owner.
fn instances(data_dir: &Path) -> Vec<u32> {
    let owner = data_dir.display().to_string();
    let owned = |number: &u32| {
        let path = Path::new(LOCK_FOLDER).join(format!("instance-{number}.lock"));
        fs::read_to_string(path).is_ok_and(|text| text.trim() == owner)
    };
    (0..16).filter(owned).collect()
}

fn processes(data_dir: &Path) -> Vec<String> {
    let text = data_dir.display().to_string();
    let numbers = names(Path::new("/proc")).into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    numbers
        .filter_map(|number| {
            let line = fs::read(format!("/proc/{number}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let daemon = line.split_whitespace().nth(1) == Some("up");
            (line.contains(&text) && !daemon).then(|| format!("{number} {line}"))
        })
        .collect()
}

fn groups(data_dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let unified = mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        tail.starts_with("cgroup2 ").then(|| head.split(' ').nth(4).map(str::to_owned))?
    });
    let Some(unified) = unified else { return Vec::new() };
    let name = format!("hearth-{}", group_name(data_dir));
    let root = Path::new(&unified).join(&name);
    if !root.exists() {
        return Vec::new();
    }
    let below = fs::read_dir(&root).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let below = below.map(|entry| format!("{name}/{}", entry.file_name().to_string_lossy()));
    below.chain([name.clone()]).collect()
}

/// Returns the name that the daemon derives for its control group: the path with dashes instead of slashes.
fn group_name(data_dir: &Path) -> String {
    data_dir.to_string_lossy().trim_matches('/').replace('/', "-")
}

fn mounts(data_dir: &Path) -> Vec<String> {
    let text = data_dir.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter(|line| line.contains(&text)).map(str::to_owned).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
