//! Acceptance checklists of the guest programs, with the tests that prove each line.
//!
//! A comment directly above a test names the lines that it proves: `envd: C7, C15`. [`lines`] has the types of a
//! checklist, [`envd`] and [`interpreter`] the checklists, [`markers`] finds the comments in a source file's text and
//! the test below each, [`page`] renders the tables. All of them are pure; only this file reads folders and writes pages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lines::Checklist;
use markers::Proof;

mod envd;
mod interpreter;
mod lines;
mod markers;
mod page;

/// Writes the pages, or compares them with the committed ones when `check` is set.
///
/// # Errors
/// In both cases: a marker names an unknown line or has no test below it, or a line has neither its tests nor a reason.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let outcomes = [envd::CHECKLIST, interpreter::CHECKLIST].map(|checklist| run_one(root, check, &checklist));
    outcomes.into_iter().collect()
}

fn run_one(root: &Path, check: bool, checklist: &Checklist) -> Result<()> {
    let mut proofs = Vec::new();
    let mut findings = Vec::new();
    for (folder, language) in checklist.folders {
        for path in files(&root.join(folder), language.extension())? {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            let found = markers::scan(checklist, *language, &path, &text);
            proofs.extend(found.proofs);
            findings.extend(found.findings);
        }
    }
    let name = checklist.page;
    if proofs.is_empty() {
        bail!("no test below {} names a line of {name}: the check would be empty", root.display());
    }
    findings.extend(unproven(checklist, &proofs));
    let page = page::render(checklist, &proofs);
    let file = root.join(name);
    if !check {
        fs::write(&file, page).with_context(|| format!("writing {name}"))?;
    } else if fs::read_to_string(&file).ok().as_deref() != Some(page.as_str()) {
        findings.push(format!("{name} is stale, run `cargo xtask checklist`"));
    }
    if findings.is_empty() {
        println!("{name}: {} lines, proven by {} tests", checklist.lines().count(), proofs.len());
        return Ok(());
    }
    for finding in &findings {
        println!("{finding}");
    }
    bail!("{} findings against {name}", findings.len());
}

/// Returns a finding for each line without the tests that it needs and without a reason.
fn unproven(checklist: &Checklist, proofs: &[Proof]) -> Vec<String> {
    let mut open = Vec::new();
    for line in checklist.lines().filter(|line| line.unimplemented.is_empty()) {
        let mut proven = proofs.iter().filter(|proof| proof.proves(line.id));
        if line.needs.is_empty() && proven.next().is_none() {
            open.push(format!("{} has no test and no reason: {}", line.id, line.what));
        }
        for language in line.needs {
            if !proofs.iter().any(|proof| proof.proves(line.id) && proof.language == *language) {
                open.push(format!("{} has no test in {}: {}", line.id, language.name(), line.what));
            }
        }
    }
    open
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
    use super::markers::Language;
    use super::*;

    const CHECKLIST: Checklist = envd::CHECKLIST;

    fn all_lines() -> Vec<&'static str> {
        CHECKLIST.lines().map(|line| line.id).collect()
    }

    fn check_lines(checklist: &Checklist, groups: &[(&str, usize)]) {
        let ids: Vec<&str> = checklist.lines().map(|line| line.id).collect();
        let expected: Vec<String> =
            groups.iter().flat_map(|(group, last)| (1..=*last).map(move |number| format!("{group}{number}"))).collect();
        assert_eq!(ids, expected);
    }

    #[test]
    fn every_line_exists_once() {
        check_lines(&envd::CHECKLIST, &[("C", 19), ("P", 5), ("F", 16), ("W", 8), ("S", 10), ("X", 10)]);
        let groups =
            [("T", 4), ("B", 6), ("L", 4), ("E", 1), ("C", 6), ("R", 3), ("D", 3), ("G", 9), ("F", 9), ("U", 2)];
        check_lines(&interpreter::CHECKLIST, &groups);
    }

    #[test]
    fn a_line_needs_a_test_or_a_reason() {
        let proof = |language: Language, ids: &[&str]| Proof {
            lines: ids.iter().map(|id| (*id).to_owned()).collect(),
            language,
            path: "a.rs".to_owned(),
            test: "test".to_owned(),
        };
        assert_eq!(unproven(&CHECKLIST, &[proof(Language::Rust, &all_lines())]), Vec::<String>::new());
        let without: Vec<&str> = all_lines().into_iter().filter(|id| !["C7", "X10"].contains(id)).collect();
        let open = unproven(&CHECKLIST, &[proof(Language::Rust, &without)]);
        assert!(open.len() == 1 && open[0].starts_with("C7 "), "{open:?}");

        let checklist = interpreter::CHECKLIST;
        let all: Vec<&str> = checklist.lines().map(|line| line.id).collect();
        let python = proof(Language::Python, &all);
        let open = unproven(&checklist, std::slice::from_ref(&python));
        assert!(!open.is_empty() && open.iter().all(|line| line.contains("no test in JavaScript")), "{open:?}");
        assert_eq!(unproven(&checklist, &[python, proof(Language::JavaScript, &all)]), Vec::<String>::new());
    }

    #[test]
    fn a_page_is_checked_against_the_tests() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        for folder in ["crates/x/tests", "sdk-tests/python/tests", "sdk-tests/js/tests", "docs"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let ids = all_lines();
        let source = |marker: &str, name: &str| {
            let text = format!("// envd: {marker}\n#[test]\nfn {name}() {{}}\n");
            fs::write(root.join("crates/x/tests/all.rs"), text).expect("a file");
        };
        let run = |check| run_one(root, check, &CHECKLIST);
        source(&ids.join(", "), "everything");
        assert!(run(true).is_err(), "there is no page yet");
        run(false).expect("all lines are proven");
        run(true).expect("the page is current");
        source(&ids.join(", "), "renamed");
        assert!(run(true).is_err(), "the page is stale");
        for marker in ["C1", "C0"] {
            source(marker, "everything");
            assert!(run(false).is_err(), "{marker} is not enough");
        }
    }
}
