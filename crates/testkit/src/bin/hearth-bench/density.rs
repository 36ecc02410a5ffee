//! Memory and CPU of idle sandboxes, and of the daemon that runs them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use hearth_sdk::{NewSandbox, Sandbox};
use hearth_testkit::Instance;

use crate::Rounds;
use crate::report::{Goal, Report};

/// Creates in flight while filling up.
const IN_FLIGHT: usize = 10;
/// Goal for the daemon's memory.
const DAEMON_MIB_MAX: f64 = 80.0;
/// Time without requests after which sandboxes count as idle.
const SETTLE: Duration = Duration::from_secs(3);

/// Measures idle sandboxes.
pub(crate) async fn idle(report: &mut Report, instance: &Instance, rounds: Rounds) -> Result<()> {
    let daemon = instance.pid().context("the daemon has exited")?;
    report.plain("daemon memory, idle", "MiB", resident_mib(daemon)?, Some(Goal::Below(DAEMON_MIB_MAX)));
    let client = instance.client();
    let count = rounds.idle_sandboxes;
    let mut sandboxes: Vec<Sandbox> = Vec::with_capacity(count);
    while sandboxes.len() < count {
        let more = IN_FLIGHT.min(count - sandboxes.len());
        let new = NewSandbox { timeout_seconds: Some(600), ..NewSandbox::of("base") };
        sandboxes.extend(try_join_all((0..more).map(|_| client.create(&new))).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let vms = vmm_processes(instance);
    anyhow::ensure!(vms.len() == count, "{} VMMs for {count} sandboxes", vms.len());
    let name = format!("daemon memory, {count} sandboxes");
    report.plain(&name, "MiB", resident_mib(daemon)?, None);
    let own: f64 = vms.iter().map(|pid| proportional_mib(*pid, "Pss_Anon:")).sum::<Result<f64>>()?;
    let all: f64 = vms.iter().map(|pid| proportional_mib(*pid, "Pss:")).sum::<Result<f64>>()?;
    let per = f64::from(u32::try_from(count)?);
    report.plain("memory per idle sandbox beyond the shared image (PSS)", "MiB", own / per, None);
    report.plain("memory per idle sandbox, with its share of the image (PSS)", "MiB", all / per, None);
    let percent = cpu_percent(instance, count, rounds.idle_seconds).await?;
    report.plain("CPU per idle sandbox", "% of a core", percent, None);
    for sandbox in sandboxes {
        sandbox.kill().await?;
    }
    Ok(())
}

/// Measures the processor time per sandbox of an instance that has `count` sandboxes, in percent of a core.
pub(crate) async fn cpu_percent(instance: &Instance, count: usize, seconds: u64) -> Result<f64> {
    let vms = vmm_processes(instance);
    anyhow::ensure!(vms.len() == count, "{} VMMs for {count} sandboxes", vms.len());
    let before: u64 = vms.iter().map(|pid| ticks(*pid)).sum::<Result<u64>>()?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let spent = vms.iter().map(|pid| ticks(*pid)).sum::<Result<u64>>()? - before;
    let spent = f64::from(u32::try_from(spent)?) / ticks_per_second();
    Ok(spent / f64::from(u32::try_from(seconds)?) / f64::from(u32::try_from(count)?) * 100.0)
}

fn vmm_processes(instance: &Instance) -> Vec<u32> {
    let processes = instance.leftovers().processes;
    processes.iter().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

fn resident_mib(pid: u32) -> Result<f64> {
    field_mib(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Reads a proportional set size: a page shared by n processes counts as an nth (proc(5), smaps_rollup).
fn proportional_mib(pid: u32, field: &str) -> Result<f64> {
    field_mib(&format!("/proc/{pid}/smaps_rollup"), field)
}

fn field_mib(path: &str, field: &str) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field} in {path}"))?;
    let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

/// Reads user plus system time of a process, in clock ticks (proc(5), stat: fields 14 and 15).
///
/// The fields are counted after the name in parentheses, which may have spaces.
fn ticks(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').context("no name in parentheses")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Ok(fields.get(11).context("no user time")?.parse::<u64>()?
        + fields.get(12).context("no system time")?.parse::<u64>()?)
}

fn ticks_per_second() -> f64 {
    f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100))
}
