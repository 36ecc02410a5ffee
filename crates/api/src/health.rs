//! Handler of `GET /health`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use hearth_stdx::chain;
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::document::tag;

/// Slug that no team has. Searching for it is a cheap query of the database.
const NO_SLUG: &str = "";

/// Check the health of this server
///
/// Requires no credentials. The reply is plain text.
#[utoipa::path(
    get, path = "/health", tag = tag::SERVER, operation_id = "getHealth",
    responses(
        (
            status = 200,
            description = "The server is healthy.",
            body = String, content_type = "text/plain", example = "Health check successful"
        ),
        (status = 503, description = "The server is shutting down, or its database does not respond."),
        (status = 504, description = "The database did not respond in time."),
    )
)]
pub(crate) async fn check(State(control): State<Arc<Control>>) -> Response {
    if control.tasks.token().is_cancelled() {
        return Failure::stopping().into_response();
    }
    match control.store.team_by_slug(NO_SLUG).await {
        Ok(_) => "Health check successful".into_response(),
        Err(error) => {
            tracing::error!(error = %chain(&error), "health check of the store failed");
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer").into_response()
        }
    }
}
