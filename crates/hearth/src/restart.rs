//! `hearth restart`: has the daemon of a data directory start again, as the program that is on the disk now.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::layout::Layout;
use crate::setup;

/// A daemon stops within ten seconds and starts within a few, unless the new program has a template to prepare.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Returns when the daemon serves again, and says how long that took.
pub(crate) fn run(layout: &Layout) -> Result<()> {
    let pid = setup::daemon(layout)?.with_context(|| {
        format!("no hearth works in {}: start it with `hearth up`, or name its --data-dir", layout.root().display())
    })?;
    let endpoints = layout.endpoints();
    let before = edition(&endpoints);
    if before.is_none() {
        bail!("hearth, process {pid}, does not serve yet");
    }
    let since = Instant::now();
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a number of a process")?;
    kill_process(process, Signal::USR2).with_context(|| format!("telling process {pid} to restart"))?;
    while since.elapsed() < PATIENCE {
        std::thread::sleep(POLL);
        if edition(&endpoints).is_some_and(|now| Some(now) != before) {
            println!("Restarted in {:.1} s, process {pid}.", since.elapsed().as_secs_f64());
            return Ok(());
        }
        if !Path::new("/proc").join(pid.to_string()).exists() {
            bail!("the daemon ended instead of starting again: its log says why; start it with `hearth up`");
        }
    }
    bail!("the daemon does not serve again after {PATIENCE:?}: its log says why, also if it did not want to restart")
}

/// Differs for each time that the file was written.
fn edition(path: &Path) -> Option<(u64, i64, i64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
