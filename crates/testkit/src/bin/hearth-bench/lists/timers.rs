//! CPU time of waiting for many expiries, and their precision.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use http::Method;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::{CREATING_MAX, Control};
use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};

/// Time without requests during which CPU time is measured.
const QUIET: Duration = Duration::from_secs(10);
/// Timeout of the expiring sandboxes.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Clients of the contract check after one second that a sandbox is deleted.
const LATE_MS_MAX: f64 = 1000.0;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn measure(report: &mut Report, control: &Control, expiring: &[String], running: usize) -> Result<()> {
    let before = processor_time();
    tokio::time::sleep(QUIET).await;
    let share = (processor_time() - before).as_secs_f64() / QUIET.as_secs_f64() * 100.0;
    report.plain(&format!("CPU of an idle control role with {running} sandboxes"), "%", share, None);
    let due: Vec<(&String, Instant)> = stream::iter(expiring)
        .map(|id| async move {
            control.request(Method::POST, &format!("/sandboxes/{id}/timeout"), r#"{"timeout":3}"#).await?;
            // The server set the end time a little earlier, so the measured delay is a lower bound.
            anyhow::Ok((id, Instant::now() + TIMEOUT))
        })
        .buffer_unordered(CREATING_MAX)
        .try_collect()
        .await?;
    let deadline = Instant::now() + PATIENCE;
    let mut late = Vec::new();
    for (id, due) in due {
        let deleted = loop {
            match control.node.deleted_at(id) {
                Some(deleted) => break deleted,
                None => {
                    ensure!(Instant::now() < deadline, "a sandbox does not expire");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        late.push(deleted.saturating_duration_since(due));
    }
    let late = milliseconds(Percentiles::of(late).p99);
    let name = format!("{} of {running} sandboxes expire together: delay, p99", expiring.len());
    report.plain(&name, "ms", late, Some(Goal::AtMost(LATE_MS_MAX)));
    Ok(())
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
