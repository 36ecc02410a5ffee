//! Schemathesis: requests made from the OpenAPI document, and answers compared with it, on a live server.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::instance::Environment;
use crate::phases::run;
use crate::python::PythonSet;

/// An environment of its own: its plugin for pytest has no business in the journeys.
const SCHEMATHESIS: PythonSet = PythonSet { environment: "schema/.venv", requirements: "schema/requirements.txt" };

/// The installed tool.
#[derive(Debug)]
pub(crate) struct Tool {
    folder: PathBuf,
    python: PathBuf,
}

impl Tool {
    /// Installs what `sdk-tests/schema` pins. Does nothing, quickly, when it is there.
    pub(crate) fn ensure(root: &Path) -> Result<Self> {
        let folder = root.join("sdk-tests");
        SCHEMATHESIS.ensure(&folder)?;
        Ok(Self { python: SCHEMATHESIS.python(&folder), folder: folder.join("schema") })
    }

    /// Calls the server that the environment names, in all roles; removes what came of it.
    pub(crate) fn run(&self, environment: &Environment) -> Result<()> {
        let mut command = Command::new(&self.python);
        run(command.current_dir(&self.folder).arg("run.py").envs(environment.iter().cloned()))
    }
}
