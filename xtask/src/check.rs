//! What is checked without running anything of ours, and all tests.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::phases::{Phases, cargo, run};
use crate::tools::{DENY, NEXTEST};
use crate::{checklist, codegen, fuzz, guest, layers, sdk};

/// Formatting, lints, layers, generated code, the checklist of the guest daemon, licences.
pub(crate) fn check(root: &Path, phases: &Phases) -> Result<()> {
    phases.run("format", || run(cargo().current_dir(root).args(["fmt", "--all", "--check"])))?;
    phases.run("layers", || layers::run(root))?;
    phases.run("generated code", || codegen::run(root, true))?;
    phases.run("acceptance checklist", || checklist::run(root, true))?;
    phases.run("licences, bans, sources", || {
        run(DENY.command(root)?.args(["--log-level", "warn", "check", "licenses", "bans", "sources"]))
    })?;
    phases.run("lints", || {
        let arguments = ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
        run(cargo().current_dir(root).args(arguments))
    })
}

/// Everything: what CI runs.
pub(crate) fn test(root: &Path, phases: &Phases) -> Result<()> {
    phases.run("guest programs", || guest::run(root))?;
    check(root, phases)?;
    build_all(root, phases, Build::Debug)?;
    // Before the tests: one of them logs in at a provider that is installed with the SDKs.
    phases.run("official SDKs", || sdk::Sdks::ensure(root).map(drop))?;
    phases.run("tests", || run(NEXTEST.command(root)?.args(["run", "--locked", "--workspace", "--no-fail-fast"])))?;
    fuzz::test(root, phases, &fuzz::Selection::default())?;
    sdk::test(root, phases, Build::Debug, &sdk::Selection::default())
}

/// Which build of the one binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// What the tests are built with, so that they need no second build: slower, and it checks its own arithmetic.
    Debug,
    /// What `make up` runs: optimized as far as that does not take minutes.
    Release,
    /// What is shipped and measured: optimized as a whole.
    Dist,
}

impl Build {
    pub(crate) fn program(self, root: &Path) -> PathBuf {
        let folder = match self {
            Self::Debug => "target/debug",
            Self::Release => "target/release",
            Self::Dist => "target/dist",
        };
        root.join(folder).join("hearth")
    }
}

/// The programs of the guest, as they are shipped, and the one binary.
pub(crate) fn build_all(root: &Path, phases: &Phases, build: Build) -> Result<()> {
    phases.run("guest programs", || guest::run(root))?;
    let (name, arguments): (_, &[&str]) = match build {
        // With the features of the tests, for which cargo has to see one: what both depend on is compiled once then.
        Build::Debug => ("hearth, debug build", &["--workspace", "--bin", "hearth", "--test", "packages"]),
        Build::Release => ("hearth, release build", &["-p", "hearth", "--release"]),
        Build::Dist => ("hearth, build for distribution", &["-p", "hearth", "--profile", "dist"]),
    };
    phases.run(name, || run(cargo().current_dir(root).args(["build", "--locked"]).args(arguments)))
}

/// The benchmark of the testkit, on the binary that is shipped.
pub(crate) fn bench(root: &Path, arguments: &[String]) -> Result<()> {
    let mut bench = cargo();
    bench.current_dir(root).args([
        "run",
        "--quiet",
        "--profile",
        "dist",
        "--locked",
        "-p",
        "hearth-testkit",
        "--bin",
        "hearth-bench",
    ]);
    run(bench.arg("--").args(arguments).arg(Build::Dist.program(root)))
}
