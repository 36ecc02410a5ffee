//! The one place where the control role's refusals and failures become HTTP answers.
//!
//! A failure's message is for the client. What happened inside is logged where it is swallowed ([`Failure::internal`])
//! and never sent.

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use hearth_api_types::{ErrorBody, ErrorCode};
use hearth_stdx::chain;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::live::{CreateError, Refusal, Unanswered};

/// Tells clients whether the same request may be sent again. Without it, the Python SDK repeats every 429, 502, 503 and
/// 504.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// When a request may be repeated after a failure that passes: the shortest time the header can tell.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a refused schema begins with.
const VALIDATION_PREFIX: &str = "validation error: ";

/// Whether the same request is worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// It cannot help, or could do the same thing twice.
    Never,
    /// It can, after this time; and nothing is done twice.
    After(Duration),
}

/// An answer that is not a success.
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

    /// For failures after which nothing of the request is left.
    pub(crate) fn worth_retrying_after(self, wait: Duration) -> Self {
        Self { retry: Retry::After(wait), ..self }
    }

    /// The request is understood but makes no sense.
    pub(crate) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The request is not what the contract's schema says.
    pub(crate) fn invalid(reason: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("{VALIDATION_PREFIX}{reason}"))
    }

    pub(crate) fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The contract knows `what`, this server does not do it. Better than doing something else and saying nothing.
    pub(crate) fn unsupported(status: StatusCode, what: &str) -> Self {
        Self::new(status, format!("this server does not support {what}")).with_code(ErrorCode::FeatureNotSupported)
    }

    /// Something went wrong that the client can do nothing about. This is where the error is logged.
    pub(crate) fn internal(tried: &'static str, error: &(dyn Error + 'static)) -> Self {
        tracing::error!(error = %chain(error), "{tried} failed");
        Self::broken()
    }

    /// Like [`internal`](Self::internal), for what was logged already.
    pub(crate) fn broken() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error: see the server's log")
            .with_code(ErrorCode::InternalServerError)
    }

    /// The server is going away.
    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down").worth_retrying_after(RETRY_PAUSE)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::not_found("sandbox not found"),
            Refusal::Conflict(state) => Self::new(StatusCode::CONFLICT, format!("the sandbox {state}")),
        }
    }
}

impl From<Unanswered> for Failure {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Refused(refusal) => refusal.into(),
            Unanswered::LengthUsedUp => {
                Self::bad_request("the sandbox has reached the maximum length of your team and cannot live longer")
            }
            Unanswered::NotReleased => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the node did not confirm the kill; it is tried until it does",
            ),
            Unanswered::Broken => Self::broken(),
            Unanswered::Stopping => Self::stopping(),
        }
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        let unavailable = |message: &'static str| Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
        let failed = |message: &'static str| Self::new(StatusCode::INTERNAL_SERVER_ERROR, message);
        match error {
            CreateError::Busy => unavailable("too many sandboxes are being created").worth_retrying_after(RETRY_PAUSE),
            CreateError::NoNode => unavailable("no node can be reached that takes new sandboxes")
                .with_code(ErrorCode::SandboxCapacityUnavailable)
                .worth_retrying_after(RETRY_PAUSE),
            CreateError::Capacity => {
                unavailable("no node has room for another sandbox").with_code(ErrorCode::SandboxCapacityUnavailable)
            }
            CreateError::NodeBusy => unavailable("the node cannot start another sandbox now: try again")
                .with_code(ErrorCode::SandboxCapacityUnavailable)
                .worth_retrying_after(RETRY_PAUSE),
            CreateError::NoCompatibleNode => {
                unavailable("no node can run this build").with_code(ErrorCode::SandboxNoCompatibleNode)
            }
            CreateError::Refused => failed("the node refused to start the sandbox: see the server's log")
                .with_code(ErrorCode::SandboxCreateRefused),
            CreateError::Failed => failed("the node failed to start the sandbox: see the server's log")
                .with_code(ErrorCode::SandboxCreateFailed),
            // What may be left of it is being cleared away and was told to nobody, so a repetition makes one sandbox.
            CreateError::NodeLost => unavailable("the node was lost while it started the sandbox")
                .with_code(ErrorCode::SandboxCreateFailed)
                .worth_retrying_after(RETRY_PAUSE),
            CreateError::TooLong => Self::new(StatusCode::GATEWAY_TIMEOUT, "starting the sandbox took too long")
                .with_code(ErrorCode::SandboxPlacementTimeout),
            CreateError::LimitReached { max } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("your team has reached its maximum of {max} concurrent sandboxes"),
            ),
            CreateError::TemplateGone => Self::not_found("the template was deleted"),
            CreateError::Killed => Self::new(StatusCode::CONFLICT, "the sandbox was killed while it was started"),
            CreateError::Stopping => Self::stopping(),
            CreateError::Broken => Self::broken(),
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
        match retry {
            Retry::After(wait) => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
                // Whole seconds, at least one.
                headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
            }
            Retry::Never if is_retried_by_default(status) => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Retry::Never => {}
        }
        response
    }
}

/// What clients try again unless they are told not to.
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
    fn retries_are_told_where_clients_would_guess() {
        let header = |response: &Response, name: &HeaderName| {
            response.headers().get(name).map(|value| value.to_str().expect("text").to_owned())
        };
        let wait = Duration::from_millis(100);
        for (failure, should_retry, retry_after) in [
            (Failure::bad_request("x"), None, None),
            (Failure::broken(), None, None),
            (Failure::new(StatusCode::TOO_MANY_REQUESTS, "x"), Some("false"), None),
            (Failure::new(StatusCode::SERVICE_UNAVAILABLE, "x"), Some("false"), None),
            (Failure::new(StatusCode::GATEWAY_TIMEOUT, "x"), Some("false"), None),
            (Failure::new(StatusCode::BAD_GATEWAY, "x").worth_retrying_after(wait), Some("true"), Some("1")),
            (Failure::stopping(), Some("true"), Some("1")),
        ] {
            let response = failure.clone().into_response();
            assert_eq!(header(&response, &SHOULD_RETRY).as_deref(), should_retry, "{failure:?}");
            assert_eq!(header(&response, &RETRY_AFTER).as_deref(), retry_after, "{failure:?}");
        }
    }
}
