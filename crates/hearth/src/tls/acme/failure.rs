//! What went wrong last, kept over restarts: for people, and because issuers count.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use hearth_stdx::Backoff;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::kept;

/// Let's Encrypt takes five failures in an hour and gives one back every twelve minutes
/// (<https://letsencrypt.org/docs/rate-limits/>).
const FIRST_DELAY: Duration = Duration::from_secs(12 * 60);
/// Short enough to have a day's worth of attempts left for every repair.
const LONGEST_DELAY: Duration = Duration::from_secs(6 * 3600);
/// As many failures are followed by an attempt at once when `hearth up` starts anew: people repair and look. More, and a service
/// that is restarted all the time would use up what the issuer allows.
const FREE_STARTS: u32 = 3;
/// Doublings after which the delay is the longest anyway.
const DOUBLINGS_MAX: u32 = 16;

/// The last of some failures in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(super) count: u32,
    pub(super) at: Timestamp,
    pub(super) error: String,
}

impl Failure {
    pub(super) fn read(path: &Path) -> Option<Self> {
        kept::read(path)
    }

    /// One more.
    pub(super) fn after(before: Option<&Self>, now: SystemTime, error: &anyhow::Error) -> Result<Self> {
        let count = before.map_or(0, |before| before.count).saturating_add(1);
        Ok(Self { count, at: now.try_into()?, error: format!("{error:#}") })
    }

    /// When the next attempt is due.
    pub(super) fn next_attempt(&self) -> SystemTime {
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        for _ in 1..self.count.min(DOUBLINGS_MAX) {
            backoff.advance();
        }
        self.when() + backoff.advance()
    }

    /// One that the clock does not know was long ago.
    fn when(&self) -> SystemTime {
        self.at.try_into().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether an attempt has to wait. One of the future comes from a clock that was set back.
    pub(super) fn holds_back(&self, now: SystemTime, is_start: bool) -> bool {
        let is_free = is_start && self.count < FREE_STARTS;
        !is_free && self.when() <= now && now < self.next_attempt()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, at, error } = self;
        write!(f, "the last of {count} failures in a row, at {at:.0}: {error}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer_and_starts_are_free_for_a_while() {
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
            let held_back = after(count).holds_back(now + Duration::from_secs(minutes * 60), is_start);
            assert_eq!(held_back, expected, "{count} {is_start} {minutes}");
        }
        assert!(!after(9).holds_back(now - Duration::from_secs(60), false), "the clock was set back");
    }
}
