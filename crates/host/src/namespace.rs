//! Network namespaces and their contents, configured with `ip` (iproute2) in batch mode and `nft`.
//!
//! Each tool applies a whole script in one process and reports what it rejected. A slot needs nothing else, so there is
//! one child process per script and no netlink code.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};

use crate::process::find_program;

/// Directory of the namespaces that `ip netns` names.
const NAMESPACES: &str = "/run/netns";

/// Failure of a network operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{program}` was not found: install the package {package}")]
    ProgramMissing {
        program: &'static str,
        /// Debian's package that contains it.
        package: &'static str,
    },
    /// The tool rejected the script or ended with an error.
    #[error("{program} failed: {reason}")]
    ToolFailed {
        program: &'static str,
        /// Standard error of the tool.
        reason: String,
    },
    /// A system call failed.
    #[error("{action} `{}`", path.display())]
    Io {
        /// Attempted action.
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Returns the path of a named namespace.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(NAMESPACES).join(name)
}

/// Returns the named namespaces whose names begin with `prefix`.
#[must_use]
pub fn list(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Returns the network links of the current namespace whose names begin with `prefix`.
#[must_use]
pub fn links(prefix: &str) -> Vec<String> {
    // Not /sys, which shows the namespace it was mounted in. The table begins with two header lines (proc_pid_net(5)).
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let names = table.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

/// Removes a link of the current namespace. Blocks.
///
/// A link that does not exist is success.
pub fn remove_link(name: &str) -> Result<(), Error> {
    if if_nametoindex(name) == Err(Errno::ENODEV) {
        return Ok(());
    }
    ip(&format!("link del {name}\n"))
}

/// Removes the name of a namespace. The kernel frees the namespace once no process is in it.
///
/// A name that does not exist is success. Opens no descriptor and starts no child process, so a daemon that has run out
/// of both can still call it.
pub fn remove(name: &str) -> Result<(), Error> {
    let path = path(name);
    let failed = |action, source| Error::Io { action, path: path.clone(), source };
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a file that nothing is mounted on, left by an interrupted `ip netns add`.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(failed("unmounting the network namespace", errno.into())),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing the network namespace", error)),
        _ => Ok(()),
    }
}

/// Returns the identity (inode number) of the current namespace.
///
/// Equal numbers mean the same namespace.
pub fn current() -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt;

    let path = PathBuf::from("/proc/thread-self/ns/net");
    match fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.ino()),
        Err(source) => Err(Error::Io { action: "reading", path, source }),
    }
}

/// Returns the links of the current namespace that lead to other networks. Blocks.
///
/// These are the links of default routes and of routes with a gateway, in all routing tables.
pub fn uplinks() -> Result<BTreeSet<String>, Error> {
    let routes = run("ip", "iproute2", &["-oneline", "-4", "route", "show", "table", "all"], "")?;
    Ok(parse_uplinks(&routes))
}

fn parse_uplinks(routes: &str) -> BTreeSet<String> {
    let leads_out = |line: &&str| line.starts_with("default ") || line.split_whitespace().any(|word| word == "via");
    let links = routes.lines().filter(leads_out).flat_map(|line| {
        let words = line.split_whitespace();
        // A route may have several next hops.
        words.clone().zip(words.skip(1)).filter(|(key, _)| *key == "dev").map(|(_, name)| name.to_owned())
    });
    links.filter(|name| name != "lo").collect()
}

/// Runs `ip` commands, one per line, in the current namespace. Blocks.
///
/// Stops at the first command that fails; those before it stay applied.
pub fn ip(script: &str) -> Result<(), Error> {
    run("ip", "iproute2", &["-batch", "-"], script).map(drop)
}

/// Applies an nftables script in the current namespace as one transaction. Blocks.
pub fn nft(script: &str) -> Result<(), Error> {
    run("nft", "nftables", &["-f", "-"], script).map(drop)
}

/// Returns true if an nftables table exists in the current namespace. Blocks.
///
/// `table` is the family and the name, separated by a space.
pub fn nft_table_exists(table: &str) -> Result<bool, Error> {
    Ok(nft_tables()?.iter().any(|name| name == table))
}

/// Returns the nftables tables of the current namespace, with their families. Blocks.
pub fn nft_tables() -> Result<Vec<String>, Error> {
    let tables = run("nft", "nftables", &["list", "tables"], "")?;
    Ok(tables.lines().filter_map(|line| line.strip_prefix("table ")).map(str::to_owned).collect())
}

/// Runs `work` in a namespace, on a dedicated thread. Blocks until the thread has ended.
pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let error = |action| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    let namespace = File::open(path).map_err(error("opening the network namespace"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| error("entering the network namespace")(errno.into()))?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sets a kernel parameter of the current namespace. `name` uses slashes (sysctl(8)).
pub fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).map_err(|source| Error::Io { action: "setting", path, source })
}

/// Returns true if this kernel has the parameter.
#[must_use]
pub fn has_sysctl(name: &str) -> bool {
    Path::new("/proc/sys").join(name).exists()
}

/// Reads a kernel parameter of the current namespace.
pub fn read_sysctl(name: &str) -> Result<String, Error> {
    let path = Path::new("/proc/sys").join(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim().to_owned()),
        Err(source) => Err(Error::Io { action: "reading", path, source }),
    }
}

fn run(program: &'static str, package: &'static str, args: &[&str], script: &str) -> Result<String, Error> {
    let path = find_program(OsStr::new(program)).ok_or(Error::ProgramMissing { program, package })?;
    let io = |source| Error::Io { action: "running", path: path.clone(), source };
    let mut child = Command::new(&path)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that rejects its input early closes the pipe; the reason is then on its standard error.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(io)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::ToolFailed { program, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplinks_are_links_of_default_routes_and_gateways() {
        let routes = "default via 192.0.2.1 dev eth0 proto dhcp metric 100 \n\
             default dev wg0 table 51820 scope link \n\
             0.0.0.0/1 via 10.8.0.1 dev tun0 \n\
             default proto static \\ nexthop via 192.0.2.1 dev eth1 weight 1 \\ nexthop via 192.0.2.2 dev eth2 weight 1 \n\
             172.17.0.0/16 dev docker0 proto kernel scope link src 172.17.0.1 \n\
             local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1 \n\
             unreachable default metric 5\n";
        let links: Vec<String> = parse_uplinks(routes).into_iter().collect();
        assert_eq!(links, ["eth0", "eth1", "eth2", "tun0", "wg0"]);
    }

    #[test]
    fn removing_a_missing_namespace_succeeds() {
        remove("hearth-test-none").expect("removes");
    }
}
