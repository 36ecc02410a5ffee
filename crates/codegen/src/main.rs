//! Generates Rust from Protobuf definitions: `hearth-codegen INCLUDE OUT FILE...`.
//!
//! It is a separate program and not a part of the xtask, so that `make up` compiles neither the code generator nor the
//! Protobuf compiler. `cargo xtask codegen` calls it.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [include, out, files @ ..] = paths.as_slice() else {
        bail!("usage: hearth-codegen INCLUDE OUT FILE...");
    };
    generate(include, out, files).with_context(|| format!("generating {}", out.display()))
}

/// Writes the module generated from `files`, which are below the folder `include`, into the folder `out`.
fn generate(include: &Path, out: &Path, files: &[PathBuf]) -> Result<()> {
    // protox retains the source comments and needs no protoc on the machine.
    let mut compiler = protox::Compiler::new([include])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(files)?;
    let descriptor_file = out.join("descriptor.bin");
    fs::write(&descriptor_file, compiler.encode_file_descriptor_set())?;
    let names: Vec<PathBuf> =
        files.iter().map(|file| file.strip_prefix(include).map(Path::to_path_buf)).collect::<Result<_, _>>()?;
    connectrpc_build::Config::new()
        .descriptor_set(&descriptor_file)
        .files(&names)
        .out_dir(out)
        .include_file("mod.rs")
        .emit_rerun_directives(false)
        .compile()?;
    fs::remove_file(&descriptor_file)?;
    Ok(())
}
