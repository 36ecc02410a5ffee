//! `POST /sandboxes/{sandboxID}/connect` and `POST /v2/sandboxes/{sandboxID}/connect`.
//!
//! There are no paused sandboxes yet, so there is nothing to resume, and whether a resume would keep the memory is of
//! no consequence.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use hearth_api_types::sandbox::{Connect, Sandbox};
use hearth_store::{Limits, Team};
use hearth_types::SandboxId;

use super::describe;
use super::wanted::check_length;
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Writer;
use crate::http::body;
use crate::http::path::SandboxPath;
use crate::live::Request;
use crate::live::expiry::Wish;

/// Before which a sandbox shall not expire, when a client of the second generation does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// The timeout has to be given.
pub(crate) async fn first_generation(
    State(control): State<Arc<Control>>,
    Writer(team): Writer,
    SandboxPath(sandbox_id): SandboxPath,
    body: Body,
) -> Result<Json<Sandbox>, Failure> {
    let Connect { timeout, memory: _ } = body::required(&control.config, body).await?;
    let timeout = timeout.ok_or_else(|| Failure::invalid("missing field `timeout`"))?;
    connect(&control, &team, &sandbox_id, check_timeout(timeout, team.limits)?).await
}

/// The timeout, and the body itself, may be left out.
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
