//! Finds the comments that name lines of the checklist, and the test below each.
//!
//! It is not a parser: it relies on the layout of this repository's formatted sources, line by line, and reports
//! markers without a test.

use super::lines::Checklist;

/// Programming language of a test file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Rust,
    Python,
    JavaScript,
}

impl Language {
    /// All languages, in the order of the table.
    pub(super) const ALL: [Self; 3] = [Self::Rust, Self::Python, Self::JavaScript];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::Python => "Python",
            Self::JavaScript => "JavaScript",
        }
    }

    pub(super) const fn extension(self) -> &'static str {
        match self {
            Self::Rust => "rs",
            Self::Python => "py",
            Self::JavaScript => "js",
        }
    }

    const fn comment(self) -> &'static str {
        match self {
            Self::Rust | Self::JavaScript => "//",
            Self::Python => "#",
        }
    }
}

/// Test with the checklist lines that it proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) lines: Vec<String>,
    pub(super) language: Language,
    /// Relative to the repository.
    pub(super) path: String,
    pub(super) test: String,
}

impl Proof {
    pub(super) fn proves(&self, id: &str) -> bool {
        self.lines.iter().any(|line| line == id)
    }
}

/// Proofs in a file, and errors in its markers.
#[derive(Debug, Default)]
pub(super) struct ScanResult {
    pub(super) proofs: Vec<Proof>,
    pub(super) findings: Vec<String>,
}

/// Scans the text of one file.
pub(super) fn scan(checklist: &Checklist, language: Language, path: &str, text: &str) -> ScanResult {
    let mut found = ScanResult::default();
    let rows: Vec<&str> = text.lines().collect();
    for (at, row) in rows.iter().enumerate() {
        let Some(names) = marker(checklist.marker, language, row) else { continue };
        let place = format!("{path}:{}", at + 1);
        let mut proven = Vec::new();
        for id in names.split(',').map(str::trim) {
            if checklist.has(id) {
                proven.push(id.to_owned());
            } else {
                found.findings.push(format!("{place}: `{id}` is not a line of the checklist"));
            }
        }
        match test_below(language, &rows[at + 1..]) {
            Some(test) => found.proofs.push(Proof { lines: proven, language, path: path.to_owned(), test }),
            None => found.findings.push(format!("{place}: there is no test directly below this marker")),
        }
    }
    found
}

/// Returns the text after the prefix, if the row is a marker.
fn marker<'a>(prefix: &str, language: Language, row: &'a str) -> Option<&'a str> {
    row.trim_start().strip_prefix(language.comment())?.trim_start().strip_prefix(prefix)
}

fn test_below(language: Language, rows: &[&str]) -> Option<String> {
    match language {
        Language::Rust => rust(rows),
        Language::Python => python(rows),
        Language::JavaScript => javascript(rows),
    }
}

/// Returns the name of a function with a test attribute; comments and other attributes may precede it.
fn rust(rows: &[&str]) -> Option<String> {
    let mut is_test = false;
    for row in rows.iter().map(|row| row.trim()) {
        if let Some(attribute) = row.strip_prefix("#[") {
            let name = attribute.split(|sign| "(]".contains(sign)).next().unwrap_or_default();
            is_test |= name == "test" || name.ends_with("::test");
        } else if !row.starts_with("//") {
            let name = row.strip_prefix("async ").unwrap_or(row).strip_prefix("fn ")?;
            return is_test.then(|| identifier(name));
        }
    }
    None
}

/// Returns the name of a function that begins with `test_`; decorators may precede it, also over several rows.
fn python(rows: &[&str]) -> Option<String> {
    let mut rows = rows.iter().peekable();
    while let Some(row) = rows.next() {
        if row.starts_with('@') {
            // A formatted decorator continues with indented rows and ends with a closing bracket.
            while rows.next_if(|next| next.starts_with([' ', ')', ']'])).is_some() {}
        } else if !row.starts_with('#') {
            let name = row.strip_prefix("async ").unwrap_or(row).strip_prefix("def ")?;
            return name.starts_with("test_").then(|| identifier(name));
        }
    }
    None
}

/// Returns the name in a call of `test`; the cases of `test.each` may precede it, also over several rows.
fn javascript(rows: &[&str]) -> Option<String> {
    let mut rows = rows.iter().map(|row| row.trim()).skip_while(|row| row.starts_with("//"));
    let first = rows.next()?.strip_prefix("test")?;
    if let Some(arguments) = first.strip_prefix('(') {
        return literal(arguments);
    }
    first.strip_prefix('.')?;
    // The name follows the closing bracket of the cases, in the first row or in a later one.
    let named = |row: &str| row.rmatch_indices(")(").find_map(|(at, brackets)| literal(&row[at + brackets.len()..]));
    named(first).or_else(|| rows.find(|row| row.starts_with([']', ')'])).and_then(named))
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|sign| sign.is_alphanumeric() || *sign == '_').collect()
}

/// Parses the string literal at the start of the text.
fn literal(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|sign| "'\"`".contains(*sign))?;
    let mut content = String::new();
    let mut signs = text.chars().skip(1);
    while let Some(sign) = signs.next() {
        match sign {
            '\\' => content.extend(signs.next()),
            _ if sign == quote => return Some(content),
            _ => content.push(sign),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::envd;
    use super::*;

    fn check(language: Language, text: &str, tests: &[(&[&str], &str)], findings: &[&str]) {
        let found = scan(&envd::CHECKLIST, language, "file", text);
        let proofs: Vec<_> = found.proofs.iter().map(|proof| (proof.lines.clone(), proof.test.as_str())).collect();
        let expected: Vec<_> =
            tests.iter().map(|(lines, test)| (lines.iter().map(|line| (*line).to_owned()).collect(), *test)).collect();
        assert_eq!(proofs, expected, "{text}");
        assert_eq!(found.findings, findings, "{text}");
    }

    #[test]
    fn rust_tests() {
        let text = "// envd: C1, C3\n#[tokio::test]\nasync fn output() {\n}\n\n    // envd: S9\n    /// Why.\n    #[test]\n    \
            fn vectors() {}\n// about envd: nothing\nfn helper() {}\n";
        check(Language::Rust, text, &[(&["C1", "C3"], "output"), (&["S9"], "vectors")], &[]);
        let lost = "file:1: there is no test directly below this marker";
        for text in [
            "// envd: C1\nfn helper() {}",
            "// envd: C1\n#[derive(Debug)]\nfn helper() {}",
            "// envd: C1\n\n#[test]\nfn later() {}",
            "// envd: C1\nconst X: u8 = 1;",
            "// envd: C1",
        ] {
            check(Language::Rust, text, &[], &[lost]);
        }
    }

    #[test]
    fn python_tests() {
        let text = "# envd: C2\n@pytest.mark.parametrize(\n    \"text\",\n    [\"(\"],\n)\n@other\ndef test_one(run):\n    pass\n\
            # envd: P1\nasync def test_two():\n";
        check(Language::Python, text, &[(&["C2"], "test_one"), (&["P1"], "test_two")], &[]);
        let lost = "file:1: there is no test directly below this marker";
        for text in ["# envd: C2\ndef helper():", "# envd: C2\n\ndef test_later():", "# envd: C2\nNAME = 1"] {
            check(Language::Python, text, &[], &[lost]);
        }
    }

    #[test]
    fn javascript_tests() {
        let text = "  // envd: F4\n  test('it\\'s `read`', async () => {\n  // envd: F5\n  test.each(['a)(\"x\"', 'b'])('%j comes (back)', \
            async (text) => {\n// envd: F6\n// why\ntest.each([\n  ['a', 1],\n])(\"of several rows\", () => {})\n";
        let tests: [(&[&str], &str); 3] =
            [(&["F4"], "it's `read`"), (&["F5"], "%j comes (back)"), (&["F6"], "of several rows")];
        check(Language::JavaScript, text, &tests, &[]);
        let lost = "file:1: there is no test directly below this marker";
        for text in
            ["// envd: F4\ndescribe('x', () => {", "// envd: F4\n\ntest('later', () => {", "// envd: F4\ntest(name, f)"]
        {
            check(Language::JavaScript, text, &[], &[lost]);
        }
    }

    #[test]
    fn unknown_lines_are_findings() {
        let text = "# envd: C1, C99, nonsense\ndef test_one():\n# envd:\ndef test_two():\n";
        let findings = [
            "file:1: `C99` is not a line of the checklist",
            "file:1: `nonsense` is not a line of the checklist",
            "file:3: `` is not a line of the checklist",
        ];
        check(Language::Python, text, &[(&["C1"], "test_one"), (&[], "test_two")], &findings);
    }
}
