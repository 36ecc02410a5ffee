//! `GET /metrics`: resource usage of the guest.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::State as Extract;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::json;

use crate::sys;

/// CPU time at the last sample; usage is reported since then.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    last: Mutex<Option<CpuTime>>,
}

/// CPU ticks since boot (proc_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTime {
    busy: u64,
    total: u64,
}

pub(crate) async fn metrics(Extract(meter): Extract<Arc<Meter>>) -> Response {
    match sample(&meter) {
        Some(value) => ([(header::CACHE_CONTROL, "no-store")], Json(value)).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn sample(meter: &Meter) -> Option<serde_json::Value> {
    let now = cpu_time(&fs::read_to_string("/proc/stat").ok()?)?;
    let before = meter.last.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let total = memory_bytes(&memory, "MemTotal")?;
    let used = total.saturating_sub(memory_bytes(&memory, "MemAvailable")?);
    let cache = memory_bytes(&memory, "Cached")? + memory_bytes(&memory, "SReclaimable").unwrap_or(0);
    let disk = rustix::fs::statvfs("/").ok()?;
    let disk_total = disk.f_blocks * disk.f_frsize;
    Some(json!({
        "ts": jiff::Timestamp::now().as_second(),
        "cpu_count": sys::cpus(),
        "cpu_used_pct": percent(before, now),
        "mem_total": total,
        "mem_used": used,
        "mem_cache": cache,
        "mem_total_mib": total >> 20,
        "mem_used_mib": used >> 20,
        "disk_total": disk_total,
        "disk_used": disk_total.saturating_sub(disk.f_bavail * disk.f_frsize),
    }))
}

/// Returns the guest's memory in bytes.
pub(crate) fn memory_total() -> Option<u64> {
    memory_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// Returns the busy share between two samples in percent, with two decimals.
#[allow(clippy::cast_precision_loss)]
fn percent(before: Option<CpuTime>, now: CpuTime) -> f64 {
    let before = before.unwrap_or(CpuTime { busy: 0, total: 0 });
    let total = now.total.saturating_sub(before.total);
    if total == 0 {
        return 0.0;
    }
    let busy = now.busy.saturating_sub(before.busy);
    (busy as f64 / total as f64 * 10_000.0).round().clamp(0.0, 10_000.0) / 100.0
}

fn cpu_time(stat: &str) -> Option<CpuTime> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let total: u64 = ticks.iter().sum();
    // Fields 4 and 5 are the idle time and the time waiting for I/O.
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some(CpuTime { busy: total - idle, total })
}

fn memory_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_usage_covers_the_time_since_the_last_sample() {
        let first = cpu_time("cpu  100 0 100 700 100 0 0 0 0 0\n").expect("valid");
        let second = cpu_time("cpu  150 0 150 800 100 0 0 0 0 0\n").expect("valid");
        assert!((percent(Some(first), second) - 50.0).abs() < 0.001);
        assert!((percent(Some(second), second)).abs() < 0.001);
        assert_eq!(cpu_time("nonsense"), None);
    }

    #[test]
    fn this_machine_has_metrics() {
        let sample = sample(&Meter::default()).expect("read /proc");
        assert!(sample["mem_total"].as_u64() > sample["mem_used"].as_u64());
        assert!(sample["cpu_count"].as_u64() >= Some(1));
    }
}
