//! The guest's console: the kernel opened it as our standard streams. Every character is an exit to the host, so little is
//! said.

use std::error::Error;
use std::io::Write;

/// One line.
pub(crate) fn say(text: &str) {
    // There is nobody to tell that the console does not work.
    let _ = writeln!(std::io::stderr(), "hearth-init {}: {text}", env!("CARGO_PKG_VERSION"));
}

/// One line with an error and its causes.
pub(crate) fn complain(what: &str, error: &dyn Error) {
    let mut line = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    say(&line);
}
