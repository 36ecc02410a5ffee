//! Static checks, all tests, and the builds that they need.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::phases::{Phases, cargo, run};
use crate::tools::{DENY, NEXTEST};
use crate::{checklist, codegen, fuzz, guest, kernel_tests, kernels, layers, prose, sdk};

/// Runs the static checks: formatting, layers, language, generated code, acceptance checklists, licences, lints.
pub(crate) fn check(root: &Path, phases: &Phases) -> Result<()> {
    phases.run("format", || run(cargo().current_dir(root).args(["fmt", "--all", "--check"])))?;
    phases.run("layers", || layers::run(root))?;
    phases.run("prose", || prose::run(root))?;
    phases.run("generated code", || codegen::run(root, true))?;
    phases.run("acceptance checklists", || checklist::run(root, true))?;
    phases.run("licences, bans, sources", || {
        run(DENY.command(root)?.args(["--log-level", "warn", "check", "licenses", "bans", "sources"]))
    })?;
    phases.run("lints", || {
        let arguments = ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
        run(cargo().current_dir(root).args(arguments))
    })
}

/// Runs all checks and all tests, as CI does.
pub(crate) fn test(root: &Path, phases: &Phases) -> Result<()> {
    phases.run("guest programs", || guest::run(root))?;
    check(root, phases)?;
    build_all(root, phases, Build::Debug)?;
    // Before the tests: one of them uses a login provider that is installed with the SDKs.
    phases.run("official SDKs", || sdk::Sdks::ensure(root).map(drop))?;
    phases.run("language kernels", || kernels::ensure(root))?;
    phases.run("tests", || run(NEXTEST.command(root)?.args(["run", "--locked", "--workspace", "--no-fail-fast"])))?;
    phases.run("tests of the language kernels", || kernel_tests::test(root))?;
    fuzz::test(root, phases, &fuzz::Selection::default())?;
    sdk::test(root, phases, Build::Debug, &sdk::Selection::default())
}

/// Build profile of the `hearth` binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// Profile of the tests, so that they need no second build; slower, with overflow checks.
    Debug,
    /// Profile of `make up`: optimized as far as the build does not take minutes.
    Release,
    /// Profile of releases and benchmarks: fully optimized.
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

/// Builds the guest programs with their release profile, and the `hearth` binary.
pub(crate) fn build_all(root: &Path, phases: &Phases, build: Build) -> Result<()> {
    phases.run("guest programs", || guest::run(root))?;
    let (name, arguments): (_, &[&str]) = match build {
        // Select one test too, so that cargo uses the features of the tests: shared dependencies are then compiled only
        // once.
        Build::Debug => ("hearth, debug build", &["--workspace", "--bin", "hearth", "--test", "packages"]),
        Build::Release => ("hearth, release build", &["-p", "hearth", "--release"]),
        Build::Dist => ("hearth, build for distribution", &["-p", "hearth", "--profile", "dist"]),
    };
    phases.run(name, || run(cargo().current_dir(root).args(["build", "--locked"]).args(arguments)))
}

/// Runs the benchmark of the testkit on the fully optimized binary.
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
