//! Tests of the template's language kernels, on the host: `guest/kernel-tests`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::phases::run;
use crate::python::PythonSet;
use crate::sdk;

/// Environment with the kernels of Python and bash, and pytest; paths relative to the repository.
const PYTHON: PythonSet =
    PythonSet { environment: "target/kernel-tests/python", requirements: "guest/kernel-tests/requirements.lock" };
/// Lock file of the JavaScript kernel's packages, which the template installs, too.
const NODE_LOCKED: &str = "guest/recipes/code-interpreter-v1/node";
/// Folder in which the tests find these packages.
const NODE: &str = "target/kernels/node";

/// Installs the kernels, then runs the tests. A second run installs nothing.
///
/// # Errors
/// Also returned if the SDKs are not installed and the machine's Node.js is too old.
pub(crate) fn test(root: &Path) -> Result<()> {
    PYTHON.ensure(root)?;
    let node = sdk::ensure_node(&root.join("sdk-tests"))?;
    ensure_node_packages(root, &node)?;
    let mut pytest = Command::new(PYTHON.python(root));
    pytest.current_dir(root.join("guest/kernel-tests")).args(["-m", "pytest"]);
    run(pytest.env("PATH", path_with(&node)?).env("PYTHONDONTWRITEBYTECODE", "1"))
}

fn ensure_node_packages(root: &Path, node: &Path) -> Result<()> {
    let (locked, folder) = (root.join(NODE_LOCKED), root.join(NODE));
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(locked.join(name), folder.join(name)).with_context(|| format!("copying {name}"))?;
    }
    sdk::ensure_packages(node, &folder)
}

/// Returns the search path in which this Node.js is the first.
fn path_with(node: &Path) -> Result<std::ffi::OsString> {
    let folder = node.parent().context("a program is in a folder")?;
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths([PathBuf::from(folder)].into_iter().chain(env::split_paths(&path)))?)
}
