//! `hearth restart`: restarts the daemon of a data directory in place, with the binary on disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::layout::Layout;
use crate::setup;

/// Time limit. A daemon stops within ten seconds and starts within a few, unless the new program must prepare a
/// template.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Requests the restart, waits until the daemon serves again, and prints the duration.
pub(crate) fn run(layout: &Layout) -> Result<()> {
    let pid = setup::running_daemon(layout)?.with_context(|| {
        format!("no daemon runs on {}: start it with `hearth up`, or pass its --data-dir", layout.root().display())
    })?;
    let endpoints = layout.endpoints();
    let before = file_version(&endpoints);
    if before.is_none() {
        bail!("the daemon (process {pid}) is still starting");
    }
    let since = Instant::now();
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process ID")?;
    kill_process(process, Signal::USR2).with_context(|| format!("sending SIGUSR2 to process {pid}"))?;
    while since.elapsed() < RESTART_TIMEOUT {
        std::thread::sleep(POLL_INTERVAL);
        if file_version(&endpoints).is_some_and(|now| Some(now) != before) {
            println!("Restarted in {:.1} s, process {pid}.", since.elapsed().as_secs_f64());
            return Ok(());
        }
        if !Path::new("/proc").join(pid.to_string()).exists() {
            bail!("the daemon exited instead of restarting: read its log for the cause, and start it with `hearth up`");
        }
    }
    bail!("the daemon does not serve after {RESTART_TIMEOUT:?}: read its log, it may have refused the restart")
}

/// Identifies one version of the file: changes each time it is replaced.
fn file_version(path: &Path) -> Option<(u64, i64, i64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
