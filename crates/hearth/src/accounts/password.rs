//! Sources of a new password: generated, typed at the terminal, or read from the standard input.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, Result, ensure};
use hearth_types::Secret;

/// Letters and digits that are hard to confuse; five bits each.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Number of groups: with five characters each, they carry 100 random bits and can be copied by hand.
const GROUPS: usize = 4;
const GROUP_CHARS: usize = 5;
/// Maximum length of the line read from the standard input.
const LINE_BYTES_MAX: u64 = 4096;

/// Generates a random password.
pub(super) fn generate() -> Result<Secret> {
    let mut bytes = [0u8; GROUPS * GROUP_CHARS];
    getrandom::fill(&mut bytes).context("drawing a password")?;
    let letters = bytes.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    let groups: Vec<String> = letters.chunks(GROUP_CHARS).map(|group| group.iter().collect()).collect();
    Ok(Secret::new(groups.join("-")))
}

/// Reads a password twice from the terminal, without echo, or else the first line of the standard input.
pub(super) fn prompt(email: &str) -> Result<Secret> {
    if !io::stdin().is_terminal() {
        return read(io::stdin().lock());
    }
    let read_line = |text: String| {
        rpassword::prompt_password(text).context("reading the password from the terminal").map(Secret::new)
    };
    let first = read_line(format!("New password of {email}: "))?;
    let second = read_line("Repeat the password: ".to_owned())?;
    ensure!(first == second, "the two passwords differ: nothing was changed");
    Ok(first)
}

fn read(input: impl BufRead) -> Result<Secret> {
    let mut line = String::new();
    input.take(LINE_BYTES_MAX).read_line(&mut line).context("reading the password from the standard input")?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(Secret::new(line.strip_suffix('\r').unwrap_or(line)))
}

#[cfg(test)]
mod tests {
    use hearth_store::PASSWORD_CHARS_MIN;

    use super::*;

    #[test]
    fn generated_passwords_are_long_enough_and_differ() {
        let (one, two) = (generate().expect("random"), generate().expect("random"));
        assert_ne!(one, two);
        assert_eq!(one.expose().len(), 23);
        assert!(one.expose().len() >= PASSWORD_CHARS_MIN);
        assert!(one.expose().bytes().all(|byte| byte == b'-' || ALPHABET.contains(&byte)), "{}", one.expose());
    }

    #[test]
    fn the_first_line_of_the_input_is_the_password() {
        for (input, expected) in [
            ("a pass word \n", "a pass word "),
            ("a pass word", "a pass word"),
            ("a pass word\r\nmore", "a pass word"),
            ("", ""),
        ] {
            assert_eq!(read(input.as_bytes()).expect("reads"), Secret::new(expected));
        }
    }
}
