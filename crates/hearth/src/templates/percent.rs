//! Progress of a whole template in percent, from the phases of its build.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use hearth_builder::{Progress, Unit};

/// Phases of a build with the percentage at which each begins, from measurements on a machine without KVM.
///
/// A phase that is missing here does not change the percentage.
const PHASES: &[(&str, u8)] = &[
    ("package lists", 0),
    ("package download", 2),
    ("package installation", 20),
    ("root filesystem", 40),
    ("Python packages", 43),
    ("Python installation", 60),
    ("Node packages", 68),
    ("configuration", 70),
    ("image", 72),
    ("copy of the root filesystem", 80),
    ("boot", 83),
    ("start of services", 86),
    ("warm-up", 90),
    ("snapshot", 97),
];
/// Last percentage before the template is registered.
const LAST: u8 = 99;

/// Progress receiver that also reports percentages to a closure. They never decrease.
pub(crate) struct PercentReporter<P, R> {
    inner: P,
    report: R,
    /// Begin and end of the current phase.
    phase: Mutex<(u8, u8)>,
    percent: AtomicU8,
}

impl<P: Progress, R: Fn(u8) + Send + Sync> PercentReporter<P, R> {
    pub(crate) fn new(inner: P, report: R) -> Self {
        Self { inner, report, phase: Mutex::new((0, 0)), percent: AtomicU8::new(0) }
    }

    fn reach(&self, percent: u8) {
        if self.percent.fetch_max(percent, Ordering::Relaxed) < percent {
            (self.report)(percent);
        }
    }
}

impl<P: Progress, R: Fn(u8) + Send + Sync> Progress for PercentReporter<P, R> {
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>) {
        self.inner.phase(name, unit, total);
        let found = PHASES.iter().position(|(phase, _)| *phase == name);
        let current = self.percent.load(Ordering::Relaxed);
        let range = found.map_or((current, current), |index| {
            (PHASES[index].1, PHASES.get(index + 1).map_or(LAST, |(_, begin)| *begin))
        });
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = range;
        self.reach(range.0);
    }

    fn advance(&self, done: u64, total: u64) {
        self.inner.advance(done, total);
        let (begin, end) = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let span = u64::from(end - begin);
        let part = done.min(total).saturating_mul(span).checked_div(total).unwrap_or(0);
        self.reach(begin + u8::try_from(part).unwrap_or(0));
    }

    fn finished(&self) {
        self.inner.finished();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_grow_with_the_phases_and_never_decrease() {
        assert!(PHASES.is_sorted_by_key(|(_, begin)| *begin));
        let seen = Mutex::new(Vec::new());
        let reporter = PercentReporter::new(hearth_builder::NoProgress, |percent| {
            seen.lock().expect("unpoisoned").push(percent);
        });
        reporter.phase("package download", Unit::Bytes, None);
        for (done, total) in [(0, 0), (50, 100), (40, 100), (u64::MAX, 100)] {
            reporter.advance(done, total);
        }
        // A phase that is not listed, and one that comes again.
        reporter.phase("something else", Unit::Steps, None);
        reporter.advance(1, 1);
        reporter.phase("package download", Unit::Steps, None);
        reporter.phase("snapshot", Unit::Steps, None);
        reporter.advance(1, 1);
        reporter.finished();
        assert_eq!(*seen.lock().expect("unpoisoned"), [2, 11, 20, 97, 99]);
    }
}
