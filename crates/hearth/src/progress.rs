//! Progress of a setup: bars on a terminal, otherwise one line per phase.
//!
//! While the daemon prepares templates in the background, a supervisor's log gets log lines instead, and bars are hidden
//! while a log line is written to the terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_builder::{Progress, Unit};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Period of a spinner's steps.
const TICK: Duration = Duration::from_millis(120);

/// All bars of the process, drawn on standard error if that is a terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    let on_terminal = io::stderr().is_terminal();
    MultiProgress::with_draw_target(if on_terminal {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    })
});

/// Writer to standard error that hides the bars while it writes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Prints a line beside the bars, if standard error is a terminal.
pub(crate) fn print_line(line: &str) {
    if io::stderr().is_terminal() {
        BARS.suspend(|| eprintln!("{line}"));
    }
}

/// Progress bars on standard error.
pub(crate) struct ProgressDisplay {
    /// Template of the phases; `None` for those of the whole host.
    template: Option<&'static str>,
    /// Set if the end of a phase is logged instead of printed.
    is_logged: bool,
    current: Mutex<Option<Phase>>,
}

struct Phase {
    name: &'static str,
    began: Instant,
    bar: ProgressBar,
}

impl ProgressDisplay {
    pub(crate) fn new() -> Self {
        Self { template: None, is_logged: false, current: Mutex::new(None) }
    }

    /// Creates a display for a template that a command prepares.
    pub(crate) fn of(template: &'static str) -> Self {
        Self { template: Some(template), is_logged: false, current: Mutex::new(None) }
    }

    /// Creates a display for a template that the daemon prepares.
    pub(crate) fn in_background(template: &'static str) -> Self {
        Self { template: Some(template), is_logged: !io::stderr().is_terminal(), current: Mutex::new(None) }
    }

    fn current(&self) -> MutexGuard<'_, Option<Phase>> {
        // Every critical section is a single assignment, so the value is valid even after a panic.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn title(&self, phase: &str) -> String {
        self.template.map_or_else(|| phase.to_owned(), |template| format!("{template}: {phase}"))
    }

    fn finish_phase(&self, phase: Option<Phase>) {
        let Some(Phase { name, began, bar }) = phase else { return };
        bar.finish_and_clear();
        BARS.remove(&bar);
        let seconds = began.elapsed().as_secs_f64();
        match self.template {
            Some(template) if self.is_logged => {
                tracing::info!(template, phase = name, seconds = format!("{seconds:.1}"), "template phase finished");
            }
            _ => BARS.suspend(|| eprintln!("{}: {seconds:.1} s", self.title(name))),
        }
    }
}

fn style(unit: Unit, total: Option<u64>) -> ProgressStyle {
    let template = match (unit, total) {
        (_, None) => "{spinner} {msg} {elapsed}",
        (Unit::Bytes, Some(_)) => "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        (Unit::Steps, Some(_)) => "{msg} [{wide_bar}] {percent}% {elapsed}",
    };
    ProgressStyle::with_template(template).expect("a valid template").progress_chars("=> ")
}

impl Progress for ProgressDisplay {
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>) {
        self.finished();
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        bar.set_style(style(unit, total));
        bar.set_message(self.title(name));
        let bar = BARS.add(bar);
        bar.enable_steady_tick(TICK);
        *self.current() = Some(Phase { name, began: Instant::now(), bar });
    }

    fn advance(&self, done: u64, total: u64) {
        if let Some(phase) = self.current().as_ref() {
            if phase.bar.length().is_none() {
                phase.bar.set_style(style(Unit::Steps, Some(total)));
            }
            phase.bar.set_length(total);
            phase.bar.set_position(done);
        }
    }

    fn finished(&self) {
        let before = self.current().take();
        self.finish_phase(before);
    }
}

/// Clears the bar of an interrupted setup.
impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        if let Some(phase) = self.current().take() {
            phase.bar.finish_and_clear();
            BARS.remove(&phase.bar);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_is_a_valid_template() {
        for unit in [Unit::Bytes, Unit::Steps] {
            for total in [None, Some(1)] {
                style(unit, total);
            }
        }
        for display in [ProgressDisplay::new(), ProgressDisplay::of("tools"), ProgressDisplay::in_background("tools")] {
            display.phase("one", Unit::Bytes, None);
            display.advance(1, 2);
            display.phase("two", Unit::Steps, Some(2));
            display.finished();
        }
    }
}
