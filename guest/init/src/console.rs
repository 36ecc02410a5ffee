//! The guest's console, which the kernel opened as the standard streams of this process.
//!
//! Every character causes an exit to the host, so few lines are printed.

use std::error::Error;
use std::io::Write;

/// Prints one line.
pub(crate) fn print_line(text: &str) {
    // A broken console cannot be reported anywhere.
    let _ = writeln!(std::io::stderr(), "hearth-init {}: {text}", env!("CARGO_PKG_VERSION"));
}

/// Prints one line with an error and its causes.
pub(crate) fn print_error(what: &str, error: &dyn Error) {
    let mut line = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    print_line(&line);
}
