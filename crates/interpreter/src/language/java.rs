//! Java: code for kernels on `jshell`. Variables are system properties, because a process's environment is fixed.

use std::fmt::Write as _;

use super::Variables;

/// Sets the property only: Java cannot change the directory of its process.
pub(super) fn change_directory(path: &str) -> String {
    format!("System.setProperty(\"user.dir\", {});", literal(path))
}

pub(super) fn change_variables(set: &Variables, removed: &[&str]) -> String {
    let set = set.iter().map(|(name, value)| format!("System.setProperty({}, {});", literal(name), literal(value)));
    let removed = removed.iter().map(|name| format!("System.clearProperty({});", literal(name)));
    set.chain(removed).collect::<Vec<_>>().join("\n")
}

/// String literal in ASCII.
///
/// Unicode escapes are replaced before the literal is read, so they are used only for characters above ASCII; control
/// characters are octal escapes.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            ' '..='~' => literal.push(character),
            // Writing to a string does not fail.
            control @ '\0'..='\u{7f}' => {
                let _ = write!(literal, "\\{:03o}", u32::from(control));
            }
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    let _ = write!(literal, "\\u{unit:04x}");
                }
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
        assert_eq!(literal("it's \"a\\u000a\"\n7"), r#""it's \"a\\u000a\"\0127""#);
        assert_eq!(literal("é\u{2028}😀\u{7f}"), r#""\u00e9\u2028\ud83d\ude00\177""#);
        let set = Variables::from([("a".to_owned(), "\"); x".to_owned())]);
        assert_eq!(
            change_variables(&set, &["b"]),
            "System.setProperty(\"a\", \"\\\"); x\");\nSystem.clearProperty(\"b\");"
        );
    }
}
