//! `DELETE /sandboxes/{sandboxID}`.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::UnbannedTeam;
use crate::http::document::tag;
use crate::http::path::SandboxPath;

/// Kill a sandbox
///
/// Replies when the sandbox and all its resources are released. Blocked teams may kill their sandboxes, too.
#[utoipa::path(
    delete, path = "/sandboxes/{sandboxID}", tag = tag::SANDBOXES, operation_id = "killSandbox",
    params(SandboxPath),
    responses(
        (status = 204, description = "The sandbox is killed and released."),
        (status = 404, description = "The sandbox or the team does not exist."),
        (
            status = 500,
            description = "The release failed; the server's log has the reason. The sandbox is not reachable any more, \
                and the server retries the release until it succeeds."
        ),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn kill(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    SandboxPath(sandbox_id): SandboxPath,
) -> Result<StatusCode, Failure> {
    super::find(&control, &team, &sandbox_id)?.kill().await?;
    Ok(StatusCode::NO_CONTENT)
}
