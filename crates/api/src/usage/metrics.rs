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
use crate::http::auth::Reader;
use crate::http::document::tag;
use crate::http::path::TeamPath;
use crate::sandboxes::metrics::{just_after, length};

/// The stretch of time that is meant when nothing is said.
const RANGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// As exact as usages are kept.
const FINEST: Duration = Duration::from_secs(1);

/// The team that calls, which is the one that the path names.
#[derive(Debug)]
pub(crate) struct OwnTeam(TeamId);

impl FromRequestParts<Arc<Control>> for OwnTeam {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        // Credentials come before everything else about a request.
        let Reader(team) = Reader::from_request_parts(parts, control).await?;
        let TeamPath(named) = TeamPath::from_request_parts(parts, control).await?;
        if named == team.id {
            Ok(Self(named))
        } else {
            Err(Failure::new(StatusCode::FORBIDDEN, "this is another team's"))
        }
    }
}

/// Read what a team used in a stretch of time, oldest first
///
/// The last seven days, unless asked otherwise.
#[utoipa::path(
    get, path = "/teams/{teamID}/metrics", tag = tag::TEAMS, operation_id = "getTeamMetrics",
    params(TeamPath, MetricsQuery),
    responses(
        (status = 200, description = "What it used.", body = Vec<TeamMetric>),
        (status = 403, description = "It is another team, or is banned."),
    )
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    OwnTeam(team_id): OwnTeam,
    RawQuery(text): RawQuery,
) -> Result<Json<Vec<TeamMetric>>, Failure> {
    let query = MetricsQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let (start, end) = range(query);
    let usages = read(&control, team_id, (start, end), step_of(length(start, end))).await?;
    let shown = usages.into_iter().map(|usage| TeamMetric {
        timestamp: usage.at,
        timestamp_unix: usage.at.as_second(),
        concurrent_sandboxes: usage.sandboxes_max,
        sandbox_start_rate: usage.start_rate(),
    });
    Ok(Json(shown.collect()))
}

/// Read the most that a team used in a stretch of time
///
/// And when that was first reached; zero at its end if there was nothing.
#[utoipa::path(
    get, path = "/teams/{teamID}/metrics/max", tag = tag::TEAMS, operation_id = "getTeamMetricsMax",
    params(TeamPath, MetricsQuery, MaxQuery),
    responses(
        (status = 200, description = "The most.", body = MaxTeamMetric),
        (status = 403, description = "It is another team, or is banned."),
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
    let usages = read(&control, team_id, (start, end), FINEST).await?;
    let values = usages.iter().map(|usage| (usage.at, value(usage)));
    let (at, value) = values.reduce(|most, next| if next.1 > most.1 { next } else { most }).unwrap_or((end, 0.0));
    Ok(Json(MaxTeamMetric { timestamp: at, timestamp_unix: at.as_second(), value }))
}

fn range(query: MetricsQuery) -> (Timestamp, Timestamp) {
    let MetricsQuery { start, end } = query;
    let end = end.unwrap_or_else(Timestamp::now);
    (start.unwrap_or_else(|| end.checked_sub(RANGE).unwrap_or(Timestamp::MIN)), end)
}

async fn read(
    control: &Control,
    team_id: TeamId,
    (start, end): (Timestamp, Timestamp),
    step: Duration,
) -> Result<Vec<Usage>, Failure> {
    let usages = control.usages.usages(team_id, start, just_after(end), step).await;
    usages.map_err(|error| Failure::internal("reading what a team used", &error))
}
