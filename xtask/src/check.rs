//! What is checked without running anything of ours, and all tests.

use std::path::Path;

use anyhow::Result;

use crate::phases::{Phases, cargo, run};
use crate::tools::{DENY, NEXTEST};
use crate::{codegen, guest, layers, sdk};

/// Formatting, lints, layers, generated code, licences.
pub(crate) fn check(root: &Path, phases: &Phases) -> Result<()> {
    phases.run("format", || run(cargo().current_dir(root).args(["fmt", "--all", "--check"])))?;
    phases.run("layers", || layers::run(root))?;
    phases.run("generated code", || codegen::run(root, true))?;
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
    build_all(root, phases)?;
    phases.run("tests", || run(NEXTEST.command(root)?.args(["run", "--locked", "--workspace"])))?;
    sdk::test(root, phases, &sdk::Selection::default())
}

/// The programs of the guest and the one binary, as they are shipped.
pub(crate) fn build_all(root: &Path, phases: &Phases) -> Result<()> {
    phases.run("guest programs", || guest::run(root))?;
    phases.run("hearth, release build", || {
        run(cargo().current_dir(root).args(["build", "--release", "--locked", "-p", "hearth"]))
    })
}

/// The benchmark of the testkit, on the release binary.
pub(crate) fn bench(root: &Path, arguments: &[String]) -> Result<()> {
    let mut bench = cargo();
    bench.current_dir(root).args([
        "run",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "hearth-testkit",
        "--bin",
        "hearth-bench",
    ]);
    run(bench.arg("--").args(arguments).arg(root.join("target/release/hearth")))
}
