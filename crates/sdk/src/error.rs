//! Why a call did not do what it was to do.

use std::io;

use http::StatusCode;

/// Why a call did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a base URL this client can use.
    #[error("`{url}` is not a base URL of the form http://host:port")]
    Url {
        /// What was given.
        url: String,
    },
    /// The server could not be talked to.
    #[error("talking to {peer}")]
    Transport {
        /// Whom.
        peer: String,
        /// Why not.
        source: io::Error,
    },
    /// The server did not answer in time.
    #[error("{peer} did not answer within {seconds} s")]
    Timeout {
        /// Who.
        peer: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The server answered with an error.
    #[error("{status}: {message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The message of the error body, or its beginning.
        message: String,
    },
    /// The server's answer is not what the contract says.
    #[error("the answer of {peer} cannot be understood: {reason}")]
    Answer {
        /// Who answered.
        peer: String,
        /// What is wrong.
        reason: String,
    },
    /// The guest daemon did not do it.
    #[error("in the sandbox")]
    Guest(#[source] hearth_envd_api::Error),
}

impl Error {
    /// Whether the server says that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }
}
