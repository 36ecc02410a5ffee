//! The CPU's time stamp counter, which emulated guests see unchanged.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Duration of a measurement. The error is then below a millionth.
const WATCHED: Duration = Duration::from_millis(20);
/// Readings at each end; the one with the least delay counts.
const READINGS: u32 = 5;

/// Returns the frequency of the time stamp counter in kHz. Blocks for about 20 ms.
#[must_use]
pub fn tsc_khz() -> u64 {
    let (first_ticks, first) = reading();
    sleep(WATCHED);
    let (last_ticks, last) = reading();
    let nanoseconds = last.duration_since(first).as_nanos().max(1);
    let ticks = u128::from(last_ticks.saturating_sub(first_ticks));
    u64::try_from(ticks * 1_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

/// Reads the counter and the time at which it had that value.
fn reading() -> (u64, Instant) {
    let readings = (0..READINGS).map(|_| {
        let before = counter();
        let now = Instant::now();
        (counter().saturating_sub(before), before, now)
    });
    // A slow reading was interrupted. The time is taken in the middle of the two counter reads.
    let best = readings.min_by_key(|(width, _, _)| *width);
    best.map_or_else(|| (counter(), Instant::now()), |(width, before, now)| (before + width / 2, now))
}

fn counter() -> u64 {
    // SAFETY: reads a register; every x86-64 CPU has the instruction.
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
