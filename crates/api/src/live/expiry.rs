//! When a sandbox ends.

use std::time::Duration;

use jiff::Timestamp;

/// The life of a running sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    /// When it was started.
    pub started_at: Timestamp,
    /// When it expires as things are.
    pub end_at: Timestamp,
    /// Longest life that its team may give to a sandbox.
    pub length_max: Duration,
}

/// A wish for another end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// End after this time, be that earlier or later.
    EndIn(Duration),
    /// Do not end before this time.
    LastAtLeast(Duration),
}

/// The sandbox has lived as long as its team may let one live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LengthUsedUp;

impl Life {
    /// The end after a wish; `None`: as before, to the last digit. Ends are cut to the longest life.
    pub(crate) fn end_after(self, wish: Wish, now: Timestamp) -> Result<Option<Timestamp>, LengthUsedUp> {
        let Self { started_at, end_at, length_max } = self;
        let latest = later(started_at, length_max);
        match wish {
            // An end that is already due needs no life.
            Wish::EndIn(Duration::ZERO) => Ok(Some(now)),
            Wish::EndIn(_) if latest <= now => Err(LengthUsedUp),
            Wish::EndIn(time) => Ok(Some(later(now, time).min(latest))),
            Wish::LastAtLeast(time) => {
                let wished = later(now, time).min(latest);
                Ok((wished > end_at).then_some(wished))
            }
        }
    }
}

/// A time after another. The end of time itself when there is no such time: only a length of centuries leads there.
pub(crate) fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// The wall clock, cut to what is kept: microseconds.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).expect("a time without its nanoseconds is one")
}

/// How long from `now` to `at`; nothing if it is past.
pub(crate) fn time_left(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn life(started: i64, end: i64, max: u64) -> Life {
        Life { started_at: at(started), end_at: at(end), length_max: Duration::from_secs(max) }
    }

    #[test]
    fn wishes_as_in_the_contract() {
        let end_in = |seconds| Wish::EndIn(Duration::from_secs(seconds));
        let at_least = |seconds| Wish::LastAtLeast(Duration::from_secs(seconds));
        for (what, life, wish, now, expected) in [
            ("longer", life(0, 100, 1000), end_in(200), 50, Ok(Some(at(250)))),
            ("shorter", life(0, 100, 1000), end_in(5), 50, Ok(Some(at(55)))),
            ("at once", life(0, 100, 1000), end_in(0), 50, Ok(Some(at(50)))),
            ("cut to the longest life", life(0, 100, 300), end_in(600), 50, Ok(Some(at(300)))),
            ("longest life used up", life(0, 100, 60), end_in(5), 60, Err(LengthUsedUp)),
            ("at once is always possible", life(0, 100, 60), end_in(0), 60, Ok(Some(at(60)))),
            ("extended", life(0, 100, 1000), at_least(300), 50, Ok(Some(at(350)))),
            ("never shortened", life(0, 100, 1000), at_least(5), 50, Ok(None)),
            ("equal is unchanged", life(0, 100, 1000), at_least(50), 50, Ok(None)),
            ("extended to the longest life", life(0, 100, 120), at_least(300), 50, Ok(Some(at(120)))),
            ("nothing left to extend", life(0, 100, 100), at_least(300), 50, Ok(None)),
        ] {
            assert_eq!(life.end_after(wish, at(now)), expected, "{what}");
        }
    }

    #[test]
    fn time_left_is_never_negative() {
        assert_eq!(time_left(at(10), at(4)), Duration::from_secs(6));
        assert_eq!(time_left(at(4), at(10)), Duration::ZERO);
        assert_eq!(later(at(1), Duration::MAX), Timestamp::MAX);
    }

    proptest! {
        #[test]
        fn no_wish_breaks_the_rules(
            started in 0..1000i64, length in 0..1000i64, max in 0..2000u64, wish in 0..3000u64, age in 0..2000i64
        ) {
            let life = life(started, started + length, max);
            let now = at(started + age);
            let time = Duration::from_secs(wish);
            if let Ok(Some(end)) = life.end_after(Wish::LastAtLeast(time), now) {
                prop_assert!(end > life.end_at, "an extension only extends");
                prop_assert!(end <= later(life.started_at, life.length_max));
            }
            match life.end_after(Wish::EndIn(time), now) {
                Ok(end) => {
                    let end = end.expect("a set end is always set");
                    prop_assert!(end >= now && end <= later(now, time));
                    prop_assert!(wish == 0 || end <= later(life.started_at, life.length_max));
                }
                Err(LengthUsedUp) => prop_assert!(later(life.started_at, life.length_max) <= now),
            }
        }
    }
}
