//! What the daemon costs its guest, as the guest's kernel tells.

use anyhow::{Context, Result};

use super::wire::Connection;

/// The daemon is the parent of what it starts.
const STATUS: &str = "cat /proc/$PPID/status";
/// From here on the most memory is counted anew (proc(5), clear_refs).
const FORGET_PEAK: &str = "echo 5 > /proc/$PPID/clear_refs";

/// A look at the daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Resident now, with the program's own pages.
    pub(super) resident_mib: f64,
    /// Resident at most, since the last [`forget_peak`].
    pub(super) peak_mib: f64,
    pub(super) threads: f64,
}

impl Cost {
    pub(super) async fn of(connection: &mut Connection) -> Result<Self> {
        let status = connection.text(Some("root"), &["/bin/sh", "-c", STATUS]).await?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.split_whitespace().next().context("a number")?.parse()?)
        };
        Ok(Self {
            resident_mib: field("VmRSS:")? / 1024.0,
            peak_mib: field("VmHWM:")? / 1024.0,
            threads: field("Threads:")?,
        })
    }
}

pub(super) async fn forget_peak(connection: &mut Connection) -> Result<()> {
    connection.text(Some("root"), &["/bin/sh", "-c", FORGET_PEAK]).await.map(drop)
}
