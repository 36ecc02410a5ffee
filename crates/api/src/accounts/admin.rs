//! Handlers of `/admin`: administration of teams by operators, regardless of the team's standing.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use futures::future::join_all;
use hearth_api_types::account::{CreatedApiKey, KeyName, KillResult, RunningCount};
use hearth_types::TeamId;
use http::StatusCode;

use super::keys;
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Operator;
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::{ApiKeyPath, TeamPath};
use crate::live::{Handle, RequestError};

/// Kill all sandboxes of a team
///
/// Sandboxes that are created during the request may survive; block the team first to prevent that.
#[utoipa::path(
    post, path = "/admin/teams/{teamID}/sandboxes/kill", tag = tag::OPERATORS, operation_id = "killTeamSandboxes",
    params(TeamPath),
    responses(
        (status = 200, description = "Number of killed and unconfirmed sandboxes.", body = KillResult),
        (status = 404, description = "The team does not exist."),
        (status = 500),
        (status = 503, description = "The server is stopping."),
        (status = 504),
    )
)]
pub(crate) async fn kill_sandboxes(
    State(control): State<Arc<Control>>,
    Operator: Operator,
    TeamPath(team_id): TeamPath,
) -> Result<Json<KillResult>, Failure> {
    require_team(&control, team_id).await?;
    if control.tasks.token().is_cancelled() {
        // Sandboxes whose owner has stopped already have no handle and would not be killed.
        return Err(Failure::stopping());
    }
    let handles = control.live.of_team(team_id);
    let kills = join_all(handles.iter().map(Handle::kill)).await;
    let (mut killed_count, mut failed_count) = (0, 0);
    for outcome in kills {
        match outcome {
            Ok(()) => killed_count += 1,
            // Another request killed the sandbox first.
            Err(RequestError::Rejected(_)) => {}
            Err(_) => failed_count += 1,
        }
    }
    tracing::info!(%team_id, killed_count, failed_count, "operator killed the sandboxes of a team");
    Ok(Json(KillResult { killed_count, failed_count }))
}

/// Count the running sandboxes of each team
///
/// Teams without running sandboxes are omitted.
#[utoipa::path(
    get, path = "/admin/sandboxes/running-counts", tag = tag::OPERATORS, operation_id = "countRunningSandboxes",
    responses((status = 200, description = "Number of running sandboxes by team.", body = Vec<RunningCount>))
)]
pub(crate) async fn running_counts(State(control): State<Arc<Control>>, Operator: Operator) -> Json<Vec<RunningCount>> {
    let counts = control.live.running_by_team().into_iter();
    Json(counts.map(|(team_id, running_count)| RunningCount { team_id: team_id.to_string(), running_count }).collect())
}

/// Create an API key for a team
///
/// Only this reply contains the whole key.
#[utoipa::path(
    post, path = "/admin/teams/{teamID}/api-keys", tag = tag::OPERATORS, operation_id = "createTeamApiKey",
    params(TeamPath), request_body = KeyName,
    responses(
        (status = 201, description = "The new API key.", body = CreatedApiKey),
        (status = 404, description = "The team does not exist."),
        (status = 500),
        (status = 504),
    )
)]
pub(crate) async fn create_key(
    State(control): State<Arc<Control>>,
    Operator: Operator,
    TeamPath(team_id): TeamPath,
    body: Body,
) -> Result<(StatusCode, Json<CreatedApiKey>), Failure> {
    let name = keys::name(body::required(&control.config, body).await?)?;
    keys::issue(&control, team_id, None, &name).await
}

/// Revoke an API key of a team
///
/// Later requests with the key are rejected.
#[utoipa::path(
    delete, path = "/admin/teams/{teamID}/api-keys/{apiKeyID}", tag = tag::OPERATORS, operation_id = "deleteTeamApiKey",
    params(TeamPath, ApiKeyPath),
    responses(
        (status = 204, description = "The key is revoked."),
        (status = 404, description = "The team has no such key, or the team does not exist."),
        (status = 500),
        (status = 504),
    )
)]
pub(crate) async fn revoke_key(
    State(control): State<Arc<Control>>,
    Operator: Operator,
    TeamPath(team_id): TeamPath,
    ApiKeyPath(id): ApiKeyPath,
) -> Result<StatusCode, Failure> {
    keys::revoke(&control, team_id, id).await
}

async fn require_team(control: &Control, team_id: TeamId) -> Result<(), Failure> {
    let found = control.store.team(team_id).await.map_err(|error| Failure::internal("looking up a team", &error))?;
    found.map(drop).ok_or_else(|| Failure::not_found("there is no such team"))
}
