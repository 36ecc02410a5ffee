//! Puts the guest programs into the binary, so that it is all a host needs, and the commit that it is built from. `cargo xtask
//! guest` makes the programs first; a binary built without them says so when it is asked for a template.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    // Where xtask puts them: the target folder of the workspace.
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("../../target"), PathBuf::from);
    for program in ["hearth-init", "envd"] {
        embed(&target.join("guest").join(program), &out.join(program));
    }
    println!("cargo::rustc-env=BUILT_FROM_COMMIT={}", commit().unwrap_or_else(|| "unknown".to_owned()));
}

/// The commit of the working tree; `None` where there is no repository, as in an unpacked archive.
fn commit() -> Option<String> {
    // It is appended to at every commit and every move to another one.
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
