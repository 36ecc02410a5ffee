//! Phases of a task; each prints its start and its duration.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Timer and printer for the phases of a task.
#[derive(Debug)]
pub(crate) struct Phases {
    since: Instant,
}

impl Phases {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        Self { since: Instant::now() }
    }

    /// Runs one phase; prints its name before, and its result and duration after.
    pub(crate) fn run<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        print_line(&format!("── {name}"));
        let since = Instant::now();
        let outcome = work();
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        print_line(&format!("── {name}: {verdict} in {}", seconds(since.elapsed())));
        outcome.with_context(|| format!("phase `{name}`"))
    }

    /// Prints the total duration of all phases.
    pub(crate) fn finish(self, name: &str) {
        print_line(&format!("── {name}: all phases done in {}", seconds(self.since.elapsed())));
    }
}

/// Prints a line and flushes it, so that it appears in order with the output of child processes.
pub(crate) fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    // Ignore a closed standard output (`make test | head`).
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Runs a command; a failure status is an error that contains the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {}", display(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", display(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", display(command)))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}: {}", display(command), output.status, message.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("reading the output of {}", display(command)))
}

/// Command for the cargo that runs this xtask.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn display(command: &Command) -> String {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    format!("`{}`", words.join(" "))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
