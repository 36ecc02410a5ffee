//! The CPU's time stamp counter, which emulated guests see as it is.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the counter is watched: the error is then below a millionth.
const WATCHED: Duration = Duration::from_millis(20);
/// Readings at each end, of which the least disturbed counts.
const READINGS: u32 = 5;

/// The frequency of the time stamp counter in kHz. Blocks for about 20 ms.
#[must_use]
pub fn tsc_khz() -> u64 {
    let (first_ticks, first) = reading();
    sleep(WATCHED);
    let (last_ticks, last) = reading();
    let nanoseconds = last.duration_since(first).as_nanos().max(1);
    let ticks = u128::from(last_ticks.saturating_sub(first_ticks));
    u64::try_from(ticks * 1_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

/// The counter at an instant.
fn reading() -> (u64, Instant) {
    let readings = (0..READINGS).map(|_| {
        let before = counter();
        let now = Instant::now();
        (counter().saturating_sub(before), before, now)
    });
    // A reading that took long was interrupted; the instant lies in the middle of it.
    let best = readings.min_by_key(|(width, _, _)| *width);
    best.map_or_else(|| (counter(), Instant::now()), |(width, before, now)| (before + width / 2, now))
}

fn counter() -> u64 {
    // SAFETY: reads a register; every CPU that this target is for has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (first, second) = (tsc_khz(), tsc_khz());
        assert!((100_000..100_000_000).contains(&first), "{first}");
        assert!(first.abs_diff(second) * 1000 < first, "{first} and {second} differ by more than a thousandth");
    }
}
