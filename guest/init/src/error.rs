//! Why the guest cannot go on.

use std::io;

/// A step that failed, on what, and why.
#[derive(Debug, thiserror::Error)]
#[error("{action} {subject}")]
pub(crate) struct Error {
    action: &'static str,
    subject: String,
    source: io::Error,
}

impl Error {
    /// For `map_err`: the step and what it was tried on.
    pub(crate) fn on<E: Into<io::Error>>(action: &'static str, subject: impl Into<String>) -> impl FnOnce(E) -> Self {
        let subject = subject.into();
        move |source| Self { action, subject, source: source.into() }
    }
}
