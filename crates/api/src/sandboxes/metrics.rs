//! `GET /sandboxes/{sandboxID}/metrics` and `GET /sandboxes/metrics`: what sandboxes use.
//!
//! As with their logs, nobody asks whether there is such a sandbox: samples outlive it, and each team sees its own.

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
use crate::http::auth::Reader;
use crate::http::document::tag;
use crate::http::path::SandboxPath;

/// Read what a sandbox used in a stretch of time, oldest first
///
/// Samples outlive their sandbox. There are none for one that is unknown.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/metrics", tag = tag::SANDBOXES, operation_id = "getSandboxMetrics",
    params(SandboxPath, MetricsQuery),
    responses((status = 200, description = "What it used.", body = Vec<SandboxMetric>))
)]
pub(crate) async fn of_one(
    State(control): State<Arc<Control>>,
    Reader(team): Reader,
    SandboxPath(sandbox_id): SandboxPath,
    RawQuery(text): RawQuery,
) -> Result<Json<Vec<SandboxMetric>>, Failure> {
    let query = MetricsQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let MetricsQuery { start, end } = query;
    // Who does not say since when asks for the sandbox's life, and how long that was is not known here.
    let step = start.map(|start| step_of(length(start, end.unwrap_or_else(Timestamp::now))));
    let query = SampleQuery { from: start, until: end.map(just_after), step };
    let samples = control.samples.range(team.id, &sandbox_id, &query).await;
    let samples = samples.map_err(|error| Failure::internal("reading samples of a sandbox", &error))?;
    Ok(Json(samples.into_iter().map(shown).collect()))
}

/// Read what several sandboxes used last
#[utoipa::path(
    get, path = "/sandboxes/metrics", tag = tag::SANDBOXES, operation_id = "getSandboxesMetrics",
    params((
        "sandbox_ids" = Vec<String>, Query, style = Form, explode = false, min_items = 1, max_items = 100,
        description = "Whose, none twice."
    )),
    responses((status = 200, description = "The newest sample of each, if it has one.", body = SandboxesMetrics))
)]
pub(crate) async fn of_several(
    State(control): State<Arc<Control>>,
    Reader(team): Reader,
    RawQuery(text): RawQuery,
) -> Result<Json<SandboxesMetrics>, Failure> {
    let ids = sandbox_ids(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let ids = ids.iter().map(|id| id.parse()).collect::<Result<Vec<SandboxId>, _>>();
    let ids = ids.map_err(|_| Failure::bad_request("invalid sandbox ID"))?;
    let latest = control.samples.latest(team.id, &ids).await;
    let latest = latest.map_err(|error| Failure::internal("reading samples of sandboxes", &error))?;
    let sandboxes = latest.into_iter().map(|(id, sample)| (id.to_string(), shown(sample))).collect();
    Ok(Json(SandboxesMetrics { sandboxes }))
}

/// The first moment that does not belong to a stretch of time any more which ends with this one.
pub(crate) fn just_after(end: Timestamp) -> Timestamp {
    end.checked_add(Duration::from_micros(1)).unwrap_or(Timestamp::MAX)
}

/// How long it is; nothing if it ends before it begins.
pub(crate) fn length(start: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(start)).unwrap_or_default()
}

fn shown(sample: Sample) -> SandboxMetric {
    let Sample { at, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used } = sample;
    SandboxMetric {
        timestamp: at,
        timestamp_unix: at.as_second(),
        cpu_count,
        // As the guest rounds.
        cpu_used_pct: (cpu_used_pct * 100.0).round() / 100.0,
        mem_used,
        mem_total,
        mem_cache,
        disk_used,
        disk_total,
    }
}
