//! Progress of a setup: bars on a terminal, otherwise one line per phase.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_builder::{Progress, Unit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Period of a spinner's steps.
const TICK: Duration = Duration::from_millis(120);

/// Progress bars on standard error.
pub(crate) struct ProgressDisplay {
    on_terminal: bool,
    current: Mutex<Option<Phase>>,
}

struct Phase {
    name: &'static str,
    began: Instant,
    bar: ProgressBar,
}

impl ProgressDisplay {
    pub(crate) fn new() -> Self {
        Self { on_terminal: std::io::stderr().is_terminal(), current: Mutex::new(None) }
    }

    fn current(&self) -> MutexGuard<'_, Option<Phase>> {
        // Every critical section is a single assignment, so the value is valid even after a panic.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish_phase(phase: Option<Phase>) {
        if let Some(Phase { name, began, bar }) = phase {
            bar.finish_and_clear();
            eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
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
        let target = if self.on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(total, target);
        bar.set_style(style(unit, total));
        bar.set_message(name);
        bar.enable_steady_tick(TICK);
        let before = self.current().replace(Phase { name, began: Instant::now(), bar });
        Self::finish_phase(before);
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
        Self::finish_phase(before);
    }
}

/// Clears the bar of an interrupted setup.
impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        if let Some(phase) = self.current().take() {
            phase.bar.finish_and_clear();
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
        let display = ProgressDisplay::new();
        display.phase("one", Unit::Bytes, None);
        display.advance(1, 2);
        display.phase("two", Unit::Steps, Some(2));
        display.finished();
    }
}
