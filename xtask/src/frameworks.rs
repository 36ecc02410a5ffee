//! Client frameworks against a real server, unchanged: those that need neither a network nor a key of somebody else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::instance::{By, Environment, Instance};
use crate::phases::{Phases, run, say};
use crate::python::{PythonSet, find_interpreter};
use crate::sdk::ensure_packages;

/// Versions of CPython that all frameworks run on and that their requirements were pinned for, the first choice first.
const PYTHONS: [&str; 2] = ["3.12", "3.13"];

/// A framework in Python, with an environment of its own: what they need contradicts each other.
#[derive(Debug)]
struct Framework {
    name: &'static str,
    set: PythonSet,
    file: &'static str,
}

const IN_PYTHON: [Framework; 4] = [
    Framework {
        name: "inspect",
        set: PythonSet { environment: ".venv-inspect", requirements: "frameworks/requirements-inspect.txt" },
        file: "test_inspect.py",
    },
    Framework {
        name: "harbor",
        set: PythonSet { environment: ".venv-harbor", requirements: "frameworks/requirements-harbor.txt" },
        file: "test_harbor.py",
    },
    Framework {
        name: "deepagents",
        set: PythonSet { environment: ".venv-deepagents", requirements: "frameworks/requirements-deepagents.txt" },
        file: "test_deepagents.py",
    },
    Framework {
        name: "adk",
        set: PythonSet { environment: ".venv-adk", requirements: "frameworks/requirements-adk.txt" },
        file: "test_adk.py",
    },
];
const COMPUTESDK: &str = "computesdk";

/// The installed frameworks.
#[derive(Debug)]
pub(crate) struct Frameworks {
    folder: PathBuf,
    node: PathBuf,
    /// False without a Python that is new enough.
    has_python: bool,
}

impl Frameworks {
    /// Installs what `sdk-tests/frameworks` pins. Does nothing, quickly, when it is there.
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

    /// Runs those that are named, or all; also after one has failed.
    pub(crate) fn run(&self, phases: &Phases, instance: &Instance, names: &[String]) -> Result<()> {
        let known = |name: &String| name == COMPUTESDK || IN_PYTHON.iter().any(|framework| framework.name == *name);
        if let Some(stranger) = names.iter().find(|name| !known(name)) {
            bail!("{stranger} is not one of the frameworks");
        }
        let wants = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
        let addresses = instance.environment(By::Addresses)?;
        let wanted = IN_PYTHON.iter().filter(|framework| wants(framework.name));
        let made = wanted.map(|framework| self.in_python(phases, framework, &addresses));
        let mut outcome = made.fold(Ok(()), Result::and);
        if wants(COMPUTESDK) {
            // It makes addresses of sandboxes from names.
            let names = instance.environment(By::Names)?;
            outcome = outcome.and(phases.run(&phase(COMPUTESDK), || self.computesdk(&names)));
        }
        outcome
    }

    fn in_python(&self, phases: &Phases, framework: &Framework, environment: &Environment) -> Result<()> {
        let phase = phase(framework.name);
        if self.has_python {
            return phases.run(&phase, || self.pytest(framework, environment));
        }
        say(&format!("── {phase}: NOT COVERED, this machine has no Python {}", PYTHONS.join(" or ")));
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

fn phase(name: &str) -> String {
    format!("journeys with client frameworks: {name}")
}
