//! Network namespaces and what is in them, through the tools of their own projects: `ip` (iproute2) in batch mode and `nft`.
//!
//! Both apply a whole script in one process and say what they refused; a script is all a slot needs, so there is one child
//! per script and no netlink code of ours.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

use crate::process::find_program;

/// Where `ip netns` keeps named namespaces.
const NAMED: &str = "/run/netns";

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tool is not installed.
    #[error("`{program}` was not found: install the package {package}")]
    ProgramMissing {
        /// The tool.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
    /// A tool refused.
    #[error("{program} refused: {reason}")]
    Refused {
        /// The tool.
        program: &'static str,
        /// In its own words.
        reason: String,
    },
    /// The operating system refused.
    #[error("{action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The path of a named namespace.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// The named namespaces that begin with `prefix`.
#[must_use]
pub fn list(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(NAMED).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// The network links of the current namespace that begin with `prefix`.
#[must_use]
pub fn links(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Runs `ip` commands, one a line, in the current namespace; stops at the first that fails. Blocks.
pub fn ip(script: &str) -> Result<(), Error> {
    run("ip", "iproute2", &["-batch", "-"], script).map(drop)
}

/// Applies an nftables script in the current namespace, whole or not at all. Blocks.
pub fn nft(script: &str) -> Result<(), Error> {
    run("nft", "nftables", &["-f", "-"], script).map(drop)
}

/// Whether an nftables table exists in the current namespace. Blocks.
pub fn nft_table_exists(table: &str) -> Result<bool, Error> {
    let tables = run("nft", "nftables", &["list", "tables"], "")?;
    Ok(tables.lines().any(|line| line == format!("table {table}")))
}

/// Runs `work` in a namespace, on a thread of its own that ends with it. Blocks.
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

/// Sets a kernel parameter of the current namespace (sysctl(8), with slashes).
pub fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).map_err(|source| Error::Io { action: "setting", path, source })
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
        // A tool that refuses early closes its input; its words are then in its output.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(io)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Refused { program, reason })
}
