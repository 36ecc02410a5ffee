//! Rules about doc comments and names in Rust files.
//!
//! Files are read as tokens, in which a doc comment is an attribute: text in strings and examples is never mistaken for one.

use std::str::FromStr;

use proc_macro2::{Delimiter, Group, Literal, TokenStream, TokenTree};

use super::words;
use crate::files::TextFile;

/// Length limit of a doc comment's first paragraph, in characters: one line, shown as the summary in lists of items.
const SUMMARY_MAX: usize = 120;
/// Keywords whose next token is the name of a type or module.
const NAMED_ITEMS: &[&str] = &["struct", "enum", "trait", "union", "type", "mod"];

/// Result of checking one file.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Doc comments found, whether good or bad.
    pub(super) doc_comments: usize,
    /// One `path:line: text` for each violation.
    pub(super) findings: Vec<String>,
}

/// Consecutive lines of one doc comment.
#[derive(Debug)]
struct DocComment {
    is_inner: bool,
    /// Line number of the first line.
    line: usize,
    lines: Vec<String>,
}

/// Checks the doc comments and the names of types and modules in one Rust file.
pub(super) fn check(file: &TextFile) -> Report {
    let mut report = Report::default();
    match TokenStream::from_str(&file.text) {
        Ok(tokens) => walk(tokens, &file.path, &mut report),
        Err(error) => report.findings.push(format!("{}:1: this is not Rust: {error}", file.path)),
    }
    report
}

fn walk(tokens: TokenStream, path: &str, report: &mut Report) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut comment: Option<DocComment> = None;
    let mut at = 0;
    while at < tokens.len() {
        if let Some(doc) = doc_line(&tokens[at..]) {
            at += doc.tokens;
            match &mut comment {
                Some(comment) if comment.is_inner == doc.is_inner => comment.lines.push(doc.text),
                _ => {
                    let next = DocComment { is_inner: doc.is_inner, line: doc.line, lines: vec![doc.text] };
                    if let Some(finished) = comment.replace(next) {
                        judge_comment(&finished, path, report);
                    }
                }
            }
            continue;
        }
        if let Some(comment) = comment.take() {
            judge_comment(&comment, path, report);
        }
        match &tokens[at] {
            TokenTree::Group(group) => walk(group.stream(), path, report),
            TokenTree::Ident(keyword) if NAMED_ITEMS.iter().any(|item| keyword == item) => {
                if let Some(TokenTree::Ident(name)) = tokens.get(at + 1)
                    && let Some((forbidden, instead)) = words::forbidden_name(&name.to_string())
                {
                    let line = name.span().start().line;
                    let text = format!("`{name}`: `{forbidden}` is not in the glossary, use `{instead}`");
                    report.findings.push(format!("{path}:{line}: {text}"));
                }
            }
            _ => {}
        }
        at += 1;
    }
    if let Some(comment) = comment {
        judge_comment(&comment, path, report);
    }
}

/// One line of a doc comment, which is one attribute.
struct DocLine {
    /// Number of tokens of the attribute.
    tokens: usize,
    is_inner: bool,
    line: usize,
    text: String,
}

/// Returns the doc attribute at the start of `tokens`.
fn doc_line(tokens: &[TokenTree]) -> Option<DocLine> {
    let is =
        |token: &TokenTree, expected: char| matches!(token, TokenTree::Punct(punct) if punct.as_char() == expected);
    let (length, attribute) = match tokens {
        [hash, bang, TokenTree::Group(group), ..] if is(hash, '#') && is(bang, '!') => (3, group),
        [hash, TokenTree::Group(group), ..] if is(hash, '#') => (2, group),
        _ => return None,
    };
    let line = attribute.span_open().start().line;
    Some(DocLine { tokens: length, is_inner: length == 3, line, text: doc_text(attribute)? })
}

/// Returns the text of `[doc = "text"]`.
fn doc_text(attribute: &Group) -> Option<String> {
    if attribute.delimiter() != Delimiter::Bracket {
        return None;
    }
    let mut tokens = attribute.stream().into_iter();
    match (tokens.next()?, tokens.next()?, tokens.next()?) {
        (TokenTree::Ident(name), TokenTree::Punct(_), TokenTree::Literal(text)) if name == "doc" => {
            Some(unquote(&text))
        }
        _ => None,
    }
}

/// Returns a string literal's text without its quotes; escapes stay, because no rule looks at escaped characters.
fn unquote(literal: &Literal) -> String {
    let text = literal.to_string();
    let text = text.trim_start_matches('r').trim_matches('#');
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).to_owned()
}

fn judge_comment(comment: &DocComment, path: &str, report: &mut Report) {
    report.doc_comments += 1;
    let mut find = |line: usize, text: &str| report.findings.push(format!("{path}:{line}: {text}"));
    let paragraph = comment.lines.iter().map(|line| line.trim()).skip_while(|line| line.is_empty());
    let paragraph = paragraph.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    if let Some(word) = words::forbidden_opening(&paragraph) {
        let text = format!("a doc comment opens with a noun phrase or a third-person verb, not with `{word}`");
        find(comment.line, &text);
    }
    let is_prose = !paragraph.starts_with(['|', '-', '`']);
    let length = paragraph.chars().count();
    if is_prose && length > SUMMARY_MAX {
        let text = format!(
            "the first paragraph has {length} characters: at most {SUMMARY_MAX}, then a blank line and details"
        );
        find(comment.line, &text);
    }
    for (offset, line) in comment.lines.iter().enumerate() {
        if let Some(word) = words::first_person(line) {
            find(comment.line + offset, &words::first_person_finding(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str, expected: &[&str]) {
        let found = check(&TextFile { path: "a.rs".to_owned(), text: text.to_owned() }).findings;
        assert_eq!(found.len(), expected.len(), "{text}\n{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{text}\n`{found}` has no `{expected}`");
        }
    }

    #[test]
    fn doc_comments_are_judged_and_other_text_is_not() {
        check_text("//! What it is.\n\nmod a;", &["a.rs:1: a doc comment opens"]);
        check_text("struct A {\n    /// How much.\n    b: u8,\n}", &["a.rs:2: a doc comment opens"]);
        check_text("/// Limit of A.\n///\n/// What follows is free.\nstruct A;", &[]);
        check_text("const A: &str = \"/// What\"; // What\nfn f() { g(r#\"\n/// We\n\"#) }", &[]);
        check_text("/// Limit.\n/// We say.\nstruct A;", &["a.rs:2: `we`"]);
        check_text("//! Words.\n\n/// How many.\nstruct A;", &["a.rs:3: a doc comment opens"]);
    }

    #[test]
    fn summaries_are_one_line() {
        let long = "word ".repeat(SUMMARY_MAX / 5);
        check_text(&format!("/// {long}\n/// and more.\nstruct A;"), &["first paragraph has 129 characters"]);
        check_text(&format!("/// {long}\n///\n/// and more.\nstruct A;"), &[]);
    }

    #[test]
    fn names_keep_to_the_glossary() {
        check_text("pub(crate) struct Seat;\nmod border;", &["a.rs:1: `Seat`", "a.rs:2: `border`"]);
        check_text("struct Reservation; fn seat() {}", &[]);
    }
}
