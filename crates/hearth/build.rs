//! Puts the guest programs into the binary, so that it is all a host needs. `cargo xtask guest` makes them first; a binary
//! built without them says so when it is asked for a template.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    // Where xtask puts them: the target folder of the workspace.
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("../../target"), PathBuf::from);
    for program in ["hearth-init", "envd"] {
        embed(&target.join("guest").join(program), &out.join(program));
    }
}

fn embed(from: &Path, to: &Path) {
    println!("cargo::rerun-if-changed={}", from.display());
    let bytes = fs::read(from).unwrap_or_default();
    if bytes.is_empty() {
        println!("cargo::warning={} is missing: run `cargo xtask guest` first to embed it", from.display());
    }
    fs::write(to, bytes).expect("OUT_DIR is writable");
}
