//! `make up`: runs the server in the foreground.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::check::Build;

/// Executes `hearth up` in this process, so that it gets the signals and the terminal directly.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let program = Build::Release.program(root);
    let error = Command::new(&program).arg("up").args(arguments).exec();
    Err::<(), _>(error).with_context(|| format!("starting {}", program.display()))
}
