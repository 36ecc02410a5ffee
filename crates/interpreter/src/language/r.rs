//! R: code for IRkernel.

use std::fmt::Write as _;

use super::Variables;

/// Fails if the directory cannot be entered.
pub(super) fn change_directory(path: &str) -> String {
    format!("invisible(setwd({}))", literal(path))
}

pub(super) fn change_variables(set: &Variables, removed: &[&str]) -> String {
    let mut code = Vec::new();
    if !set.is_empty() {
        let values: Vec<_> = set.values().map(|value| literal(value)).collect();
        let names: Vec<_> = set.keys().map(|name| literal(name)).collect();
        let (values, names) = (values.join(", "), names.join(", "));
        code.push(format!("invisible(do.call(Sys.setenv, stats::setNames(list({values}), c({names}))))"));
    }
    if !removed.is_empty() {
        let names: Vec<_> = removed.iter().map(|name| literal(name)).collect();
        code.push(format!("invisible(Sys.unsetenv(c({})))", names.join(", ")));
    }
    code.join("\n")
}

/// `seed` without its sign bit, because R's integers are signed.
pub(super) fn reseed(seed: u32) -> String {
    format!("set.seed({}L)", seed >> 1)
}

/// String literal in ASCII. NUL, which R strings cannot contain, is rejected before.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            ' '..='~' => literal.push(character),
            // Writing to a string does not fail.
            other => {
                let _ = write!(literal, "\\U{{{:x}}}", u32::from(other));
            }
        }
    }
    literal.push('"');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_escaped() {
        assert_eq!(literal("it's \"a\\b\"\n"), r#""it's \"a\\b\"\U{a}""#);
        assert_eq!(literal("é\u{2028}😀\u{1}"), r#""\U{e9}\U{2028}\U{1f600}\U{1}""#);
        let set = Variables::from([("a".to_owned(), "1\"); q()".to_owned()), ("b".to_owned(), String::new())]);
        assert_eq!(
            change_variables(&set, &["c"]),
            "invisible(do.call(Sys.setenv, stats::setNames(list(\"1\\\"); q()\", \"\"), c(\"a\", \"b\"))))\n\
             invisible(Sys.unsetenv(c(\"c\")))"
        );
    }
}
