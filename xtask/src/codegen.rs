//! Generates the committed Rust code from Protobuf definitions, and `spec/openapi.yaml` from the API's handlers.
//!
//! `--check` compares instead of writing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::phases::{cargo, output, run as run_child};

/// Generated module: its definitions, and the folder of the crate that contains it.
struct Target {
    include_dir: &'static str,
    files: &'static [&'static str],
    out_dir: &'static str,
}

const TARGETS: &[Target] = &[
    Target {
        include_dir: "proto",
        files: &["proto/cluster/v1/node.proto"],
        out_dir: "crates/cluster-api/src/generated",
    },
    Target {
        include_dir: "proto/envd",
        files: &["proto/envd/process/process.proto", "proto/envd/filesystem/filesystem.proto"],
        out_dir: "crates/envd-api/src/generated",
    },
];

/// OpenAPI document, as the API serves it.
const OPENAPI: &str = "spec/openapi.yaml";

/// Regenerates every target below `root`, or reports the files that differ when `check` is set.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let mut stale = Vec::new();
    for target in TARGETS {
        let fresh = tempfile::tempdir()?;
        generate(root, target, fresh.path())?;
        let committed = root.join(target.out_dir);
        if check {
            stale.extend(differences(fresh.path(), &committed)?);
        } else {
            if committed.exists() {
                fs::remove_dir_all(&committed)?;
            }
            fs::create_dir_all(&committed)?;
            for name in file_names(fresh.path())? {
                fs::copy(fresh.path().join(&name), committed.join(&name))?;
            }
        }
    }
    let document = openapi(root)?;
    let committed = root.join(OPENAPI);
    if !check {
        fs::write(&committed, document).with_context(|| format!("writing {}", committed.display()))?;
    } else if fs::read_to_string(&committed).ok() != Some(document) {
        stale.push(committed.display().to_string());
    }
    if !stale.is_empty() {
        bail!("generated code is stale, run `cargo xtask codegen`: {}", stale.join(", "));
    }
    Ok(())
}

/// Generates the OpenAPI document from the current handlers.
fn openapi(root: &Path) -> Result<String> {
    output(&mut program(root, "hearth-openapi")?).context("generating the OpenAPI document")
}

/// Builds a program of the workspace and returns a command for it.
///
/// One test is selected too, so that cargo uses the features of the workspace's tests. With other features, shared
/// dependencies would be compiled a second time.
fn program(root: &Path, name: &str) -> Result<Command> {
    let arguments = ["build", "--quiet", "--locked", "--workspace", "--bin", name, "--test", "packages"];
    run_child(cargo().current_dir(root).args(arguments))?;
    Ok(Command::new(root.join("target/debug").join(name)))
}

fn generate(root: &Path, target: &Target, out: &Path) -> Result<()> {
    let mut generator = program(root, "hearth-codegen")?;
    generator.arg(root.join(target.include_dir)).arg(out).args(target.files.iter().map(|file| root.join(file)));
    run_child(&mut generator)
}

fn differences(fresh: &Path, committed: &Path) -> Result<Vec<String>> {
    let mut names = file_names(fresh)?;
    names.extend(file_names(committed)?);
    names.sort();
    names.dedup();
    let mut stale = Vec::new();
    for name in names {
        if fs::read(fresh.join(&name)).ok() != fs::read(committed.join(&name)).ok() {
            stale.push(committed.join(&name).display().to_string());
        }
    }
    Ok(stale)
}

fn file_names(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(PathBuf::from(entry?.file_name()));
    }
    names.sort();
    Ok(names)
}
