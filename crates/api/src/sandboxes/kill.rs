//! `DELETE /sandboxes/{sandboxID}`.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Reader;
use crate::http::path::SandboxPath;

/// Answers when nothing of the sandbox is left. Blocked teams may do it, too.
pub(crate) async fn kill(
    State(control): State<Arc<Control>>,
    Reader(team): Reader,
    SandboxPath(sandbox_id): SandboxPath,
) -> Result<StatusCode, Failure> {
    super::find(&control, &team, &sandbox_id)?.kill().await?;
    Ok(StatusCode::NO_CONTENT)
}
