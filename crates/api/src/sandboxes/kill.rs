//! `DELETE /sandboxes/{sandboxID}`.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Reader;
use crate::http::document::tag;
use crate::http::path::SandboxPath;

/// End a sandbox
///
/// Answers when nothing of it is left. Blocked teams may do it, too.
#[utoipa::path(
    delete, path = "/sandboxes/{sandboxID}", tag = tag::SANDBOXES, operation_id = "killSandbox",
    params(SandboxPath),
    responses(
        (status = 204, description = "Nothing of it is left."),
        (status = 404, description = "There is no such sandbox, or no such team."),
        (
            status = 500,
            description = "Something went wrong: the server's log has more. It cannot be reached any more, and its \
                end is tried until it succeeds."
        ),
        (status = 503, description = "The server is stopping."),
    )
)]
pub(crate) async fn kill(
    State(control): State<Arc<Control>>,
    Reader(team): Reader,
    SandboxPath(sandbox_id): SandboxPath,
) -> Result<StatusCode, Failure> {
    super::find(&control, &team, &sandbox_id)?.kill().await?;
    Ok(StatusCode::NO_CONTENT)
}
