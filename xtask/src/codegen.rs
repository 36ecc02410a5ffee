//! Protobuf definitions become committed Rust code, and the handlers of the API its committed description; `--check`
//! compares instead of writing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::phases::{cargo, output};

/// One generated module: which definitions go into which crate.
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

/// What the API says of itself, as served.
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

/// The document of the handlers as they are now. Only the API's crate is built for it.
fn openapi(root: &Path) -> Result<String> {
    let arguments = ["run", "--quiet", "--locked", "-p", "hearth-api", "--bin", "hearth-openapi"];
    output(cargo().current_dir(root).args(arguments)).context("asking the API for its description")
}

fn generate(root: &Path, target: &Target, out: &Path) -> Result<()> {
    let files: Vec<PathBuf> = target.files.iter().map(|file| root.join(file)).collect();
    let include = root.join(target.include_dir);
    // protox keeps the source comments and needs no protoc on the machine.
    let mut compiler = protox::Compiler::new([&include])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(&files)?;
    let descriptor_file = out.join("descriptor.bin");
    fs::write(&descriptor_file, compiler.encode_file_descriptor_set())?;
    let names: Vec<PathBuf> =
        files.iter().map(|file| file.strip_prefix(&include).map(Path::to_path_buf)).collect::<Result<_, _>>()?;
    connectrpc_build::Config::new()
        .descriptor_set(&descriptor_file)
        .files(&names)
        .out_dir(out)
        .include_file("mod.rs")
        .emit_rerun_directives(false)
        .compile()
        .with_context(|| format!("generating {}", target.out_dir))?;
    fs::remove_file(&descriptor_file)?;
    Ok(())
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
