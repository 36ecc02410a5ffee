//! Unmodified client frameworks against a real server: those that need no internet access and no third-party key.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::instance::{Addressing, Environment, Instance, Template};
use crate::phases::{Phases, print_line, run};
use crate::python::{PythonSet, find_interpreter};
use crate::sdk::ensure_packages;

/// CPython versions that all frameworks support and that their requirements were pinned for, in order of preference.
const PYTHONS: [&str; 2] = ["3.12", "3.13"];

/// Python framework with its own virtual environment, because the requirements of the frameworks conflict.
#[derive(Debug)]
struct Framework {
    name: &'static str,
    set: PythonSet,
    file: &'static str,
    template: Template,
}

const IN_PYTHON: [Framework; 5] = [
    Framework {
        name: "inspect",
        set: PythonSet { environment: ".venv-inspect", requirements: "frameworks/requirements-inspect.txt" },
        file: "test_inspect.py",
        template: Template::Base,
    },
    Framework {
        name: "harbor",
        set: PythonSet { environment: ".venv-harbor", requirements: "frameworks/requirements-harbor.txt" },
        file: "test_harbor.py",
        template: Template::Base,
    },
    Framework {
        name: "deepagents",
        set: PythonSet { environment: ".venv-deepagents", requirements: "frameworks/requirements-deepagents.txt" },
        file: "test_deepagents.py",
        template: Template::Base,
    },
    Framework {
        name: "adk",
        set: PythonSet { environment: ".venv-adk", requirements: "frameworks/requirements-adk.txt" },
        file: "test_adk.py",
        template: Template::Base,
    },
    Framework {
        name: "smolagents",
        set: PythonSet { environment: ".venv-smolagents", requirements: "frameworks/requirements-smolagents.txt" },
        file: "test_smolagents.py",
        template: Template::Interpreter,
    },
];
const COMPUTESDK: &str = "computesdk";

/// Installed frameworks.
#[derive(Debug)]
pub(crate) struct Frameworks {
    folder: PathBuf,
    node: PathBuf,
    /// False if no Python of a supported version is installed.
    has_python: bool,
}

impl Frameworks {
    /// Installs the packages pinned in `sdk-tests/frameworks`; returns immediately if they are installed.
    pub(crate) fn ensure(root: &Path, node: &Path) -> Result<Self> {
        let folder = root.join("sdk-tests");
        ensure_packages(node, &folder.join("frameworks").join(COMPUTESDK))?;
        let interpreter = find_interpreter(&PYTHONS);
        if let Some(interpreter) = &interpreter {
            for framework in &IN_PYTHON {
                framework.set.ensure_with(&folder, interpreter)?;
            }
        }
        Ok(Self { folder, node: node.to_owned(), has_python: interpreter.is_some() })
    }

    /// Runs the named frameworks that need this template, or all of them if `names` is empty.
    ///
    /// A failure does not prevent the others from running.
    pub(crate) fn run(&self, phases: &Phases, instance: &Instance, template: Template, names: &[String]) -> Result<()> {
        let addresses = instance.environment(Addressing::Addresses)?;
        let selected = selected(template, names);
        let results = IN_PYTHON.iter().filter(|framework| selected.contains(&framework.name));
        let results = results.map(|framework| self.in_python(phases, framework, &addresses));
        let mut outcome = results.fold(Ok(()), Result::and);
        if selected.contains(&COMPUTESDK) {
            // It builds the URLs of sandboxes from the domain.
            let names = instance.environment(Addressing::Names)?;
            outcome = outcome.and(phases.run(&phase(COMPUTESDK), || self.computesdk(&names)));
        }
        outcome
    }

    fn in_python(&self, phases: &Phases, framework: &Framework, environment: &Environment) -> Result<()> {
        let phase = phase(framework.name);
        if self.has_python {
            return phases.run(&phase, || self.pytest(framework, environment));
        }
        print_line(&format!("── {phase}: SKIPPED, this machine has no Python {}", PYTHONS.join(" or ")));
        Ok(())
    }

    fn pytest(&self, framework: &Framework, environment: &Environment) -> Result<()> {
        let mut pytest = Command::new(framework.set.python(&self.folder));
        pytest.current_dir(self.folder.join("frameworks")).args(["-m", "pytest", framework.file]);
        run(pytest.envs(environment.iter().cloned()))
    }

    fn computesdk(&self, environment: &Environment) -> Result<()> {
        let mut node = Command::new(&self.node);
        node.current_dir(self.folder.join("frameworks").join(COMPUTESDK)).arg("--test");
        run(node.envs(environment.iter().cloned()))
    }
}

/// Returns the names of the selected frameworks that need this template; all of them if `names` is empty.
pub(crate) fn selected(template: Template, names: &[String]) -> Vec<&'static str> {
    let all = all().filter(|(_, needed)| *needed == template).map(|(name, _)| name);
    all.filter(|name| names.is_empty() || names.iter().any(|selected| selected == name)).collect()
}

/// Returns an error if a name is not that of a framework.
pub(crate) fn check_names(names: &[String]) -> Result<()> {
    match names.iter().find(|name| !all().any(|(known, _)| known == *name)) {
        Some(unknown) => bail!("unknown framework {unknown}"),
        None => Ok(()),
    }
}

fn all() -> impl Iterator<Item = (&'static str, Template)> {
    IN_PYTHON.iter().map(|framework| (framework.name, framework.template)).chain([(COMPUTESDK, Template::Base)])
}

fn phase(name: &str) -> String {
    format!("journeys with client frameworks: {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frameworks_are_selected_by_name_and_template() {
        assert!(check_names(&["smolagents".to_owned(), "computesdk".to_owned()]).is_ok());
        assert!(check_names(&["nobody".to_owned()]).is_err());
        assert_eq!(selected(Template::Interpreter, &[]), ["smolagents"]);
        assert_eq!(selected(Template::Base, &["computesdk".to_owned(), "smolagents".to_owned()]), ["computesdk"]);
    }
}
