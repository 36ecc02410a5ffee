//! Language kernels for the tests of the code interpreter.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::phases::run;
use crate::python::PythonSet;

/// Environment with the kernels of Python and bash.
const PYTHON: PythonSet =
    PythonSet { environment: "target/kernels/python", requirements: "crates/interpreter/tests/requirements.txt" };

/// Installs the kernels; returns immediately if they are installed.
pub(crate) fn ensure(root: &Path) -> Result<()> {
    PYTHON.ensure(root)?;
    let prefix = root.join(PYTHON.environment);
    // The package of Python's kernel contains its specification; the one of bash writes it.
    if !prefix.join("share/jupyter/kernels/bash/kernel.json").exists() {
        let mut install = Command::new(PYTHON.python(root));
        run(install.args(["-m", "bash_kernel.install", "--prefix"]).arg(&prefix))?;
    }
    Ok(())
}
