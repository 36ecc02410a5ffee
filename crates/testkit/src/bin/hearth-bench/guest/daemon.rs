//! Memory and threads of the guest daemon, as the guest's kernel reports them.

use anyhow::{Context, Result};

use super::wire::Connection;

/// Prints the status of the shell's parent, which is the daemon.
const STATUS: &str = "cat /proc/$PPID/status";
/// Resets the peak of the resident memory (proc(5), clear_refs).
const RESET_PEAK: &str = "echo 5 > /proc/$PPID/clear_refs";

/// Memory and threads of the daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct DaemonUsage {
    /// Includes the pages of the program file.
    pub(super) resident_mib: f64,
    /// Maximum since the last [`reset_peak`].
    pub(super) peak_mib: f64,
    pub(super) threads: f64,
}

impl DaemonUsage {
    pub(super) async fn of(connection: &mut Connection) -> Result<Self> {
        let status = connection.text(Some("root"), &["/bin/sh", "-c", STATUS]).await?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.split_whitespace().next().context("no number")?.parse()?)
        };
        Ok(Self {
            resident_mib: field("VmRSS:")? / 1024.0,
            peak_mib: field("VmHWM:")? / 1024.0,
            threads: field("Threads:")?,
        })
    }
}

pub(super) async fn reset_peak(connection: &mut Connection) -> Result<()> {
    connection.text(Some("root"), &["/bin/sh", "-c", RESET_PEAK]).await.map(drop)
}
