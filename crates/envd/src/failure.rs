//! Errors of the plain HTTP routes: a status and a text, as JSON with an integer code.
//!
//! Only an unreadable query is reported as plain text.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::path_calls::CallError;

/// An error response.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    message: String,
    is_plain: bool,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), is_plain: false }
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A query parameter of the wrong form.
    pub(crate) fn parameter(name: &str, reason: impl std::fmt::Display) -> Self {
        let message = format!("Invalid format for parameter {name}: {reason}");
        Self { status: StatusCode::BAD_REQUEST, message, is_plain: true }
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// The client may retry once the blocked calls have finished.
    pub(crate) fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Blocked { .. } => Self::too_many(error.to_string()),
            CallError::Lost(_) => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if self.is_plain {
            return (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.message).into_response();
        }
        let body = format!("{}\n", json!({ "code": self.status.as_u16(), "message": self.message }));
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}
