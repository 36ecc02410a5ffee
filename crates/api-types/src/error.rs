//! Body of every error reply.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of an error reply.
///
/// Clients decide by `code`, not by the HTTP status, so the two are always equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody {
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub code: u16,
    /// Message for people.
    pub message: String,
    /// Machine-readable reason. Later versions may add values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub error_code: Option<Cow<'static, str>>,
}

/// Machine-readable reasons that this server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// No node has capacity for the sandbox.
    SandboxCapacityUnavailable,
    /// Nodes exist, but none can run this build.
    SandboxNoCompatibleNode,
    /// Starting the sandbox exceeded the create budget.
    SandboxPlacementTimeout,
    /// The node failed to start the sandbox.
    SandboxCreateFailed,
    /// The node rejected the sandbox.
    SandboxCreateRefused,
    /// An earlier request used the same idempotency key with another body.
    IdempotencyRequestMismatch,
    /// The first request with this idempotency key is still being processed.
    IdempotencyInProgress,
    /// The outcome of the first request with this idempotency key is unknown.
    IdempotencyOutcomeUnknown,
    /// The contract has the feature, this server does not (yet). Not one of E2B's codes.
    FeatureNotSupported,
    /// The server is still preparing the template, or failed to. Not one of E2B's codes.
    TemplateNotReady,
    /// The disk of the server's database is full. Not one of E2B's codes.
    StorageFull,
    /// Any unexpected error.
    InternalServerError,
}

impl ErrorCode {
    /// Returns the text on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SandboxCapacityUnavailable => "sandbox_capacity_unavailable",
            Self::SandboxNoCompatibleNode => "sandbox_no_compatible_node",
            Self::SandboxPlacementTimeout => "sandbox_placement_timeout",
            Self::SandboxCreateFailed => "sandbox_create_failed",
            Self::SandboxCreateRefused => "sandbox_create_refused",
            Self::IdempotencyRequestMismatch => "idempotency_request_mismatch",
            Self::IdempotencyInProgress => "idempotency_in_progress",
            Self::IdempotencyOutcomeUnknown => "idempotency_outcome_unknown",
            Self::FeatureNotSupported => "feature_not_supported",
            Self::TemplateNotReady => "template_not_ready",
            Self::StorageFull => "storage_full",
            Self::InternalServerError => "internal_server_error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_without_a_reason_has_two_members() {
        let body = ErrorBody { code: 404, message: "gone".to_owned(), error_code: None };
        assert_eq!(serde_json::to_string(&body).expect("plain"), r#"{"code":404,"message":"gone"}"#);
    }

    #[test]
    fn unknown_error_codes_are_parsed() {
        let text = r#"{"code":409,"message":"m","error_code":"from_the_future","extra":1}"#;
        let body: ErrorBody = serde_json::from_str(text).expect("valid");
        assert_eq!(body.error_code.as_deref(), Some("from_the_future"));
    }
}
