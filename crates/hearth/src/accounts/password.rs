//! Where a new password comes from.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, Result, ensure};
use hearth_types::Secret;

/// Letters and digits that are not taken for each other; five bits each.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// A hundred random bits, in groups that can be copied by hand.
const GROUPS: usize = 4;
const GROUP_CHARS: usize = 5;
/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 4096;

/// A random one.
pub(super) fn generate() -> Result<Secret> {
    let mut bytes = [0u8; GROUPS * GROUP_CHARS];
    getrandom::fill(&mut bytes).context("drawing a password")?;
    let letters = bytes.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    let groups: Vec<String> = letters.chunks(GROUP_CHARS).map(|group| group.iter().collect()).collect();
    Ok(Secret::new(groups.join("-")))
}

/// The person's at the terminal, who does not see it; or the first line of the standard input.
pub(super) fn ask(email: &str) -> Result<Secret> {
    if !io::stdin().is_terminal() {
        return read(io::stdin().lock());
    }
    let prompt = |text: String| rpassword::prompt_password(text).context("asking for the password").map(Secret::new);
    let first = prompt(format!("New password of {email}: "))?;
    let second = prompt("Once more: ".to_owned())?;
    ensure!(first == second, "those were two different passwords: nothing is changed");
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
    fn what_is_made_is_long_enough_and_new() {
        let (one, two) = (generate().expect("random"), generate().expect("random"));
        assert_ne!(one, two);
        assert_eq!(one.expose().len(), 23);
        assert!(one.expose().len() >= PASSWORD_CHARS_MIN);
        assert!(one.expose().bytes().all(|byte| byte == b'-' || ALPHABET.contains(&byte)), "{}", one.expose());
    }

    #[test]
    fn a_line_is_a_password() {
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
