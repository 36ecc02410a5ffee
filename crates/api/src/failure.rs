//! Error replies: the one place that maps errors of the control role to HTTP.
//!
//! The message of a failure is for the client. Internal causes are logged by [`Failure::internal`] and never sent.

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use hearth_api_types::{ErrorBody, ErrorCode};
use hearth_stdx::chain;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::compared;
use crate::live::{CreateError, Rejection, RequestError};

/// Header with `true` if the same request may be retried.
///
/// Without it, the Python SDK retries every 429, 502, 503 and 504.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// Delay before a retry after a temporary failure: the shortest value of `Retry-After`.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Start of every message about a request that violates the schema.
const VALIDATION_PREFIX: &str = "validation error: ";

/// Advice about a retry of the same request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// A retry is useless, or could repeat the effect.
    Never,
    /// A retry after this time may succeed, and does not repeat the effect.
    After(Duration),
    /// A retry before this time is useless. Clients must not retry by themselves; their users may.
    NotBefore(Duration),
}

/// An error reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    status: StatusCode,
    message: Cow<'static, str>,
    code: Option<ErrorCode>,
    retry: Retry,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: message.into(), code: None, retry: Retry::Never }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn with_code(self, code: ErrorCode) -> Self {
        Self { code: Some(code), ..self }
    }

    /// Allows a retry after `wait`. Only for a failure without a remaining effect.
    pub(crate) fn worth_retrying_after(self, wait: Duration) -> Self {
        Self { retry: Retry::After(wait), ..self }
    }

    /// Names the earliest useful retry, for the client's user: the client itself must report the failure.
    pub(crate) fn not_before(self, wait: Duration) -> Self {
        Self { retry: Retry::NotBefore(wait), ..self }
    }

    /// Rejects a request that matches the schema, but is not valid.
    pub(crate) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Rejects a request that violates the contract's schema.
    pub(crate) fn invalid(reason: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("{VALIDATION_PREFIX}{reason}"))
    }

    pub(crate) fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// Rejects a request for a feature of the contract that this server does not have.
    pub(crate) fn unsupported(status: StatusCode, feature: &str) -> Self {
        Self::new(status, format!("this server does not support {feature}")).with_code(ErrorCode::FeatureNotSupported)
    }

    /// Logs an internal error of `operation`, and returns a reply that hides its cause.
    pub(crate) fn internal(operation: &'static str, error: &(dyn Error + 'static)) -> Self {
        tracing::error!(operation, error = %chain(error), "internal error");
        if error.downcast_ref().is_some_and(hearth_store::Error::is_full) {
            Self { status: StatusCode::INTERNAL_SERVER_ERROR, ..Self::storage_full() }
        } else {
            Self::already_logged()
        }
    }

    /// The disk of the database is full. A retry is useless until the operator frees space.
    pub(crate) fn storage_full() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the disk of the server's database is full: the operator has to free space",
        )
        .with_code(ErrorCode::StorageFull)
    }

    /// Returns the reply of [`internal`](Self::internal) for an error that was logged already.
    pub(crate) fn already_logged() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error: see the server's log")
            .with_code(ErrorCode::InternalServerError)
    }

    /// The server is shutting down.
    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down").worth_retrying_after(RETRY_PAUSE)
    }
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::NotFound => Self::not_found("sandbox not found"),
            Rejection::Conflict(state) => Self::new(StatusCode::CONFLICT, format!("the sandbox {state}")),
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Rejected(rejection) => rejection.into(),
            RequestError::MaxLengthReached => {
                Self::bad_request("the sandbox has reached the maximum length of your team and cannot be extended")
            }
            RequestError::NotReleased => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the node did not confirm the kill; the server retries it")
            }
            RequestError::StorageFull => Self::storage_full(),
            RequestError::Internal => Self::already_logged(),
            RequestError::Stopping => Self::stopping(),
        }
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        let unavailable = |message: &'static str| Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
        let failed = |message: &'static str| Self::new(StatusCode::INTERNAL_SERVER_ERROR, message);
        match error {
            CreateError::Busy => unavailable("too many sandboxes are being created").worth_retrying_after(RETRY_PAUSE),
            CreateError::NoNode => unavailable("no reachable node accepts new sandboxes")
                .with_code(ErrorCode::SandboxCapacityUnavailable)
                .worth_retrying_after(RETRY_PAUSE),
            CreateError::Capacity => {
                unavailable("no node has capacity for another sandbox").with_code(ErrorCode::SandboxCapacityUnavailable)
            }
            CreateError::NodeBusy => unavailable("the node cannot start another sandbox now: try again")
                .with_code(ErrorCode::SandboxCapacityUnavailable)
                .worth_retrying_after(RETRY_PAUSE),
            CreateError::NoCompatibleNode => {
                unavailable("no node can run this build").with_code(ErrorCode::SandboxNoCompatibleNode)
            }
            CreateError::Rejected => {
                failed("the node rejected the sandbox: see the server's log").with_code(ErrorCode::SandboxCreateRefused)
            }
            CreateError::Failed => failed("the node failed to start the sandbox: see the server's log")
                .with_code(ErrorCode::SandboxCreateFailed),
            // Leftovers are being removed and no client has the ID, so a retry creates only one sandbox.
            CreateError::NodeLost => unavailable("the node was lost while it started the sandbox")
                .with_code(ErrorCode::SandboxCreateFailed)
                .worth_retrying_after(RETRY_PAUSE),
            CreateError::TimedOut => Self::new(StatusCode::GATEWAY_TIMEOUT, "starting the sandbox took too long")
                .with_code(ErrorCode::SandboxPlacementTimeout),
            CreateError::LimitReached { max } => {
                Self::new(compared::TOO_MANY_SANDBOXES.status, compared::too_many_sandboxes(max))
            }
            CreateError::TemplateDeleted => Self::not_found("the template was deleted"),
            CreateError::Killed => Self::new(StatusCode::CONFLICT, "the sandbox was killed while it was started"),
            CreateError::Stopping => Self::stopping(),
            CreateError::StorageFull => Self::storage_full(),
            CreateError::Internal => Self::already_logged(),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { status, message, code, retry } = self;
        let error_code = code.map(|code| Cow::Borrowed(code.as_str()));
        let body = ErrorBody { code: status.as_u16(), message: message.into_owned(), error_code };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        // Whole seconds, at least one.
        let seconds = |wait: Duration| HeaderValue::from(wait.as_secs().max(1));
        match retry {
            Retry::After(wait) => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
                headers.insert(RETRY_AFTER, seconds(wait));
            }
            Retry::NotBefore(wait) => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
                headers.insert(RETRY_AFTER, seconds(wait));
            }
            Retry::Never if is_retried_by_default(status) => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Retry::Never => {}
        }
        response
    }
}

/// Returns true if clients retry the status unless the reply has `Should-Retry: false`.
pub(crate) fn is_retried_by_default(status: StatusCode) -> bool {
    [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ]
    .contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_that_clients_retry_carry_advice() {
        let header = |response: &Response, name: &HeaderName| {
            response.headers().get(name).map(|value| value.to_str().expect("text").to_owned())
        };
        let wait = Duration::from_millis(100);
        for (failure, should_retry, retry_after) in [
            (Failure::bad_request("x"), None, None),
            (Failure::already_logged(), None, None),
            (Failure::new(StatusCode::TOO_MANY_REQUESTS, "x"), Some("false"), None),
            (Failure::new(StatusCode::SERVICE_UNAVAILABLE, "x"), Some("false"), None),
            (Failure::new(StatusCode::GATEWAY_TIMEOUT, "x"), Some("false"), None),
            (Failure::new(StatusCode::BAD_GATEWAY, "x").worth_retrying_after(wait), Some("true"), Some("1")),
            (Failure::new(StatusCode::SERVICE_UNAVAILABLE, "x").not_before(wait), Some("false"), Some("1")),
            (Failure::stopping(), Some("true"), Some("1")),
        ] {
            let response = failure.clone().into_response();
            assert_eq!(header(&response, &SHOULD_RETRY).as_deref(), should_retry, "{failure:?}");
            assert_eq!(header(&response, &RETRY_AFTER).as_deref(), retry_after, "{failure:?}");
        }
    }
}
