//! Runs the README's samples, each with its official SDK, on a private server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::check::Build;
use crate::instance::{Addressing, Instance, Template};
use crate::phases::{Phases, print_line, run as run_command};
use crate::sdk::Sdks;

/// Samples; a test of the `hearth` crate checks that the README contains exactly these.
const PYTHON: &str = "docs/samples/quickstart.py";
const JAVASCRIPT: &str = "docs/samples/quickstart.mjs";

/// Session that `--record` draws.
const SESSION: &str = "docs/samples/session.py";

/// Options of `cargo xtask demo`.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Draw a session with the Python SDK as an SVG, such as README.md shows, instead of running the samples
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Use the debug build
    #[arg(long)]
    debug: bool,
}

impl Selection {
    pub(crate) fn build(&self) -> Build {
        if self.debug { Build::Debug } else { Build::Release }
    }
}

/// Runs both samples and prints their source and output, or records a session.
pub(crate) fn run(root: &Path, phases: &Phases, selection: &Selection) -> Result<()> {
    let sdks = phases.run("official SDKs", || Sdks::ensure(root))?;
    let instance = phases.run("private server", || Instance::start(root, selection.build(), "demo", Template::Base))?;
    let environment = instance.environment(Addressing::Addresses)?;
    let (mut python, mut node) = (sdks.python(), sdks.node());
    node.arg("--input-type=module");
    if let Some(picture) = &selection.record {
        let picture = std::path::absolute(picture).context("finding the picture's folder")?;
        python.arg("record.py").arg(root.join(SESSION)).arg(picture).envs(environment);
        let recorded = phases.run("record a session", || run_command(&mut python));
        let stopped = phases.run("stop, look for leftovers", || instance.stop());
        return recorded.and(stopped);
    }
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
