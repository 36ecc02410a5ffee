//! The body of every answer that is not a success.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why there was no success. Clients decide by `code`, not by the HTTP status, so the two are always equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody {
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub code: u16,
    /// For people.
    pub message: String,
    /// For programs. More of them may come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub error_code: Option<Cow<'static, str>>,
}

/// The machine-readable reasons that this server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// No node has room.
    SandboxCapacityUnavailable,
    /// Nodes exist, none can run this build.
    SandboxNoCompatibleNode,
    /// Placing took too long.
    SandboxPlacementTimeout,
    /// The node failed to start it.
    SandboxCreateFailed,
    /// The node refused to start it.
    SandboxCreateRefused,
    /// The same idempotency key came with another request before.
    IdempotencyRequestMismatch,
    /// The first request with this idempotency key is not answered yet.
    IdempotencyInProgress,
    /// Nobody knows what became of the first request with this idempotency key.
    IdempotencyOutcomeUnknown,
    /// The contract knows it, this server does not have it (yet). Not one of E2B's codes: E2B has everything.
    FeatureNotSupported,
    /// The disk of the server's database is full. Not one of E2B's codes.
    StorageFull,
    /// Anything unexpected.
    InternalServerError,
}

impl ErrorCode {
    /// The text on the wire.
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
    fn codes_of_other_servers_are_readable() {
        let text = r#"{"code":409,"message":"m","error_code":"from_the_future","extra":1}"#;
        let body: ErrorBody = serde_json::from_str(text).expect("valid");
        assert_eq!(body.error_code.as_deref(), Some("from_the_future"));
    }
}
