//! `POST /sandboxes/{sandboxID}/timeout` and `/refreshes`: changes of the end time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use hearth_api_types::sandbox::{Refresh, Timeout};
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::ActiveTeam;
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::SandboxPath;
use crate::live::Request;
use crate::live::expiry::EndChange;

/// Shortest and longest refresh, in seconds. A shorter one is raised to the minimum, a longer one is rejected.
const REFRESH_MIN: u64 = 15;
const REFRESH_MAX: i32 = 3600;

/// Set the timeout of a sandbox
///
/// Sets the new end time, earlier or later; `timeout` counts from now, in seconds. Zero or less kills the sandbox
/// immediately. The end time is limited to the team's maximum sandbox length, counted from the start of the sandbox.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/timeout", tag = tag::SANDBOXES, operation_id = "setSandboxTimeout",
    params(SandboxPath), request_body = Timeout,
    responses(
        (status = 204, description = "The end time is set."),
        (
            status = 400,
            description = "The body does not match the schema, or the sandbox has reached the maximum length of the team."
        ),
        (status = 404, description = "The sandbox or the team does not exist."),
        (status = 409, description = "The sandbox is being killed."),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn set_timeout(
    State(control): State<Arc<Control>>,
    ActiveTeam(team): ActiveTeam,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<StatusCode, Failure> {
    let Timeout { timeout } = body::required(&control.config, body).await?;
    let change = EndChange::Set(Duration::from_secs(u64::try_from(timeout).unwrap_or(0)));
    let handle = super::find(&control, &team, &sandbox_id)?;
    if timeout < 0 {
        // Required by the contract. Logged because a negative timeout is most likely a bug of the client.
        tracing::info!(sandbox = %sandbox_id, timeout, "negative timeout treated as zero");
    }
    handle.change_end(Request::SetEnd, change, team.limits.sandbox_length_max).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Extend the timeout of a sandbox
///
/// Moves the end time to `duration` seconds from now, unless it is later already. `duration` is 0 to 3600; a value below
/// 15 counts as 15. The end time is limited to the team's maximum sandbox length, counted from the start of the sandbox.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/refreshes", tag = tag::SANDBOXES, operation_id = "refreshSandbox",
    params(SandboxPath), request_body = Option<Refresh>,
    responses(
        (status = 204, description = "The end time is extended, or was later already."),
        (
            status = 400,
            description = "The body does not match the schema."
        ),
        (status = 404, description = "The sandbox or the team does not exist."),
        (status = 409, description = "The sandbox is being killed."),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn refresh(
    State(control): State<Arc<Control>>,
    ActiveTeam(team): ActiveTeam,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<StatusCode, Failure> {
    let Refresh { duration } = body::optional(&control.config, body).await?;
    let duration = duration.unwrap_or(0);
    let seconds = u64::try_from(duration).ok().filter(|_| duration <= REFRESH_MAX);
    let seconds = seconds.ok_or_else(|| Failure::invalid(format_args!("duration must be from 0 to {REFRESH_MAX}")))?;
    let change = EndChange::ExtendTo(Duration::from_secs(seconds.max(REFRESH_MIN)));
    let handle = super::find(&control, &team, &sandbox_id)?;
    handle.change_end(Request::SetEnd, change, team.limits.sandbox_length_max).await?;
    Ok(StatusCode::NO_CONTENT)
}
