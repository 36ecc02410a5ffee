//! Why something could not be built.

use std::io;
use std::path::PathBuf;

/// Why something could not be built. What is missing on the host is told with the way to get it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed.
    #[error("`{program}` was not found: install the package {package}")]
    ToolMissing {
        /// The program.
        program: String,
        /// The package that has it, on Debian and Ubuntu.
        package: &'static str,
    },
    /// A program did not do its work.
    #[error("{action}: {program} ended with {status}{}", quoted(tail))]
    Tool {
        /// What was being done.
        action: &'static str,
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote.
        tail: String,
    },
    /// A program printed something unexpected.
    #[error("{action}: {reason}")]
    Unexpected {
        /// What was being done.
        action: &'static str,
        /// What was not as expected.
        reason: String,
    },
    /// The operating system refused.
    #[error("{action} `{}`", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The disk is too full to begin.
    #[error(
        "{} has {} MiB free, and {} MiB are needed to {purpose}: free some, or choose another data directory",
        path.display(), free_bytes >> 20, needed_bytes >> 20
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What is there.
        free_bytes: u64,
        /// What the work takes.
        needed_bytes: u64,
        /// The work.
        purpose: &'static str,
    },
    /// Another process builds in the same folder.
    #[error("another hearth is preparing templates in this data directory")]
    Busy(#[source] hearth_host::lock::Error),
    /// A kernel module cannot be used.
    #[error("kernel module {module}: {reason}")]
    Module {
        /// The module.
        module: String,
        /// What is wrong.
        reason: String,
    },
    /// No place on the network.
    #[error("connecting the template's VM")]
    Network(#[source] hearth_network::Error),
    /// The VM could not be driven.
    #[error("{action}")]
    Vm {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: hearth_vmm::Error,
    },
    /// The template's VM ended by itself.
    #[error("the template's VM ended while {action}; its console: {console}")]
    VmEnded {
        /// What was being done.
        action: &'static str,
        /// The end of its console.
        console: String,
    },
    /// The guest daemon did not do what it was asked.
    #[error("{action} in the template's VM; its console: {console}")]
    Guest {
        /// What was being done.
        action: &'static str,
        /// The end of the guest's console.
        console: String,
        /// Why it failed.
        source: hearth_envd_api::Error,
    },
    /// A command in the guest failed.
    #[error("`{command}` ended with {exit_code} in the template's VM{}", quoted(output))]
    Command {
        /// The command.
        command: &'static str,
        /// Its exit code.
        exit_code: i32,
        /// The end of its output.
        output: String,
    },
    /// Artifacts could not be kept.
    #[error("keeping the template's artifacts")]
    Artifact(#[source] hearth_artifact::Error),
    /// The runtime is going down.
    #[error("the process is shutting down")]
    Stopped,
}

impl Error {
    /// For `map_err`: what was tried on a path.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; its last words:\n{text}") }
}
