//! `GET /health`: whether this server can do its work.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use hearth_stdx::chain;
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::document::tag;

/// No team has it, so looking for it finds nothing, quickly.
const NO_SLUG: &str = "";

/// Tell whether this server can do its work
///
/// Without authentication, and plain text as in the contract.
#[utoipa::path(
    get, path = "/health", tag = tag::SERVER, operation_id = "getHealth",
    responses(
        (
            status = 200,
            description = "It can.", body = String, content_type = "text/plain", example = "Health check successful"
        ),
        (status = 503, description = "It is stopping, or its database does not answer."),
        (status = 504, description = "Its database takes too long."),
    )
)]
pub(crate) async fn check(State(control): State<Arc<Control>>) -> Response {
    if control.tasks.token().is_cancelled() {
        return Failure::stopping().into_response();
    }
    match control.store.team_by_slug(NO_SLUG).await {
        Ok(_) => "Health check successful".into_response(),
        Err(error) => {
            tracing::error!(error = %chain(&error), "the store does not answer");
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer").into_response()
        }
    }
}
