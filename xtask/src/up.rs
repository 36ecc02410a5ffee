//! `make up`: the server in the foreground.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::check::Build;

/// Becomes `hearth up`, so that signals and the terminal are its own.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let program = Build::Release.program(root);
    let error = Command::new(&program).arg("up").args(arguments).exec();
    Err::<(), _>(error).with_context(|| format!("starting {}", program.display()))
}
