//! Layer check: the rules of ARCHITECTURE.md that a program can check.
//!
//! [`table`] is the architecture's table of crates, [`graph`] checks imports between crates, [`sources`] checks the
//! text of source files. Both are pure functions from plain values to findings; only this file calls cargo and reads
//! folders.

use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use graph::{Crate, Import, ImportKind};

use crate::files;

mod graph;
mod sources;
mod table;

/// Checks the whole workspace and reports every finding.
pub(crate) fn run(root: &Path) -> Result<()> {
    // Without dependencies: the manifests contain the imports, and no registry is queried.
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("reading the workspace with `cargo metadata`")?;
    let crates = crates(&metadata, root)?;
    let mut findings = graph::findings(&crates);
    let mut files = 0_usize;
    for member in &crates {
        for source in files::read(root, &member.folder, "rs")? {
            files += 1;
            findings.extend(sources::findings(member, &source));
        }
    }
    if files == 0 {
        bail!("no source file was found below {}: the check would be empty", root.display());
    }
    if findings.is_empty() {
        println!("{} crates and {files} files follow the architecture", crates.len());
        return Ok(());
    }
    for finding in &findings {
        println!("{finding}");
    }
    bail!("{} findings against ARCHITECTURE.md", findings.len());
}

/// Converts the workspace's members to plain values.
fn crates(metadata: &Metadata, root: &Path) -> Result<Vec<Crate>> {
    let mut crates = Vec::new();
    for package in metadata.workspace_packages() {
        let folder = package.manifest_path.parent().context("a manifest is in a folder")?;
        let folder = folder.strip_prefix(root).with_context(|| format!("{folder} is outside of the repository"))?;
        let imports = package.dependencies.iter().map(|dependency| Import {
            package: dependency.name.clone(),
            is_member: dependency.path.is_some(),
            kind: match dependency.kind {
                DependencyKind::Development => ImportKind::Tests,
                _ => ImportKind::Code,
            },
        });
        let roots = package.targets.iter().filter(|target| target.is_lib() || target.is_bin());
        let roots = roots.filter_map(|target| target.src_path.strip_prefix(root).ok().map(ToString::to_string));
        crates.push(Crate {
            package: package.name.to_string(),
            folder: folder.to_string(),
            roots: roots.collect(),
            imports: imports.collect(),
        });
    }
    Ok(crates)
}
