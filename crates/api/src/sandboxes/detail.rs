//! `GET /sandboxes/{sandboxID}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api_types::sandbox::SandboxDetail;

use super::describe;
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::UnbannedTeam;
use crate::http::document::tag;
use crate::http::path::SandboxPath;
use crate::live::{self, Decision, Rejection, Request};

/// Read the details of a sandbox
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}", tag = tag::SANDBOXES, operation_id = "getSandbox",
    params(SandboxPath),
    responses(
        (status = 200, description = "All details of the sandbox.", body = SandboxDetail),
        (status = 404, description = "The sandbox or the team does not exist."),
    )
)]
pub(crate) async fn get(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    SandboxPath(sandbox_id): SandboxPath,
) -> Result<Json<SandboxDetail>, Failure> {
    let found = control.store.sandbox(&sandbox_id).await;
    let row = found.map_err(|error| Failure::internal("reading a sandbox", &error))?;
    let row = row.filter(|row| row.team_id == team.id).ok_or(Rejection::NotFound)?;
    match live::State::from(row.state).decide(Request::Describe) {
        Decision::Proceed => Ok(Json(describe::detail(&control, row))),
        Decision::Reject(rejection) => Err(rejection.into()),
        Decision::Wait => Err(Rejection::NotFound.into()),
    }
}
