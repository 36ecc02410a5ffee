//! Renders the checklist as a Markdown page.

use std::fmt::Write as _;

use super::lines::Checklist;
use super::markers::{Language, Proof};

/// Renders the whole page.
pub(super) fn render(checklist: &Checklist, proofs: &[Proof]) -> String {
    let mut page = checklist.head.to_owned();
    for group in checklist.groups {
        // Writing to a `String` cannot fail.
        let _ = write!(page, "\n## {}\n\n| line | what | tests |\n|---|---|---|\n", group.name);
        for line in group.lines {
            let mut cell: Vec<String> =
                Language::ALL.into_iter().filter_map(|language| tests(language, line.id, proofs)).collect();
            if !line.unimplemented.is_empty() {
                cell.push(format!("*Not implemented:* {}", line.unimplemented));
            }
            let _ = writeln!(page, "| {} | {} | {} |", line.id, line.what, cell.join("<br>"));
        }
    }
    page
}

/// Links to the tests of one line in one language, in the order of the files.
fn tests(language: Language, id: &str, proofs: &[Proof]) -> Option<String> {
    let proofs = proofs.iter().filter(|proof| proof.language == language && proof.proves(id));
    let links: Vec<String> = proofs.map(|proof| format!("[{}](../{})", escape(&proof.test), proof.path)).collect();
    (!links.is_empty()).then(|| format!("{}: {}", language.name(), links.join(", ")))
}

/// Escapes a name for a link text in a Markdown table.
fn escape(name: &str) -> String {
    let mut escaped = String::new();
    for sign in name.chars() {
        if "\\`*_[]<>|".contains(sign) {
            escaped.push('\\');
        }
        escaped.push(sign);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::lines::{Group, Line};
    use super::*;

    #[test]
    fn a_row_lists_all_languages_and_the_missing_part() {
        let proof = |language, path: &str, test: &str| Proof {
            lines: vec!["C1".to_owned()],
            language,
            path: path.to_owned(),
            test: test.to_owned(),
        };
        let proofs = [
            proof(Language::Rust, "crates/a.rs", "one_two"),
            proof(Language::Rust, "crates/b.rs", "three"),
            proof(Language::JavaScript, "sdk-tests/c.js", "a | b"),
        ];
        const LINES: &[Line] = &[
            Line { id: "C1", what: "it works", needs: &[], unimplemented: "the rest" },
            Line { id: "C2", what: "later", needs: &[], unimplemented: "not built" },
        ];
        let groups = &[Group { name: "Commands", lines: LINES }];
        let checklist = Checklist { marker: "envd:", page: "page.md", head: "# Head\n", groups, folders: &[] };
        let page = render(&checklist, &proofs);
        let table = page.split_once("# Head\n\n## Commands\n\n").expect("a heading").1;
        assert_eq!(
            table,
            "| line | what | tests |\n|---|---|---|\n\
            | C1 | it works | Rust: [one\\_two](../crates/a.rs), [three](../crates/b.rs)<br>JavaScript: [a \\| b](../sdk-tests/c.js)\
            <br>*Not implemented:* the rest |\n| C2 | later | *Not implemented:* not built |\n"
        );
    }
}
