//! Embeds the recipes of `guest/recipes`, so that a host needs no other file.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let recipes = manifest.join("../../guest/recipes").canonicalize().expect("the recipes are part of the repository");
    // Cargo scans the whole folder.
    println!("cargo::rerun-if-changed={}", recipes.display());
    let mut files = Vec::new();
    collect(&recipes, &mut files);
    files.sort();
    let mut list = String::from("&[\n");
    for file in &files {
        let relative = file.strip_prefix(&recipes).expect("it is below the folder");
        let (recipe, path) = relative.to_str().and_then(|path| path.split_once('/')).expect("a file of a recipe");
        let mode = fs::metadata(file).expect("it was listed").permissions().mode();
        let executable = mode & 0o100 != 0;
        let file = file.to_str().expect("a path in UTF-8");
        writeln!(
            list,
            "    File {{ recipe: {recipe:?}, path: {path:?}, executable: {executable}, bytes: include_bytes!({file:?}) }},"
        )
        .expect("writing to memory does not fail");
    }
    list.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("recipes.rs"), list).expect("OUT_DIR is writable");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}
