//! The guest daemon's acceptance checklist, with the tests that prove each line.
//!
//! A comment directly above a test names the lines that it proves: `envd: C7, C15`. [`lines`] is the checklist,
//! [`markers`] finds the comments in a source file's text and the test below each, [`page`] renders the table. All
//! three are pure; only this file reads folders and writes `docs/envd-checklist.md`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lines::GROUPS;
use markers::{Language, Proof};

mod lines;
mod markers;
mod page;

const PAGE: &str = "docs/envd-checklist.md";
/// Folders with tests, relative to the root, and the language of the test files.
const TEST_FOLDERS: [(&str, Language); 3] = [
    ("crates", Language::Rust),
    ("sdk-tests/python/tests", Language::Python),
    ("sdk-tests/js/tests", Language::JavaScript),
];

/// Writes the table, or compares it with the committed one when `check` is set.
///
/// # Errors
/// In both cases: a marker names an unknown line or has no test below it, or a line has neither a test nor a reason.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let mut proofs = Vec::new();
    let mut findings = Vec::new();
    for (folder, language) in TEST_FOLDERS {
        for path in files(&root.join(folder), language.extension())? {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            let found = markers::scan(language, &path, &text);
            proofs.extend(found.proofs);
            findings.extend(found.findings);
        }
    }
    if proofs.is_empty() {
        bail!("no test below {} names a line of the checklist: the check would be empty", root.display());
    }
    findings.extend(unproven(&proofs));
    let page = page::render(GROUPS, &proofs);
    let file = root.join(PAGE);
    if !check {
        fs::write(&file, page).with_context(|| format!("writing {PAGE}"))?;
    } else if fs::read_to_string(&file).ok().as_deref() != Some(page.as_str()) {
        findings.push(format!("{PAGE} is stale, run `cargo xtask checklist`"));
    }
    if findings.is_empty() {
        let lines: usize = GROUPS.iter().map(|group| group.lines.len()).sum();
        println!("{lines} lines, proven by {} tests", proofs.len());
        return Ok(());
    }
    for finding in &findings {
        println!("{finding}");
    }
    bail!("{} findings against the checklist", findings.len());
}

/// Returns a finding for each line without a test and without a reason.
fn unproven(proofs: &[Proof]) -> Vec<String> {
    let lines = GROUPS.iter().flat_map(|group| group.lines);
    let open = lines.filter(|line| line.unimplemented.is_empty() && !proofs.iter().any(|proof| proof.proves(line.id)));
    open.map(|line| format!("{} has no test and no reason: {}", line.id, line.what)).collect()
}

/// Lists the files with an extension below a folder, sorted by path.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries: Vec<_> = fs::read_dir(&folder)
            .and_then(Iterator::collect::<Result<_, _>>)
            .with_context(|| format!("listing {}", folder.display()))?;
        for entry in entries {
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_exists_once() {
        let ids: Vec<&str> = GROUPS.iter().flat_map(|group| group.lines).map(|line| line.id).collect();
        let expected = [("C", 19), ("P", 5), ("F", 16), ("W", 8), ("S", 10), ("X", 10)];
        let expected: Vec<String> = expected
            .iter()
            .flat_map(|(group, last)| (1..=*last).map(move |number| format!("{group}{number}")))
            .collect();
        assert_eq!(ids, expected);
    }

    #[test]
    fn a_line_needs_a_test_or_a_reason() {
        let proof = |ids: &[&str]| Proof {
            lines: ids.iter().map(|id| (*id).to_owned()).collect(),
            language: Language::Rust,
            path: "a.rs".to_owned(),
            test: "test".to_owned(),
        };
        let all: Vec<&str> = GROUPS.iter().flat_map(|group| group.lines).map(|line| line.id).collect();
        assert_eq!(unproven(&[proof(&all)]), Vec::<String>::new());
        let without: Vec<&str> = all.iter().copied().filter(|id| !["C7", "X10"].contains(id)).collect();
        let open = unproven(&[proof(&without)]);
        assert!(open.len() == 1 && open[0].starts_with("C7 "), "{open:?}");
    }

    #[test]
    fn a_page_is_checked_against_the_tests() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        for folder in ["crates/x/tests", "sdk-tests/python/tests", "sdk-tests/js/tests", "docs"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let ids: Vec<&str> = GROUPS.iter().flat_map(|group| group.lines).map(|line| line.id).collect();
        let source = |marker: &str, name: &str| {
            let text = format!("// envd: {marker}\n#[test]\nfn {name}() {{}}\n");
            fs::write(root.join("crates/x/tests/all.rs"), text).expect("a file");
        };
        source(&ids.join(", "), "everything");
        assert!(run(root, true).is_err(), "there is no page yet");
        run(root, false).expect("all lines are proven");
        run(root, true).expect("the page is current");
        source(&ids.join(", "), "renamed");
        assert!(run(root, true).is_err(), "the page is stale");
        for marker in ["C1", "C0"] {
            source(marker, "everything");
            assert!(run(root, false).is_err(), "{marker} is not enough");
        }
    }
}
