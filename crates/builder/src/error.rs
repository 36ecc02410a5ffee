//! Errors of building a template.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Failure to build a template. The message names the package of a missing program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed.
    #[error("`{program}` was not found: install the package {package}")]
    ToolMissing {
        program: String,
        /// Package on Debian and Ubuntu.
        package: &'static str,
    },
    /// A program exited with an error.
    #[error("{action}: {program} ended with {status}{}", quoted(tail))]
    Tool {
        /// Action under way.
        action: &'static str,
        program: String,
        /// Exit status.
        status: String,
        /// End of its output.
        tail: String,
    },
    /// A program printed something unexpected.
    #[error("{action}: {reason}")]
    Unexpected {
        /// Action under way.
        action: &'static str,
        /// Difference from the expected output.
        reason: String,
    },
    /// A file operation failed.
    #[error("{action} `{}`", path.display())]
    File {
        /// Attempted action.
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The disk has too little free space to start.
    #[error(
        "{} has {} MiB free, and {} MiB are needed to {purpose}: free some, or choose another data directory",
        path.display(), free_bytes >> 20, needed_bytes >> 20
    )]
    NoSpace {
        /// Folder on the disk.
        path: PathBuf,
        free_bytes: u64,
        needed_bytes: u64,
        /// WorkFolder that needs the space.
        purpose: &'static str,
    },
    /// Another process builds in the same folder.
    #[error("another hearth is preparing templates in this data directory")]
    Busy(#[source] hearth_host::lock::Error),
    /// A kernel module cannot be used.
    #[error("kernel module {module}: {reason}")]
    Module { module: String, reason: String },
    /// No network slot was acquired.
    #[error("connecting the template's VM")]
    Network(#[source] hearth_network::Error),
    /// Driving the VM failed.
    #[error("{action}")]
    Vm {
        /// Action under way.
        action: &'static str,
        source: hearth_vmm::Error,
    },
    /// The template's VM exited by itself.
    #[error("the template's VM exited while {action}; its console: {console}")]
    VmExited {
        /// Action under way.
        action: &'static str,
        /// End of its console.
        console: String,
    },
    /// A request to the guest daemon failed.
    #[error("{action} in the template's VM; its console: {console}")]
    Guest {
        /// Action under way.
        action: &'static str,
        /// End of the guest's console.
        console: String,
        source: hearth_envd_api::Error,
    },
    /// A command in the guest failed.
    #[error("`{command}` ended with {exit_code} in the template's VM{}", quoted(output))]
    Command {
        command: String,
        exit_code: i32,
        /// End of its output.
        output: String,
    },
    /// A service of the template did not start.
    #[error("{url} did not answer within {limit:?} in the template's VM; its console: {console}")]
    NotReady {
        url: String,
        limit: Duration,
        /// End of the guest's console.
        console: String,
    },
    /// The recipe has a service whose program is missing.
    #[error(
        "the recipe {recipe} needs the interpreter, and this program was built without it: run `cargo xtask guest` and build it again"
    )]
    NoInterpreter { recipe: &'static str },
    /// The artifact store failed.
    #[error("storing the template's artifacts")]
    Artifact(#[source] hearth_artifact::Error),
    /// The runtime is shutting down.
    #[error("the process is shutting down")]
    Stopped,
}

impl Error {
    /// Creates a [`File`](Self::File) error of an action on a path, for `map_err`.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; end of its output:\n{text}") }
}
