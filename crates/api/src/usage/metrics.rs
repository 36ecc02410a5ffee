//! `GET /teams/{teamID}/metrics` and `GET /teams/{teamID}/metrics/max`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, RawQuery, State};
use hearth_analytics::{Usage, step_of};
use hearth_api_types::metrics::{MaxQuery, MaxTeamMetric, MetricsQuery, TeamMetric, TeamMetricName};
use hearth_types::TeamId;
use http::StatusCode;
use http::request::Parts;
use jiff::Timestamp;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::UnbannedTeam;
use crate::http::document::tag;
use crate::http::path::TeamPath;
use crate::sandboxes::metrics::{duration_between, exclusive_end};

/// Time range without an explicit start.
const RANGE_DEFAULT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Smallest step between usages that analytics returns.
const STEP_MIN: Duration = Duration::from_secs(1);

/// The caller's team, which must be the team in the path.
#[derive(Debug)]
pub(crate) struct OwnTeam(TeamId);

impl FromRequestParts<Arc<Control>> for OwnTeam {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        // Credentials are checked before anything else in a request.
        let UnbannedTeam(team) = UnbannedTeam::from_request_parts(parts, control).await?;
        let TeamPath(team_id) = TeamPath::from_request_parts(parts, control).await?;
        if team_id == team.id {
            Ok(Self(team_id))
        } else {
            Err(Failure::new(StatusCode::FORBIDDEN, "the metrics belong to another team"))
        }
    }
}

/// Read the usage of a team over time
///
/// Sorted by time, oldest first. The range defaults to the last seven days.
#[utoipa::path(
    get, path = "/teams/{teamID}/metrics", tag = tag::TEAMS, operation_id = "getTeamMetrics",
    params(TeamPath, MetricsQuery),
    responses(
        (status = 200, description = "Usage of the team.", body = Vec<TeamMetric>),
        (status = 403, description = "The team in the path is not the caller's, or is banned."),
    )
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    OwnTeam(team_id): OwnTeam,
    RawQuery(text): RawQuery,
) -> Result<Json<Vec<TeamMetric>>, Failure> {
    let query = MetricsQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let (start, end) = range(query);
    let usages = read(&control, team_id, (start, end), step_of(duration_between(start, end))).await?;
    let metrics = usages.into_iter().map(|usage| TeamMetric {
        timestamp: usage.at,
        timestamp_unix: usage.at.as_second(),
        concurrent_sandboxes: usage.sandboxes_max,
        sandbox_start_rate: usage.start_rate(),
    });
    Ok(Json(metrics.collect()))
}

/// Read the maximum usage of a team in a time range
///
/// Returns the maximum and the first time that it was reached. Without usage, returns zero at the end of the range.
#[utoipa::path(
    get, path = "/teams/{teamID}/metrics/max", tag = tag::TEAMS, operation_id = "getTeamMetricsMax",
    params(TeamPath, MetricsQuery, MaxQuery),
    responses(
        (status = 200, description = "Maximum in the range.", body = MaxTeamMetric),
        (status = 403, description = "The team in the path is not the caller's, or is banned."),
    )
)]
pub(crate) async fn max(
    State(control): State<Arc<Control>>,
    OwnTeam(team_id): OwnTeam,
    RawQuery(text): RawQuery,
) -> Result<Json<MaxTeamMetric>, Failure> {
    let query = MaxQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let (start, end) = range(query.range);
    let value = |usage: &Usage| match query.metric {
        TeamMetricName::ConcurrentSandboxes => f64::from(usage.sandboxes_max),
        TeamMetricName::SandboxStartRate => usage.start_rate(),
    };
    let usages = read(&control, team_id, (start, end), STEP_MIN).await?;
    let values = usages.iter().map(|usage| (usage.at, value(usage)));
    let (at, value) = values.reduce(|max, next| if next.1 > max.1 { next } else { max }).unwrap_or((end, 0.0));
    Ok(Json(MaxTeamMetric { timestamp: at, timestamp_unix: at.as_second(), value }))
}

fn range(query: MetricsQuery) -> (Timestamp, Timestamp) {
    let MetricsQuery { start, end } = query;
    let end = end.unwrap_or_else(Timestamp::now);
    (start.unwrap_or_else(|| end.checked_sub(RANGE_DEFAULT).unwrap_or(Timestamp::MIN)), end)
}

async fn read(
    control: &Control,
    team_id: TeamId,
    (start, end): (Timestamp, Timestamp),
    step: Duration,
) -> Result<Vec<Usage>, Failure> {
    let usages = control.usages.usages(team_id, start, exclusive_end(end), step).await;
    usages.map_err(|error| Failure::internal("reading the usage of a team", &error))
}
