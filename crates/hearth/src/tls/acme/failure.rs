//! The last failure, stored across restarts: for `hearth doctor`, and for the delay of the next attempt.
//!
//! Issuers limit the number of failed attempts.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use hearth_stdx::Backoff;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state_file;

/// Delay after the first failure.
///
/// Let's Encrypt allows five failures per hour, and one more every twelve minutes
/// (<https://letsencrypt.org/docs/rate-limits/>).
const FIRST_DELAY: Duration = Duration::from_secs(12 * 60);
/// Maximum delay: several attempts a day, so a repair takes effect the same day.
const LONGEST_DELAY: Duration = Duration::from_secs(6 * 3600);
/// Number of failures from which a start of `hearth up` waits for the delay too.
///
/// With fewer failures, a start tries immediately, so operators see whether their repair worked. Without this bound, a
/// service in a restart loop would use up the attempts that the issuer allows.
const FREE_STARTS: u32 = 3;
/// Bound of the loop that doubles the delay; the delay has reached its maximum long before.
const DOUBLINGS_MAX: u32 = 16;

/// The last failure of an uninterrupted series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(super) count: u32,
    pub(super) at: Timestamp,
    pub(super) error: String,
}

impl Failure {
    pub(super) fn read(path: &Path) -> Option<Self> {
        state_file::read(path)
    }

    /// Returns the failure after `before`, with the count increased by one.
    pub(super) fn after(before: Option<&Self>, now: SystemTime, error: &anyhow::Error) -> Result<Self> {
        let count = before.map_or(0, |before| before.count).saturating_add(1);
        Ok(Self { count, at: now.try_into()?, error: format!("{error:#}") })
    }

    /// Returns the time of the next attempt.
    pub(super) fn next_attempt(&self) -> SystemTime {
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        for _ in 1..self.count.min(DOUBLINGS_MAX) {
            backoff.advance();
        }
        self.failed_at() + backoff.advance()
    }

    /// Returns the time of the failure; the Unix epoch if `SystemTime` cannot represent it.
    fn failed_at(&self) -> SystemTime {
        self.at.try_into().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Returns true if an attempt must wait. A failure in the future is ignored: the clock was set back.
    pub(super) fn delays_attempt(&self, now: SystemTime, is_start: bool) -> bool {
        let is_free = is_start && self.count < FREE_STARTS;
        !is_free && self.failed_at() <= now && now < self.next_attempt()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, at, error } = self;
        write!(f, "{count} consecutive failures, the last at {at:.0}: {error}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_the_first_starts_are_not_delayed() {
        let now = SystemTime::now();
        let mut failure = None;
        let mut delays = Vec::new();
        for _ in 0..40 {
            let next = Failure::after(failure.as_ref(), now, &anyhow::anyhow!("why")).expect("a time");
            delays.push(next.next_attempt().duration_since(now).expect("later").as_secs() / 60);
            failure = Some(next);
        }
        assert_eq!(delays[..7], [12, 24, 48, 96, 192, 360, 360]);
        assert_eq!(delays[39], 360);

        let after = |count| Failure { count, at: now.try_into().expect("a time"), error: "why".to_owned() };
        for (count, is_start, minutes, expected) in [
            (1, false, 11, true),
            (1, false, 13, false),
            (2, true, 0, false),
            (3, true, 47, true),
            (3, true, 49, false),
        ] {
            let is_delayed = after(count).delays_attempt(now + Duration::from_secs(minutes * 60), is_start);
            assert_eq!(is_delayed, expected, "{count} {is_start} {minutes}");
        }
        assert!(!after(9).delays_attempt(now - Duration::from_secs(60), false), "the clock was set back");
    }
}
