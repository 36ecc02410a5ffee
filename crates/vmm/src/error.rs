//! Why a VM could not be driven.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a VM could not be driven. The process log of the VM, where there is one, is quoted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VMM program is not there.
    #[error("`{program}` was not found: install the package qemu-system-x86 (`hearth doctor` lists what is missing)")]
    ProgramMissing {
        /// What was looked for.
        program: String,
    },
    /// The VMM program is not one that this driver knows.
    #[error("`{program} --version` did not print a QEMU version of 7.2 or newer: {output}")]
    ProgramUnknown {
        /// The program.
        program: String,
        /// What it printed.
        output: String,
    },
    /// The VMM process could not be started.
    #[error("starting {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why it failed.
        source: hearth_host::process::SpawnError,
    },
    /// The VMM process ended by itself.
    #[error("the VMM ended while {action}: {log}")]
    Exited {
        /// What was being done.
        action: &'static str,
        /// The end of its log.
        log: String,
    },
    /// The VMM refused a command.
    #[error("the VMM refused `{command}`: {reason}")]
    Refused {
        /// The monitor command.
        command: String,
        /// In its own words.
        reason: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not finish {action} within {} ms", limit.as_millis())]
    Timeout {
        /// What was being done.
        action: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The monitor connection broke or spoke nonsense.
    #[error("talking to the VMM's monitor while {action}")]
    Monitor {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file could not be made or read.
    #[error("{action} `{}`", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The requested accelerator cannot run a guest here.
    #[error("this host cannot run guests with {accelerator}: {reason}")]
    Accelerator {
        /// What was asked for.
        accelerator: &'static str,
        /// Why not.
        reason: String,
    },
}
