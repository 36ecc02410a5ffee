//! Schemathesis: requests made from the OpenAPI document, and answers compared with it, on a live server.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::phases::run;
use crate::sdk::ensure_python;

/// Where `run.py` finds what operators prove themselves with.
pub(crate) const ADMIN_TOKEN: &str = "HEARTH_ADMIN_TOKEN";

/// The installed tool.
#[derive(Debug)]
pub(crate) struct Tool {
    folder: PathBuf,
    python: PathBuf,
}

impl Tool {
    /// Installs what `sdk-tests/schema` pins, in an environment of its own: its plugin for pytest has no business in the
    /// journeys. Does nothing, quickly, when it is there.
    pub(crate) fn ensure(root: &Path) -> Result<Self> {
        let folder = root.join("sdk-tests/schema");
        let environment = folder.join(".venv");
        ensure_python(&environment, &folder.join("requirements.txt"), "Schemathesis")?;
        Ok(Self { folder, python: environment.join("bin/python") })
    }

    /// Calls the server that the environment names, in all roles; removes what came of it.
    pub(crate) fn run(&self, environment: &[(&str, &str)]) -> Result<()> {
        let mut command = Command::new(&self.python);
        run(command.current_dir(&self.folder).arg("run.py").envs(environment.iter().copied()))
    }
}
