//! The guest daemon alone: in a real microVM, on a direct connection through its tap, without API, edge and proxies.
//!
//! The bounds are measured in the same guest: processes that Python spawns there, and plain TCP through the same tap.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_types::guest::DAEMON_PORT;

use crate::bare::BareDriver;
use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};

mod daemon;
mod flood;
mod raw;
mod start;
mod wire;

use daemon::{DaemonUsage, reset_peak};
use raw::RawTcp;
use wire::Connection;

/// Number and size of the measurements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    /// Commands of each kind.
    pub(crate) commands: usize,
    /// Starts of the daemon.
    pub(crate) starts: usize,
    /// Size of outputs and files.
    pub(crate) transfer_mib: usize,
    pub(crate) events: usize,
}

/// Goal for the memory of the idle daemon.
const IDLE_MIB_MAX: f64 = 8.0;
/// Goal for the growth of the memory after a large output or transfer.
///
/// The allocator may retain the queue of a follower (64 chunks of 32 KiB), and nothing else.
const GROWTH_MIB_MAX: f64 = 2.0;
/// Concurrent open streams.
const STREAMS: usize = 100;
/// Commands in a turn, before the turn of the bound.
const TURN: usize = 20;
/// Time after which the daemon has stopped its idle threads.
const SETTLE: Duration = Duration::from_secs(3);
/// Number of the first VM of this section; the numbers of other sections are lower.
const FIRST_VM: usize = 10_000;
/// On the guest's disk, like uploads of clients.
const FILE: &str = "/tmp/transfer";

/// Python program that spawns a process repeatedly and prints the durations in nanoseconds.
///
/// It uses the cheapest way: `posix_spawn` (vfork and exec) and a wait.
const SPAWN: &str = r"
import os, sys, time
for _ in range(int(sys.argv[1])):
    begin = time.monotonic_ns()
    os.waitpid(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
    print(time.monotonic_ns() - begin)
";

/// Guest of a restored VM.
struct Guest {
    address: IpAddr,
}

impl Guest {
    async fn connect(&self) -> Result<Connection> {
        Connection::open(SocketAddr::new(self.address, DAEMON_PORT)).await
    }
}

/// Measures the daemon.
pub(crate) async fn measure(report: &mut Report, bare: &BareDriver, program: &Path, workload: Workload) -> Result<()> {
    start::measure(report, program, workload.starts).await?;
    // Each series has a new guest, because a series changes the memory usage of the daemon.
    with_new_guest(bare, 0, async |guest| {
        streams(report, guest).await?;
        commands(report, guest, workload.commands).await
    })
    .await?;
    with_new_guest(bare, 1, async |guest| output(report, guest, workload.transfer_mib).await).await?;
    with_new_guest(bare, 2, async |guest| files(report, guest, workload.transfer_mib).await).await?;
    with_new_guest(bare, 3, async |guest| flood::measure(report, guest, workload.events).await).await
}

/// Calls `work` with a newly restored guest, and discards the guest even if the work fails.
async fn with_new_guest(bare: &BareDriver, number: usize, work: impl AsyncFnOnce(&Guest) -> Result<()>) -> Result<()> {
    let (vm, _) = bare.restore(FIRST_VM + number).await?;
    let worked = work(&Guest { address: vm.address() }).await;
    bare.discard(vm).await;
    worked
}

/// Measures memory and threads: idle, and with many streams without data.
async fn streams(report: &mut Report, guest: &Guest) -> Result<()> {
    let mut control = guest.connect().await?;
    tokio::time::sleep(SETTLE).await;
    let idle = DaemonUsage::of(&mut control).await?;
    let goal = Some(Goal::AtMost(IDLE_MIB_MAX));
    report.plain("guest daemon: memory, idle", "MiB", idle.resident_mib, goal);
    report.plain("guest daemon: threads, idle", "", idle.threads, None);
    let mut open = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        let mut connection = guest.connect().await?;
        let mut messages = connection.start(None, &["sleep", "1000"]).await?;
        messages.next().await?.context("no start event")?;
        open.push((connection, messages));
    }
    tokio::time::sleep(SETTLE).await;
    let busy = DaemonUsage::of(&mut control).await?;
    report.plain(&format!("guest daemon: memory, {STREAMS} open streams"), "MiB", busy.resident_mib, None);
    report.plain(&format!("guest daemon: threads, {STREAMS} open streams"), "", busy.threads, None);
    drop(open);
    control.text(Some("root"), &["pkill", "sleep"]).await?;
    Ok(())
}

/// Measures round trips of commands that do nothing.
async fn commands(report: &mut Report, guest: &Guest, count: usize) -> Result<()> {
    let mut connection = guest.connect().await?;
    for (name, command) in [("/bin/true", &["/bin/true"][..]), ("bash -l -c true", &["/bin/bash", "-l", "-c", "true"])]
    {
        let (mut measured, mut bounds) = (Vec::new(), Vec::new());
        while measured.len() < count {
            let turn = TURN.min(count - measured.len());
            for _ in 0..turn {
                let start = Instant::now();
                connection.start(None, command).await?.drain().await?;
                measured.push(start.elapsed());
            }
            let turn = turn.to_string();
            let spawning = [&["python3", "-c", SPAWN, &turn], command].concat();
            for line in connection.text(None, &spawning).await?.lines() {
                bounds.push(Duration::from_nanos(line.parse()?));
            }
        }
        let (measured, bounds) = (Percentiles::of(measured), Percentiles::of(bounds));
        for (percentile, measured, bound) in
            [("p50", measured.p50, bounds.p50), ("p95", measured.p95, bounds.p95), ("p99", measured.p99, bounds.p99)]
        {
            let name = format!("guest daemon: `{name}`, {percentile} (bound: spawned in the guest)");
            report.bounded(&name, "ms", milliseconds(measured), milliseconds(bound), None);
        }
    }
    Ok(())
}

/// Measures the output of one command, and the growth of the daemon's memory.
async fn output(report: &mut Report, guest: &Guest, size_mib: usize) -> Result<()> {
    let raw = RawTcp::open(guest.connect().await?, guest.address).await?;
    let mut connection = guest.connect().await?;
    let bytes = size_mib << 20;
    let bound = raw.download(bytes).await?;
    let before = idle_usage(&mut connection).await?;
    let start = Instant::now();
    let printed = connection.start(None, &["head", "-c", &bytes.to_string(), "/dev/zero"]).await?.drain().await?;
    let took = start.elapsed();
    ensure!(printed == bytes, "{printed} of {bytes} bytes received");
    let name = format!("guest daemon: {size_mib} MiB of command output (bound: raw TCP)");
    report.bounded(&name, "MB/s", rate(bytes, took), rate(bytes, bound), None);
    report_growth(report, &mut connection, "command output", before).await?;
    // The throughput of a pipe in this guest, for comparison: output passes through one.
    let start = Instant::now();
    connection.text(None, &["/bin/sh", "-c", &format!("head -c {bytes} /dev/zero | cat > /dev/null")]).await?;
    report.plain("guest pipe, `head` to `cat`", "MB/s", rate(bytes, start.elapsed()), None);
    Ok(())
}

/// Measures upload and download of a file.
async fn files(report: &mut Report, guest: &Guest, size_mib: usize) -> Result<()> {
    let raw = RawTcp::open(guest.connect().await?, guest.address).await?;
    let mut connection = guest.connect().await?;
    let bytes = size_mib << 20;
    let (up_bound, down_bound) = (raw.upload(bytes).await?, raw.download(bytes).await?);
    let before = idle_usage(&mut connection).await?;
    let start = Instant::now();
    connection.upload(FILE, bytes).await?;
    let up = start.elapsed();
    let start = Instant::now();
    let read = connection.download(FILE).await?;
    let down = start.elapsed();
    ensure!(read == bytes, "{read} of {bytes} bytes received");
    for (name, measured, bound) in [("upload", up, up_bound), ("download", down, down_bound)] {
        let name = format!("guest daemon: {name} of {size_mib} MiB (bound: raw TCP)");
        report.bounded(&name, "MB/s", rate(bytes, measured), rate(bytes, bound), None);
    }
    report_growth(report, &mut connection, "transfers", before).await?;
    // The throughput of the same disk for programs in the guest, for comparison: transfers use it.
    let (input, output, count) = (format!("if={FILE}"), format!("of={FILE}"), format!("count={size_mib}"));
    let written = ["dd", "status=none", "bs=1M", "if=/dev/zero", &output, &count];
    let read = ["dd", "status=none", "bs=1M", &input, "of=/dev/null"];
    for (name, command) in [("written", &written[..]), ("read", &read)] {
        let start = Instant::now();
        connection.text(Some("root"), command).await?;
        report.plain(&format!("guest disk, {name} by `dd`"), "MB/s", rate(bytes, start.elapsed()), None);
    }
    Ok(())
}

/// Returns the usage of the idle daemon, and resets its peak.
async fn idle_usage(connection: &mut Connection) -> Result<DaemonUsage> {
    tokio::time::sleep(SETTLE).await;
    reset_peak(connection).await?;
    DaemonUsage::of(connection).await
}

async fn report_growth(
    report: &mut Report,
    connection: &mut Connection,
    what: &str,
    before: DaemonUsage,
) -> Result<()> {
    let peak_mib = DaemonUsage::of(connection).await?.peak_mib;
    tokio::time::sleep(SETTLE).await;
    let after = DaemonUsage::of(connection).await?.resident_mib;
    report.plain(&format!("guest daemon: memory before {what}"), "MiB", before.resident_mib, None);
    report.plain(&format!("guest daemon: memory at most during {what}"), "MiB", peak_mib, None);
    let growth = after - before.resident_mib;
    report.plain(&format!("guest daemon: growth by {what}"), "MiB", growth, Some(Goal::AtMost(GROWTH_MIB_MAX)));
    Ok(())
}

fn rate(bytes: usize, took: Duration) -> f64 {
    mib(bytes) * f64::from(1 << 20) / 1e6 / took.as_secs_f64()
}

/// Converts bytes to MiB, at the precision of KiB.
fn mib(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}
