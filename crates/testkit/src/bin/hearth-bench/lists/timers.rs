//! What it costs to wait for the end of many sandboxes, and how exact the ends are.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use http::Method;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::{CREATING_MAX, Control};
use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};

/// How long nothing happens.
const QUIET: Duration = Duration::from_secs(10);
/// What the expiring ones are given.
const TIMEOUT: Duration = Duration::from_secs(3);
/// After a second clients of the contract look whether a sandbox is gone.
const LATE_MS_MAX: f64 = 1000.0;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn measure(report: &mut Report, control: &Control, expiring: &[String], known: usize) -> Result<()> {
    let before = processor_time();
    tokio::time::sleep(QUIET).await;
    let share = (processor_time() - before).as_secs_f64() / QUIET.as_secs_f64() * 100.0;
    report.plain(&format!("processor of a control role that waits for {known} sandboxes"), "%", share, None);
    let due: Vec<(&String, Instant)> = stream::iter(expiring)
        .map(|id| async move {
            control.ask(Method::POST, &format!("/sandboxes/{id}/timeout"), r#"{"timeout":3}"#).await?;
            // It was decided a little earlier, so this is the least that it is late.
            anyhow::Ok((id, Instant::now() + TIMEOUT))
        })
        .buffer_unordered(CREATING_MAX)
        .try_collect()
        .await?;
    let deadline = Instant::now() + PATIENCE;
    let mut late = Vec::new();
    for (id, due) in due {
        let ended = loop {
            match control.node.ended_at(id) {
                Some(ended) => break ended,
                None => {
                    ensure!(Instant::now() < deadline, "a sandbox does not expire");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        late.push(ended.saturating_duration_since(due));
    }
    let late = milliseconds(Percentiles::of(late).p99);
    let name = format!("{} of {known} sandboxes expire at once: late by, p99", expiring.len());
    report.plain(&name, "ms", late, Some(Goal::AtMost(LATE_MS_MAX)));
    Ok(())
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
