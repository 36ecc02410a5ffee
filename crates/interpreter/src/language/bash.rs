//! Bash: code for `bash_kernel`, which types it into a terminal, so it is one line of ASCII characters.

use std::fmt::Write as _;

use super::Variables;

/// Reports an error on the hidden output if the directory cannot be entered; the contract ignores it.
pub(super) fn change_directory(path: &str) -> String {
    format!("cd -- {} || true", literal(path))
}

/// Variables whose names are not identifiers are left out: Bash cannot hold them.
pub(super) fn change_variables(set: &Variables, removed: &[&str]) -> String {
    let set = set.iter().filter(|(name, _)| is_identifier(name));
    let set = set.map(|(name, value)| format!("export {name}={}", literal(value)));
    let removed = removed.iter().filter(|name| is_identifier(name)).map(|name| format!("unset -v {name}"));
    let commands: Vec<_> = set.chain(removed).collect();
    if commands.is_empty() { ":".to_owned() } else { commands.join("; ") }
}

pub(super) fn reseed(seed: u32) -> String {
    format!("RANDOM={seed}")
}

fn is_identifier(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && name.bytes().all(is_plain)
}

/// Literal with escape sequences (`$'…'`) for every byte that a terminal or the shell could interpret.
fn literal(text: &str) -> String {
    let mut literal = String::from("$'");
    for byte in text.bytes() {
        match byte {
            b'\'' | b'\\' => literal.extend(['\\', char::from(byte)]),
            b' '..=b'~' => literal.push(char::from(byte)),
            // Writing to a string does not fail. Octal escapes have a fixed length.
            other => {
                let _ = write!(literal, "\\{other:03o}");
            }
        }
    }
    literal.push('\'');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_escaped() {
        assert_eq!(literal("it's $X `a` \"b\"\\\n\u{3}7"), r#"$'it\'s $X `a` "b"\\\012\0037'"#);
        assert_eq!(literal("é😀"), r"$'\303\251\360\237\230\200'");
        let set = Variables::from([("A".to_owned(), "1; rm".to_owned()), ("B C".to_owned(), "2".to_owned())]);
        assert_eq!(change_variables(&set, &["D", "E;F"]), "export A=$'1; rm'; unset -v D");
        assert_eq!(change_variables(&Variables::new(), &["1"]), ":");
    }

    #[test]
    fn bash_reads_the_literals_back() {
        for text in ["it's", "a\nb\t\"c\"\\", "é\u{2028}😀", "", "$HOME `x` !!", "\u{1}7\u{7f}8"] {
            let code = format!("printf %s {}", literal(text));
            let output = std::process::Command::new("bash").args(["-c", &code]).output().expect("bash runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
