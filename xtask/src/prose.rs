//! The prose check: rules about language that a machine can see.
//!
//! [`comments`] judges doc comments and names in Rust files, [`references`] finds links and names of tests in Markdown, [`words`]
//! holds the word lists and judges plain text. All are pure functions of text; only this file reads the repository.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::files::{self, TextFile};

mod comments;
mod references;
mod words;

/// Folders with Rust files.
const RUST: &[&str] = &["crates", "fuzz", "guest", "xtask"];
/// Files and folders that users read, with the extension of the files meant.
const TEXTS: &[(&str, &str)] = &[
    ("README.md", "md"),
    ("ARCHITECTURE.md", "md"),
    ("docs", "md"),
    ("release-notes", "md"),
    ("spec/openapi.yaml", "yaml"),
    ("proto/cluster", "proto"),
];

/// Checks all doc comments, public names and user-facing texts, and prints every finding.
///
/// # Errors
///
/// Fails if there are findings, or if no doc comment was found at all.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    let mut doc_comments = 0;
    for folder in RUST {
        for file in files::read(root, folder, "rs")? {
            let report = comments::check(&file);
            doc_comments += report.doc_comments;
            findings.extend(report.findings);
        }
    }
    for (path, extension) in TEXTS {
        for file in files::read(root, path, extension)? {
            check_text(root, &file, &mut findings);
        }
    }
    if doc_comments == 0 {
        bail!("no doc comment was found below {}: the check would be empty", root.display());
    }
    if findings.is_empty() {
        println!("{doc_comments} doc comments keep to the rules");
        return Ok(());
    }
    for finding in &findings {
        println!("{finding}");
    }
    bail!("{} findings against the rules of docs/contributing.md, \"Language\"", findings.len());
}

/// Checks one user-facing text: first person, links to files that exist, tests that exist.
fn check_text(root: &Path, file: &TextFile, findings: &mut Vec<String>) {
    let mut find = |line: usize, text: String| findings.push(format!("{}:{line}: {text}", file.path));
    for (at, line) in file.text.lines().enumerate() {
        if let Some(word) = words::first_person(line) {
            find(at + 1, words::first_person_finding(word));
        }
    }
    if !file.path.ends_with(".md") {
        return;
    }
    let folder = root.join(&file.path).parent().map(Path::to_owned).unwrap_or_default();
    for (line, target) in references::links(&file.text) {
        if !folder.join(target).exists() {
            find(line, format!("the link leads to no file: {target}"));
        }
    }
    for (line, path, test) in references::tests(&file.text) {
        let source = fs::read_to_string(root.join(path)).unwrap_or_default();
        if !references::defines(&source, test) {
            find(line, format!("{path} has no test {test}"));
        }
    }
    for line in references::unproved(file) {
        find(line, "the statement names no test".to_owned());
    }
}
