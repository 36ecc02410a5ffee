//! `POST /sandboxes/{sandboxID}/timeout` and `/refreshes`: when a sandbox ends.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use hearth_api_types::sandbox::{Refresh, Timeout};
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Writer;
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::SandboxPath;
use crate::live::Request;
use crate::live::expiry::Wish;

/// Shortest and longest refresh, in seconds.
const REFRESH_MIN: u64 = 15;
const REFRESH_MAX: i32 = 3600;

/// Set when a sandbox ends, earlier or later
///
/// Negative is zero, and zero ends it at once. What is longer than the team may have is cut to that.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/timeout", tag = tag::SANDBOXES, operation_id = "setSandboxTimeout",
    params(SandboxPath), request_body = Timeout,
    responses(
        (status = 204, description = "So it does."),
        (
            status = 400,
            description = "The body is not what the schema says, or the sandbox has lived as long as it may."
        ),
        (status = 404, description = "There is no such sandbox, or no such team."),
        (status = 409, description = "It is being killed."),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn set_timeout(
    State(control): State<Arc<Control>>,
    Writer(team): Writer,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<StatusCode, Failure> {
    let Timeout { timeout } = body::required(&control.config, body).await?;
    let wish = Wish::EndIn(Duration::from_secs(u64::try_from(timeout).unwrap_or(0)));
    let handle = super::find(&control, &team, &sandbox_id)?;
    if timeout < 0 {
        // As in the contract. Whoever wonders where the sandbox went most likely computed this.
        tracing::info!(sandbox = %sandbox_id, timeout, "a negative timeout ends a sandbox at once");
    }
    handle.wish(Request::SetEnd, wish, team.limits.sandbox_length_max).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Move the end of a sandbox away, never nearer
///
/// By at least 15 seconds from now.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/refreshes", tag = tag::SANDBOXES, operation_id = "refreshSandbox",
    params(SandboxPath), request_body = Option<Refresh>,
    responses(
        (status = 204, description = "So it is."),
        (
            status = 400,
            description = "The body is not what the schema says, or the sandbox has lived as long as it may."
        ),
        (status = 404, description = "There is no such sandbox, or no such team."),
        (status = 409, description = "It is being killed."),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn refresh(
    State(control): State<Arc<Control>>,
    Writer(team): Writer,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<StatusCode, Failure> {
    let Refresh { duration } = body::optional(&control.config, body).await?;
    let duration = duration.unwrap_or(0);
    let seconds = u64::try_from(duration).ok().filter(|_| duration <= REFRESH_MAX);
    let seconds = seconds.ok_or_else(|| Failure::invalid(format_args!("duration must be from 0 to {REFRESH_MAX}")))?;
    let wish = Wish::LastAtLeast(Duration::from_secs(seconds.max(REFRESH_MIN)));
    let handle = super::find(&control, &team, &sandbox_id)?;
    handle.wish(Request::SetEnd, wish, team.limits.sandbox_length_max).await?;
    Ok(StatusCode::NO_CONTENT)
}
