//! Schemathesis: sends requests generated from the OpenAPI document to a live server, and validates the replies.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::instance::Environment;
use crate::phases::run;
use crate::python::PythonSet;

/// Separate environment, because its pytest plugin must not be loaded by the journeys.
const SCHEMATHESIS: PythonSet = PythonSet { environment: "schema/.venv", requirements: "schema/requirements.txt" };

/// Installed Schemathesis.
#[derive(Debug)]
pub(crate) struct Tool {
    folder: PathBuf,
    python: PathBuf,
}

impl Tool {
    /// Installs the packages pinned in `sdk-tests/schema`; returns immediately if they are installed.
    pub(crate) fn ensure(root: &Path) -> Result<Self> {
        let folder = root.join("sdk-tests");
        SCHEMATHESIS.ensure(&folder)?;
        Ok(Self { python: SCHEMATHESIS.python(&folder), folder: folder.join("schema") })
    }

    /// Tests the server in `environment` with all credentials, and deletes what the requests created.
    pub(crate) fn run(&self, environment: &Environment) -> Result<()> {
        let mut command = Command::new(&self.python);
        run(command.current_dir(&self.folder).arg("run.py").envs(environment.iter().cloned()))
    }
}
