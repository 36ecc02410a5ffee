//! Why the guest cannot go on.

use std::io;

use rustix::io::Errno;

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

    /// Whether the kernel does not have what was asked for: no such file system, or no place for it in another one.
    pub(crate) fn is_absence(&self) -> bool {
        let absent = [Errno::NODEV, Errno::NOENT, Errno::PERM].map(|errno| Some(errno.raw_os_error()));
        absent.contains(&self.source.raw_os_error())
    }
}
