//! Errors of driving a VM.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Failure to drive a VM. Quotes the VMM's log, if there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VMM program is not installed.
    #[error("`{program}` was not found: install the package qemu-system-x86 (`hearth doctor` lists what is missing)")]
    ProgramMissing { program: String },
    /// The VMM program is not a supported version of QEMU.
    #[error("`{program} --version` did not print a QEMU version of 7.2 or newer: {output}")]
    ProgramUnknown {
        program: String,
        /// First line that it printed.
        output: String,
    },
    /// The VMM process could not be started.
    #[error("starting {program}")]
    Spawn { program: String, source: hearth_host::process::SpawnError },
    /// The VMM process exited by itself.
    #[error("the VMM exited while {action}: {log}")]
    Exited {
        /// Action under way.
        action: &'static str,
        /// End of the VMM's log.
        log: String,
    },
    /// The VMM rejected a command.
    #[error("the VMM rejected `{command}`: {reason}")]
    Rejected {
        /// Monitor command.
        command: String,
        /// Reason given by the VMM.
        reason: String,
    },
    /// The VMM did not reply in time.
    #[error("the VMM did not finish {action} within {} ms", limit.as_millis())]
    Timeout {
        /// Action under way.
        action: &'static str,
        limit: Duration,
    },
    /// The monitor connection broke or sent invalid data.
    #[error("using the VMM's monitor while {action}")]
    Monitor {
        /// Action under way.
        action: &'static str,
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{action} `{}`", path.display())]
    File {
        /// Attempted action.
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The required accelerator cannot run a guest on this host.
    #[error("this host cannot run guests with {accelerator}: {reason}")]
    Accelerator { accelerator: &'static str, reason: String },
}
