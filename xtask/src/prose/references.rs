//! Rules about references in Markdown files: links to files, and tests that prove a statement.

use crate::files::TextFile;

/// Section of ARCHITECTURE.md whose numbered statements each name a test.
const PROVED_SECTION: &str = "## What is always true";

/// Returns the targets of relative links, with their line numbers; fragments are cut off.
pub(super) fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let Some((target, _)) = rest.split_once(')') else { continue };
            let target = target.split(['#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                links.push((at + 1, target));
            }
        }
    }
    links
}

/// Returns the tests that a text names as `` `file#test` ``, with their line numbers.
pub(super) fn tests(text: &str) -> Vec<(usize, &str, &str)> {
    let mut tests = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for code in line.split('`').skip(1).step_by(2) {
            if let Some((file, test)) = code.split_once('#')
                && file.ends_with(".rs") | file.ends_with(".py") | file.ends_with(".js")
            {
                tests.push((at + 1, file, test));
            }
        }
    }
    tests
}

/// Returns whether a source file defines the test.
pub(super) fn defines(source: &str, test: &str) -> bool {
    [format!("fn {test}("), format!("def {test}("), format!("test('{test}'")].iter().any(|head| source.contains(head))
}

/// Returns the line numbers of numbered statements in [`PROVED_SECTION`] that name no test.
pub(super) fn unproved(file: &TextFile) -> Vec<usize> {
    let mut unproved = Vec::new();
    let lines = file.text.lines().enumerate().skip_while(|(_, line)| *line != PROVED_SECTION).skip(1);
    let section: Vec<(usize, &str)> = lines.take_while(|(_, line)| !line.starts_with("## ")).collect();
    let is_start = |line: &str| line.split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok());
    let mut at = 0;
    while at < section.len() {
        let (line, text) = section[at];
        at += 1;
        if is_start(text) {
            let rest = &section[at..];
            let length = rest.iter().position(|(_, line)| is_start(line)).unwrap_or(rest.len());
            let body: Vec<&str> = std::iter::once(text).chain(rest[..length].iter().map(|(_, line)| *line)).collect();
            if tests(&body.join("\n")).is_empty() {
                unproved.push(line + 1);
            }
        }
    }
    unproved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_links() {
        let text = "[a](docs/a.md#part) ![b](b.svg) [c](https://example.com)\n```\n[d](d.md)\n```\n[e](#here)";
        assert_eq!(links(text), [(1, "docs/a.md"), (1, "b.svg")]);
    }

    #[test]
    fn named_tests() {
        assert_eq!(tests("`a.rs` and\n`b/c.rs#works`, `x#y`"), [(2, "b/c.rs", "works")]);
        assert!(defines("async fn works() {", "works"));
        assert!(!defines("fn works_not() {", "works"));
    }

    #[test]
    fn statements_without_a_test() {
        let text = "# A\n\n1. Free.\n\n## What is always true\n\n1. One.\n   Test: `a.rs#b`.\n2. Two.\n   More.\n\n## Next\n\n3. Three.";
        let file = TextFile { path: "ARCHITECTURE.md".to_owned(), text: text.to_owned() };
        assert_eq!(unproved(&file), [9]);
    }
}
