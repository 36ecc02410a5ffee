//! Python environments: what a list of requirements pins, in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::phases::{output, run, say};

/// A virtual environment, and what is installed into it: paths relative to `sdk-tests`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PythonSet {
    pub(crate) environment: &'static str,
    pub(crate) requirements: &'static str,
}

impl PythonSet {
    /// Its interpreter.
    pub(crate) fn python(self, folder: &Path) -> PathBuf {
        folder.join(self.environment).join("bin/python")
    }

    /// Installs what is pinned; does nothing, quickly, when it is there.
    pub(crate) fn ensure(self, folder: &Path) -> Result<()> {
        self.ensure_with(folder, Path::new("python3"))
    }

    /// The same, in an environment of the given interpreter.
    pub(crate) fn ensure_with(self, folder: &Path, interpreter: &Path) -> Result<()> {
        let environment = folder.join(self.environment);
        let python = self.python(folder);
        let requirements = folder.join(self.requirements);
        let stamp = environment.join("installed");
        // An environment breaks when the Python that it was made from goes away.
        if output(Command::new(&python).args(["-c", ""])).is_ok() && is_current(&requirements, &stamp)? {
            return Ok(());
        }
        say(&format!("installing {}", self.requirements));
        run(Command::new(interpreter).args(["-m", "venv", "--clear"]).arg(&environment))?;
        run(pip(&python).arg("-r").arg(&requirements))?;
        mark_current(&requirements, &stamp)
    }
}

/// Returns an interpreter of one of these versions that can make environments, the first version first.
pub(crate) fn find_interpreter(versions: &[&str]) -> Option<PathBuf> {
    let location = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2], sys.executable)";
    versions.iter().find_map(|version| {
        let names = [format!("python{version}"), "python3".to_owned()];
        names.iter().find_map(|name| {
            // pyenv's launchers start the version that this variable names.
            let found = output(Command::new(name).args(["-c", location]).env("PYENV_VERSION", version)).ok()?;
            let (found, path) = found.trim().split_once(' ')?;
            (found == *version).then(|| PathBuf::from(path))
        })
    })
}

/// Installs packages with the interpreter's own pip.
pub(crate) fn pip(python: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip
}

/// What is installed was installed from this file as it is now.
pub(crate) fn is_current(wanted: &Path, stamp: &Path) -> Result<bool> {
    let wanted = fs::read(wanted).with_context(|| format!("reading {}", wanted.display()))?;
    Ok(fs::read(stamp).is_ok_and(|installed| installed == wanted))
}

/// Says that what is installed is this file's.
pub(crate) fn mark_current(wanted: &Path, stamp: &Path) -> Result<()> {
    fs::copy(wanted, stamp).map(drop).with_context(|| format!("writing {}", stamp.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_is_of_a_version_that_was_asked_for() {
        assert_eq!(find_interpreter(&["2.99"]), None);
        let own = output(Command::new("python3").args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]));
        let own = own.expect("a Python");
        assert!(find_interpreter(&["2.99", own.trim()]).is_some_and(|path| path.is_absolute()));
    }

    #[test]
    fn a_changed_pin_is_installed_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (wanted, stamp) = (folder.path().join("requirements.txt"), folder.path().join("installed"));
        fs::write(&wanted, "e2b==1").expect("written");
        assert!(!is_current(&wanted, &stamp).expect("readable"));
        mark_current(&wanted, &stamp).expect("written");
        assert!(is_current(&wanted, &stamp).expect("readable"));
        fs::write(&wanted, "e2b==2").expect("written");
        assert!(!is_current(&wanted, &stamp).expect("readable"));
    }
}
