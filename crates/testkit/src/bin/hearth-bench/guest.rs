//! The guest's daemon alone: in a real microVM, spoken to straight through its tap, without API, edge and proxies.
//!
//! The bounds are measured in the same guest: programs that Python starts there, and plain TCP through the same tap.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_types::guest::DAEMON_PORT;

use crate::bare::Bare;
use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};

mod daemon;
mod flood;
mod raw;
mod start;
mod wire;

use daemon::{Cost, forget_peak};
use raw::Raw;
use wire::Connection;

/// How much is measured of the daemon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amounts {
    /// Commands of each kind.
    pub(crate) commands: usize,
    /// Starts of the daemon.
    pub(crate) starts: usize,
    /// Size of outputs and files.
    pub(crate) transfer_mib: usize,
    pub(crate) events: usize,
}

/// The daemon's memory when it does nothing, as promised.
const IDLE_MIB_MAX: f64 = 8.0;
/// What much output may cost afterwards: nothing but what the allocator keeps of a follower's queue (64 pieces of 32 KiB).
const GROWTH_MIB_MAX: f64 = 2.0;
/// Streams that are open at once.
const STREAMS: usize = 100;
/// Commands before the bound has its turn.
const TURN: usize = 20;
/// After this long the daemon has ended threads that have nothing to do.
const SETTLE: Duration = Duration::from_secs(3);
/// The numbers of these VMs; other sections have lower ones.
const FIRST_VM: usize = 10_000;
/// On the guest's disk, where uploads are.
const FILE: &str = "/tmp/transfer";

/// Starts a program again and again, as cheaply as can be: `posix_spawn` (vfork and exec) and a wait. Prints nanoseconds.
const SPAWN: &str = r"
import os, sys, time
for _ in range(int(sys.argv[1])):
    begin = time.monotonic_ns()
    os.waitpid(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
    print(time.monotonic_ns() - begin)
";

/// A guest and how to reach it.
struct Guest {
    address: IpAddr,
}

impl Guest {
    async fn connect(&self) -> Result<Connection> {
        Connection::open(SocketAddr::new(self.address, DAEMON_PORT)).await
    }
}

/// Everything about the daemon.
pub(crate) async fn measure(report: &mut Report, bare: &Bare, program: &Path, amounts: Amounts) -> Result<()> {
    start::measure(report, program, amounts.starts).await?;
    // Each with a guest of its own: what one leaves in the daemon's memory is not the next one's.
    alone(bare, 0, async |guest| {
        streams(report, guest).await?;
        commands(report, guest, amounts.commands).await
    })
    .await?;
    alone(bare, 1, async |guest| output(report, guest, amounts.transfer_mib).await).await?;
    alone(bare, 2, async |guest| files(report, guest, amounts.transfer_mib).await).await?;
    alone(bare, 3, async |guest| flood::measure(report, guest, amounts.events).await).await
}

/// Works with a guest that was just restored and is gone afterwards, however the work ends.
async fn alone(bare: &Bare, number: usize, work: impl AsyncFnOnce(&Guest) -> Result<()>) -> Result<()> {
    let (vm, _) = bare.restore(FIRST_VM + number).await?;
    let worked = work(&Guest { address: vm.address() }).await;
    bare.discard(vm).await;
    worked
}

/// Memory and threads, idle and with many silent streams.
async fn streams(report: &mut Report, guest: &Guest) -> Result<()> {
    let mut asking = guest.connect().await?;
    tokio::time::sleep(SETTLE).await;
    let idle = Cost::of(&mut asking).await?;
    let goal = Some(Goal::AtMost(IDLE_MIB_MAX));
    report.plain("guest daemon: memory, idle", "MiB", idle.resident_mib, goal);
    report.plain("guest daemon: threads, idle", "", idle.threads, None);
    let mut open = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        let mut connection = guest.connect().await?;
        let mut messages = connection.start(None, &["sleep", "1000"]).await?;
        messages.next().await?.context("a start")?;
        open.push((connection, messages));
    }
    tokio::time::sleep(SETTLE).await;
    let busy = Cost::of(&mut asking).await?;
    report.plain(&format!("guest daemon: memory, {STREAMS} open streams"), "MiB", busy.resident_mib, None);
    report.plain(&format!("guest daemon: threads, {STREAMS} open streams"), "", busy.threads, None);
    drop(open);
    asking.text(Some("root"), &["pkill", "sleep"]).await?;
    Ok(())
}

/// Round trips of commands that do nothing.
async fn commands(report: &mut Report, guest: &Guest, count: usize) -> Result<()> {
    let mut connection = guest.connect().await?;
    for (name, command) in [("/bin/true", &["/bin/true"][..]), ("bash -l -c true", &["/bin/bash", "-l", "-c", "true"])]
    {
        let (mut ours, mut bounds) = (Vec::new(), Vec::new());
        while ours.len() < count {
            let turn = TURN.min(count - ours.len());
            for _ in 0..turn {
                let start = Instant::now();
                connection.start(None, command).await?.drain().await?;
                ours.push(start.elapsed());
            }
            let turn = turn.to_string();
            let spawning = [&["python3", "-c", SPAWN, &turn], command].concat();
            for line in connection.text(None, &spawning).await?.lines() {
                bounds.push(Duration::from_nanos(line.parse()?));
            }
        }
        let (ours, bounds) = (Percentiles::of(ours), Percentiles::of(bounds));
        for (percentile, ours, bound) in
            [("p50", ours.p50, bounds.p50), ("p95", ours.p95, bounds.p95), ("p99", ours.p99, bounds.p99)]
        {
            let name = format!("guest daemon: `{name}`, {percentile} (bound: spawned in the guest)");
            report.bounded(&name, "ms", milliseconds(ours), milliseconds(bound), None);
        }
    }
    Ok(())
}

/// What one command prints, and what it leaves in the daemon's memory.
async fn output(report: &mut Report, guest: &Guest, size_mib: usize) -> Result<()> {
    let raw = Raw::open(guest.connect().await?, guest.address).await?;
    let mut connection = guest.connect().await?;
    let bytes = size_mib << 20;
    let bound = raw.download(bytes).await?;
    let before = quiet_cost(&mut connection).await?;
    let start = Instant::now();
    let printed = connection.start(None, &["head", "-c", &bytes.to_string(), "/dev/zero"]).await?.drain().await?;
    let took = start.elapsed();
    ensure!(printed == bytes, "{printed} of {bytes} bytes came");
    let name = format!("guest daemon: {size_mib} MiB of command output (bound: raw TCP)");
    report.bounded(&name, "MB/s", rate(bytes, took), rate(bytes, bound), None);
    told_growth(report, &mut connection, "command output", before).await?;
    // What a pipe between two programs of this guest carries: output comes through one first.
    let start = Instant::now();
    connection.text(None, &["/bin/sh", "-c", &format!("head -c {bytes} /dev/zero | cat > /dev/null")]).await?;
    report.plain("guest pipe, `head` to `cat`", "MB/s", rate(bytes, start.elapsed()), None);
    Ok(())
}

/// A file up and down.
async fn files(report: &mut Report, guest: &Guest, size_mib: usize) -> Result<()> {
    let raw = Raw::open(guest.connect().await?, guest.address).await?;
    let mut connection = guest.connect().await?;
    let bytes = size_mib << 20;
    let (up_bound, down_bound) = (raw.upload(bytes).await?, raw.download(bytes).await?);
    let before = quiet_cost(&mut connection).await?;
    let start = Instant::now();
    connection.upload(FILE, bytes).await?;
    let up = start.elapsed();
    let start = Instant::now();
    let read = connection.download(FILE).await?;
    let down = start.elapsed();
    ensure!(read == bytes, "{read} of {bytes} bytes came back");
    for (name, ours, bound) in [("upload", up, up_bound), ("download", down, down_bound)] {
        let name = format!("guest daemon: {name} of {size_mib} MiB (bound: raw TCP)");
        report.bounded(&name, "MB/s", rate(bytes, ours), rate(bytes, bound), None);
    }
    told_growth(report, &mut connection, "transfers", before).await?;
    // What the guest's own programs get of the same disk: transfers end there.
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

/// What the daemon costs when it has had time to settle; its peak counts from here.
async fn quiet_cost(connection: &mut Connection) -> Result<Cost> {
    tokio::time::sleep(SETTLE).await;
    forget_peak(connection).await?;
    Cost::of(connection).await
}

async fn told_growth(report: &mut Report, connection: &mut Connection, what: &str, before: Cost) -> Result<()> {
    let peak_mib = Cost::of(connection).await?.peak_mib;
    tokio::time::sleep(SETTLE).await;
    let after = Cost::of(connection).await?.resident_mib;
    report.plain(&format!("guest daemon: memory before {what}"), "MiB", before.resident_mib, None);
    report.plain(&format!("guest daemon: memory at most during {what}"), "MiB", peak_mib, None);
    let growth = after - before.resident_mib;
    report.plain(&format!("guest daemon: growth by {what}"), "MiB", growth, Some(Goal::AtMost(GROWTH_MIB_MAX)));
    Ok(())
}

fn rate(bytes: usize, took: Duration) -> f64 {
    mib(bytes) * f64::from(1 << 20) / 1e6 / took.as_secs_f64()
}

/// Whole KiB are exact enough.
fn mib(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}
