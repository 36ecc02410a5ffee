//! Python virtual environments with pinned packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::phases::{output, print_line, run};

/// Virtual environment and its requirements file; paths relative to `sdk-tests`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PythonSet {
    pub(crate) environment: &'static str,
    pub(crate) requirements: &'static str,
}

impl PythonSet {
    /// Path of its interpreter.
    pub(crate) fn python(self, folder: &Path) -> PathBuf {
        folder.join(self.environment).join("bin/python")
    }

    /// Installs the pinned packages; returns immediately if they are installed.
    pub(crate) fn ensure(self, folder: &Path) -> Result<()> {
        self.ensure_with(folder, Path::new("python3"))
    }

    /// Does the same with the given interpreter instead of `python3`.
    pub(crate) fn ensure_with(self, folder: &Path, interpreter: &Path) -> Result<()> {
        let environment = folder.join(self.environment);
        let python = self.python(folder);
        let requirements = folder.join(self.requirements);
        let stamp = environment.join("installed");
        // An environment breaks when the Python that created it is removed, so run it.
        if output(Command::new(&python).args(["-c", ""])).is_ok() && is_current(&requirements, &stamp)? {
            return Ok(());
        }
        print_line(&format!("installing {}", self.requirements));
        run(Command::new(interpreter).args(["-m", "venv", "--clear"]).arg(&environment))?;
        run(pip(&python).arg("-r").arg(&requirements))?;
        mark_current(&requirements, &stamp)
    }
}

/// Returns an interpreter of one of these versions that can create virtual environments, in order of preference.
pub(crate) fn find_interpreter(versions: &[&str]) -> Option<PathBuf> {
    let location = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2], sys.executable)";
    versions.iter().find_map(|version| {
        let names = [format!("python{version}"), "python3".to_owned()];
        names.iter().find_map(|name| {
            // pyenv's launchers start the version in this variable.
            let found = output(Command::new(name).args(["-c", location]).env("PYENV_VERSION", version)).ok()?;
            let (found, path) = found.trim().split_once(' ')?;
            (found == *version).then(|| PathBuf::from(path))
        })
    })
}

/// Command for `pip install` with the interpreter's own pip.
pub(crate) fn pip(python: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip
}

/// Returns true if the packages were installed from the current content of the file.
pub(crate) fn is_current(pins: &Path, stamp: &Path) -> Result<bool> {
    let pins = fs::read(pins).with_context(|| format!("reading {}", pins.display()))?;
    Ok(fs::read(stamp).is_ok_and(|installed| installed == pins))
}

/// Records that the packages were installed from the current content of the file.
pub(crate) fn mark_current(pins: &Path, stamp: &Path) -> Result<()> {
    fs::copy(pins, stamp).map(drop).with_context(|| format!("writing {}", stamp.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_has_one_of_the_requested_versions() {
        assert_eq!(find_interpreter(&["2.99"]), None);
        let own = output(Command::new("python3").args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]));
        let own = own.expect("a Python");
        assert!(find_interpreter(&["2.99", own.trim()]).is_some_and(|path| path.is_absolute()));
    }

    #[test]
    fn a_changed_pin_is_installed_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (pins, stamp) = (folder.path().join("requirements.txt"), folder.path().join("installed"));
        fs::write(&pins, "e2b==1").expect("written");
        assert!(!is_current(&pins, &stamp).expect("readable"));
        mark_current(&pins, &stamp).expect("written");
        assert!(is_current(&pins, &stamp).expect("readable"));
        fs::write(&pins, "e2b==2").expect("written");
        assert!(!is_current(&pins, &stamp).expect("readable"));
    }
}
