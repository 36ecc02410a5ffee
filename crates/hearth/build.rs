//! Embeds the guest programs and the Git commit in the binary, so that a host needs no other file.
//!
//! `cargo xtask guest` builds the programs first. A binary without them fails with an error when it has to build a
//! template.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    // xtask writes the programs to the target folder of the workspace.
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("../../target"), PathBuf::from);
    for program in ["hearth-init", "envd", "hearth-interpreter"] {
        embed(&target.join("guest").join(program), &out.join(program));
    }
    println!("cargo::rustc-env=BUILT_FROM_COMMIT={}", commit().unwrap_or_else(|| "unknown".to_owned()));
}

/// Returns the commit of the working tree; `None` without a repository, as in an unpacked archive.
fn commit() -> Option<String> {
    // Git appends to this file at every commit and checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    println!("cargo::rerun-if-changed={log}");
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}

fn embed(from: &Path, to: &Path) {
    println!("cargo::rerun-if-changed={}", from.display());
    let bytes = fs::read(from).unwrap_or_default();
    if bytes.is_empty() {
        println!("cargo::warning={} is missing: run `cargo xtask guest` first to embed it", from.display());
    }
    fs::write(to, bytes).expect("OUT_DIR is writable");
}
