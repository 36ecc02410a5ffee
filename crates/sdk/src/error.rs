//! Errors of the client.

use std::io;

use http::StatusCode;

/// Failure of a call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL is not supported.
    #[error("`{url}` is not a base URL of the form http://host:port")]
    Url {
        /// URL that was passed.
        url: String,
    },
    /// The connection failed or broke off.
    #[error("the request to {peer} failed")]
    Transport {
        /// URL of the server.
        peer: String,
        source: io::Error,
    },
    /// The server did not respond in time.
    #[error("{peer} did not respond within {seconds} s")]
    Timeout {
        /// URL of the server.
        peer: String,
        /// Timeout of the call, in seconds.
        seconds: u64,
    },
    /// The server responded with an error status.
    #[error("{status}: {message}")]
    Rejected {
        status: StatusCode,
        /// Message of the error body, or the beginning of the body.
        message: String,
    },
    /// The response violates the contract.
    #[error("{peer} sent an invalid response: {reason}")]
    InvalidResponse {
        /// URL of the server.
        peer: String,
        /// Description of the violation.
        reason: String,
    },
    /// The guest daemon reported an error.
    #[error("in the sandbox")]
    Guest(#[source] hearth_envd_api::Error),
}

impl Error {
    /// Returns true if the server responded that the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Rejected { status: StatusCode::NOT_FOUND, .. })
    }
}
