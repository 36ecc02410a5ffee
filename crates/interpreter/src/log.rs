//! Log lines on standard error, which is the guest's console.

/// Writes a line: a message of noun and verb, and fields.
pub(crate) fn line(message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    use std::fmt::Write as _;
    let mut line = format!("interpreter: {message}");
    for (name, value) in fields {
        // Writing to a string does not fail.
        let _ = write!(line, " {name}={value}");
    }
    // A kernel's own text must not look like further lines, nor control a terminal.
    let line: String = line.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    eprintln!("{line}");
}
