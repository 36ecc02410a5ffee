//! Errors that prevent the guest from running.

use std::io;

use rustix::io::Errno;

/// A failed step, its subject and its cause.
#[derive(Debug, thiserror::Error)]
#[error("{action} {subject}")]
pub(crate) struct Error {
    action: &'static str,
    subject: String,
    source: io::Error,
}

impl Error {
    /// Builds an error from a step and its subject, for `map_err`.
    pub(crate) fn on<E: Into<io::Error>>(action: &'static str, subject: impl Into<String>) -> impl FnOnce(E) -> Self {
        let subject = subject.into();
        move |source| Self { action, subject, source: source.into() }
    }

    /// Returns true if the kernel lacks the file system, or a directory to mount it on.
    pub(crate) fn is_unsupported(&self) -> bool {
        let absent = [Errno::NODEV, Errno::NOENT, Errno::PERM].map(|errno| Some(errno.raw_os_error()));
        absent.contains(&self.source.raw_os_error())
    }
}
