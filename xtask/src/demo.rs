//! Runs the README's samples, each with its official SDK, on a private server.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::check::Build;
use crate::instance::{Addressing, Instance};
use crate::phases::{Phases, print_line};
use crate::sdk::Sdks;

/// Samples; a test of the `hearth` crate checks that the README contains exactly these.
const PYTHON: &str = "docs/samples/quickstart.py";
const JAVASCRIPT: &str = "docs/samples/quickstart.mjs";

/// Runs both samples and prints their source and output.
pub(crate) fn run(root: &Path, phases: &Phases) -> Result<()> {
    let sdks = phases.run("official SDKs", || Sdks::ensure(root))?;
    let instance = phases.run("private server", || Instance::start(root, Build::Release, "demo"))?;
    let environment = instance.environment(Addressing::Addresses)?;
    let (mut python, mut node) = (sdks.python(), sdks.node());
    node.arg("--input-type=module");
    let shown = phases
        .run("the Python SDK", || show(python.envs(environment.iter().cloned()), &root.join(PYTHON)))
        .and_then(|()| phases.run("the JavaScript SDK", || show(node.envs(environment), &root.join(JAVASCRIPT))));
    let stopped = phases.run("stop, check for leftovers", || instance.stop());
    shown.and(stopped)
}

/// Prints a program and runs it.
///
/// The interpreter reads the program from its standard input, so it searches packages in its working directory, where
/// the SDK is installed.
fn show(interpreter: &mut Command, program: &Path) -> Result<()> {
    let text = fs::read_to_string(program).with_context(|| format!("reading {}", program.display()))?;
    for line in text.lines() {
        print_line(&format!("    | {line}"));
    }
    let input = fs::File::open(program).with_context(|| format!("opening {}", program.display()))?;
    let status = interpreter.arg("-").stdin(Stdio::from(input)).status();
    let status = status.with_context(|| format!("starting {interpreter:?}"))?;
    if !status.success() {
        bail!("{} failed: {status}", program.display());
    }
    Ok(())
}
