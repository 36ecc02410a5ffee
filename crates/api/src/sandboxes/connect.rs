//! `POST /sandboxes/{sandboxID}/connect` and `POST /v2/sandboxes/{sandboxID}/connect`.
//!
//! There are no paused sandboxes yet, so there is nothing to resume, and whether a resume would keep the memory is of
//! no consequence.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use hearth_api_types::sandbox::{Connect, ConnectV1, Sandbox};
use hearth_store::{Limits, Team};
use hearth_types::SandboxId;

use super::describe;
use super::wanted::check_length;
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Writer;
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::SandboxPath;
use crate::live::Request;
use crate::live::expiry::Wish;

/// Before which a sandbox shall not expire, when a client of the second generation does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Connect to a sandbox, as the first generation of clients does
///
/// Never shortens its life. The answer has the same tokens as that of the create.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/connect", tag = tag::SANDBOXES, operation_id = "connectSandboxV1",
    params(SandboxPath), request_body = ConnectV1,
    responses(
        (status = 200, description = "It runs, and lasts at least that long.", body = Sandbox),
        (
            status = 400,
            description = "The body is not what the schema says, the timeout is longer than the team may have, or \
                the sandbox has lived as long as it may."
        ),
        (status = 404, description = "There is no such sandbox, or no such team."),
        (status = 409, description = "It is being killed."),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn first_generation(
    State(control): State<Arc<Control>>,
    Writer(team): Writer,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<Json<Sandbox>, Failure> {
    let ConnectV1 { timeout, memory: _ } = body::required(&control.config, body).await?;
    connect(&control, &team, &sandbox_id, check_timeout(timeout, team.limits)?).await
}

/// Connect to a sandbox
///
/// Never shortens its life. The timeout, 300 seconds by default, and the body itself may be left out. The answer has the
/// same tokens as that of the create.
#[utoipa::path(
    post, path = "/v2/sandboxes/{sandboxID}/connect", tag = tag::SANDBOXES, operation_id = "connectSandbox",
    params(SandboxPath), request_body = Option<Connect>,
    responses(
        (status = 200, description = "It runs, and lasts at least that long.", body = Sandbox),
        (
            status = 400,
            description = "The body is not what the schema says, the timeout is longer than the team may have, or \
                the sandbox has lived as long as it may."
        ),
        (status = 404, description = "There is no such sandbox, or no such team."),
        (status = 409, description = "It is being killed."),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn second_generation(
    State(control): State<Arc<Control>>,
    Writer(team): Writer,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<Json<Sandbox>, Failure> {
    let Connect { timeout, memory: _ } = body::optional(&control.config, body).await?;
    let timeout = match timeout {
        Some(timeout) => check_timeout(timeout, team.limits)?,
        // Nobody asked for more than the team may have.
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
    let row = handle.wish(Request::Connect, Wish::LastAtLeast(timeout), team.limits.sandbox_length_max).await?;
    Ok(Json(describe::sandbox(control, &row)))
}
