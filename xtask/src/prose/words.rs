//! Word lists of the prose check.

/// First words that make a doc comment a riddle instead of a noun phrase or a statement in the third person.
const OPENINGS: &[&str] = &[
    "what", "whatever", "whether", "who", "whoever", "whom", "whose", "how", "where", "why", "when", "which", "so",
    "as", "that",
];

/// Words of user-facing text that name its authors instead of the product.
const FIRST_PERSON: &[&str] = &["we", "our", "ours", "us"];

/// Words that names of types and modules do not use, each with the word of the glossary in ARCHITECTURE.md.
const NAMES: &[(&str, &str)] = &[
    ("border", "middleware"),
    ("doorkeeper", "login"),
    ("hop", "headers"),
    ("keeper", "the role that it admits"),
    ("obey", "apply"),
    ("remains", "leftovers"),
    ("seat", "reservation"),
    ("seldom", "the condition it waits for"),
    ("sight", "view"),
    ("unanswered", "request error"),
    ("wanted", "desired"),
    ("who", "the kind of caller"),
    ("wish", "request"),
];

/// Returns the first word of a doc comment if it is one that no doc comment opens with.
pub(super) fn forbidden_opening(comment: &str) -> Option<&'static str> {
    let first = words(comment).next()?;
    OPENINGS.iter().find(|opening| first.eq_ignore_ascii_case(opening)).copied()
}

/// Returns the first word of a line that is a first person plural.
///
/// Upper-case abbreviations such as `US` are none, and neither is code in backticks.
pub(super) fn first_person(line: &str) -> Option<&'static str> {
    let prose = line.split('`').step_by(2);
    let mut candidates = prose.flat_map(words).filter(|word| word.chars().skip(1).all(char::is_lowercase));
    candidates.find_map(|word| FIRST_PERSON.iter().find(|person| word.eq_ignore_ascii_case(person)).copied())
}

/// Returns the text of a finding about [`first_person`].
pub(super) fn first_person_finding(word: &str) -> String {
    format!("`{word}`: name the product, the role or the reader instead of the authors")
}

/// Returns a part of a name that the glossary replaces, and its replacement.
///
/// Parts are the words of a `CamelCase` or `snake_case` name.
pub(super) fn forbidden_name(name: &str) -> Option<(&'static str, &'static str)> {
    let parts = parts(name);
    NAMES.iter().find(|(forbidden, _)| parts.iter().any(|part| part == forbidden)).copied()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_alphanumeric() && character != '\'').filter(|word| !word.is_empty())
}

fn parts(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for word in name.split('_') {
        for character in word.chars() {
            match parts.last_mut() {
                Some(part) if !character.is_ascii_uppercase() => part.push(character),
                _ => parts.push(character.to_ascii_lowercase().to_string()),
            }
        }
        parts.push(String::new());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings() {
        assert_eq!(forbidden_opening("What of it was not kept yet."), Some("what"));
        assert_eq!(forbidden_opening("[`Who`] may."), Some("who"));
        assert_eq!(forbidden_opening("So it does."), Some("so"));
        assert_eq!(forbidden_opening("Usage not yet flushed."), None);
        assert_eq!(forbidden_opening("Whatsoever"), None);
        assert_eq!(forbidden_opening(""), None);
    }

    #[test]
    fn persons() {
        assert_eq!(first_person("then we restart"), Some("we"));
        assert_eq!(first_person("Our own key."), Some("our"));
        assert_eq!(first_person("in the US, `us-east-1` of the web"), None);
        assert_eq!(first_person("the daemon's own, used thus"), None);
    }

    #[test]
    fn names() {
        assert_eq!(forbidden_name("NodeSight"), Some(("sight", "view")));
        assert_eq!(forbidden_name("hop"), Some(("hop", "headers")));
        assert_eq!(forbidden_name("end_wish"), Some(("wish", "request")));
        assert_eq!(forbidden_name("Insight"), None);
        assert_eq!(forbidden_name("Shopping"), None);
    }
}
