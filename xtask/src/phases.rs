//! Chores are phases; each says when it begins and how long it took.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A row of phases. The first that fails ends it.
#[derive(Debug)]
pub(crate) struct Phases {
    since: Instant,
}

impl Phases {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        Self { since: Instant::now() }
    }

    /// Does one phase's work between a line that names it and a line with its time.
    pub(crate) fn run<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        say(&format!("── {name}"));
        let since = Instant::now();
        let outcome = work();
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        say(&format!("── {name}: {verdict} in {}", seconds(since.elapsed())));
        outcome.with_context(|| format!("phase `{name}`"))
    }

    /// Says how long all phases took together.
    pub(crate) fn finish(self, name: &str) {
        say(&format!("── {name}: all phases done in {}", seconds(self.since.elapsed())));
    }
}

/// Prints a line at once, so that it stands in order with what child processes print.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A closed standard output (`make test | head`) is not worth failing for.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Runs a child to its end; a bad status is an error that shows the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a child to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", shown(command), output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("reading the output of {}", shown(command)))
}

/// Cargo, as the one that runs this xtask.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn shown(command: &Command) -> String {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    format!("`{}`", words.join(" "))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
