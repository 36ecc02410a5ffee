//! `POST /sandboxes/{sandboxID}/connect` and `POST /v2/sandboxes/{sandboxID}/connect`.
//!
//! Paused sandboxes are not supported yet, so connect never resumes one, and `memory` has no effect.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use hearth_api_types::sandbox::{Connect, ConnectV1, Sandbox};
use hearth_store::{Limits, Team};
use hearth_types::SandboxId;

use super::describe;
use super::validate::check_length;
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::ActiveTeam;
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::SandboxPath;
use crate::live::Request;
use crate::live::expiry::EndChange;

/// Default timeout of the second generation, limited to the team's maximum sandbox length.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Connect to a sandbox (first generation of clients)
///
/// Moves the end time to `timeout` seconds from now, unless it is later already, limited to the team's maximum sandbox
/// length. The reply has the same tokens as that of the create.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/connect", tag = tag::SANDBOXES, operation_id = "connectSandboxV1",
    params(SandboxPath), request_body = ConnectV1,
    responses(
        (status = 200, description = "The sandbox runs; its end time is extended, or was later already.", body = Sandbox),
        (
            status = 400,
            description = "The body does not match the schema, or `timeout` exceeds the maximum of the team."
        ),
        (status = 404, description = "The sandbox or the team does not exist."),
        (status = 409, description = "The sandbox is being killed."),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn first_generation(
    State(control): State<Arc<Control>>,
    ActiveTeam(team): ActiveTeam,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<Json<Sandbox>, Failure> {
    let ConnectV1 { timeout, memory: _ } = body::required(&control.config, body).await?;
    connect(&control, &team, &sandbox_id, check_timeout(timeout, team.limits)?).await
}

/// Connect to a sandbox
///
/// Moves the end time to `timeout` seconds from now, unless it is later already, limited to the team's maximum sandbox
/// length. `timeout` defaults to 300 seconds; the body may be omitted. The reply has the same tokens as that of the
/// create.
#[utoipa::path(
    post, path = "/v2/sandboxes/{sandboxID}/connect", tag = tag::SANDBOXES, operation_id = "connectSandbox",
    params(SandboxPath), request_body = Option<Connect>,
    responses(
        (status = 200, description = "The sandbox runs; its end time is extended, or was later already.", body = Sandbox),
        (
            status = 400,
            description = "The body does not match the schema, or `timeout` exceeds the maximum of the team."
        ),
        (status = 404, description = "The sandbox or the team does not exist."),
        (status = 409, description = "The sandbox is being killed."),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn second_generation(
    State(control): State<Arc<Control>>,
    ActiveTeam(team): ActiveTeam,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<Json<Sandbox>, Failure> {
    let Connect { timeout, memory: _ } = body::optional(&control.config, body).await?;
    let timeout = match timeout {
        Some(timeout) => check_timeout(timeout, team.limits)?,
        // The default is limited instead of rejected: the client did not request it.
        None => TIMEOUT_DEFAULT.min(team.limits.sandbox_length_max),
    };
    connect(&control, &team, &sandbox_id, timeout).await
}

fn check_timeout(seconds: i32, limits: Limits) -> Result<Duration, Failure> {
    let seconds = u64::try_from(seconds).map_err(|_| Failure::invalid("timeout must not be negative"))?;
    check_length(Duration::from_secs(seconds), limits)
}

async fn connect(
    control: &Control,
    team: &Team,
    sandbox_id: &SandboxId,
    timeout: Duration,
) -> Result<Json<Sandbox>, Failure> {
    let handle = super::find(control, team, sandbox_id)?;
    let row = handle.change_end(Request::Connect, EndChange::ExtendTo(timeout), team.limits.sandbox_length_max).await?;
    Ok(Json(describe::sandbox(control, &row)))
}
