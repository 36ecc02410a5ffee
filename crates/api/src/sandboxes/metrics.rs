//! `GET /sandboxes/{sandboxID}/metrics` and `GET /sandboxes/metrics`: resource usage of sandboxes.
//!
//! As with logs, the handlers do not check that the sandbox exists: samples outlive it, and each team reads only its own.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use hearth_analytics::{Sample, SampleQuery, step_of};
use hearth_api_types::metrics::{MetricsQuery, SandboxMetric, SandboxesMetrics, sandbox_ids};
use hearth_types::SandboxId;
use jiff::Timestamp;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::UnbannedTeam;
use crate::http::document::tag;
use crate::http::path::SandboxPath;

/// Read the resource usage of a sandbox over time
///
/// Sorted by time, oldest first. Samples outlive their sandbox. For an unknown sandbox the list is empty.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/metrics", tag = tag::SANDBOXES, operation_id = "getSandboxMetrics",
    params(SandboxPath, MetricsQuery),
    responses((status = 200, description = "Samples of the sandbox.", body = Vec<SandboxMetric>))
)]
pub(crate) async fn of_one(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    SandboxPath(sandbox_id): SandboxPath,
    RawQuery(text): RawQuery,
) -> Result<Json<Vec<SandboxMetric>>, Failure> {
    let query = MetricsQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let MetricsQuery { start, end } = query;
    // Without a start the query covers the whole lifetime of the sandbox, whose length is unknown here.
    let step = start.map(|start| step_of(duration_between(start, end.unwrap_or_else(Timestamp::now))));
    let query = SampleQuery { from: start, until: end.map(exclusive_end), step };
    let samples = control.samples.range(team.id, &sandbox_id, &query).await;
    let samples = samples.map_err(|error| Failure::internal("reading samples of a sandbox", &error))?;
    Ok(Json(samples.into_iter().map(sample_to_wire).collect()))
}

/// Read the latest resource usage of several sandboxes
#[utoipa::path(
    get, path = "/sandboxes/metrics", tag = tag::SANDBOXES, operation_id = "getSandboxesMetrics",
    params((
        "sandbox_ids" = Vec<String>, Query, style = Form, explode = false, min_items = 1, max_items = 100,
        description = "Ids of the sandboxes, without duplicates."
    )),
    responses((status = 200, description = "Latest sample of each sandbox that has one.", body = SandboxesMetrics))
)]
pub(crate) async fn of_several(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    RawQuery(text): RawQuery,
) -> Result<Json<SandboxesMetrics>, Failure> {
    let ids = sandbox_ids(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let ids = ids.iter().map(|id| id.parse()).collect::<Result<Vec<SandboxId>, _>>();
    let ids = ids.map_err(|_| Failure::bad_request("invalid sandbox ID"))?;
    let latest = control.samples.latest(team.id, &ids).await;
    let latest = latest.map_err(|error| Failure::internal("reading samples of sandboxes", &error))?;
    let sandboxes = latest.into_iter().map(|(id, sample)| (id.to_string(), sample_to_wire(sample))).collect();
    Ok(Json(SandboxesMetrics { sandboxes }))
}

/// Converts an inclusive end to an exclusive one, at the precision of microseconds.
pub(crate) fn exclusive_end(end: Timestamp) -> Timestamp {
    end.checked_add(Duration::from_micros(1)).unwrap_or(Timestamp::MAX)
}

/// Returns the duration from `start` to `end`, or zero if `end` is earlier.
pub(crate) fn duration_between(start: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(start)).unwrap_or_default()
}

fn sample_to_wire(sample: Sample) -> SandboxMetric {
    let Sample { at, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used } = sample;
    SandboxMetric {
        timestamp: at,
        timestamp_unix: at.as_second(),
        cpu_count,
        // Two decimals, as the guest daemon rounds.
        cpu_used_pct: (cpu_used_pct * 100.0).round() / 100.0,
        mem_used,
        mem_total,
        mem_cache,
        disk_used,
        disk_total,
    }
}
