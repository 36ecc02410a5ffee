//! End times of sandboxes, and the rules for changing them.

use std::time::Duration;

use jiff::Timestamp;

/// Start, current end and maximum length of a running sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub started_at: Timestamp,
    pub end_at: Timestamp,
    /// Longest lifetime that the team may give to a sandbox, counted from its start.
    pub length_max: Duration,
}

/// Requested change of a sandbox's end time. Durations count from the time at which the change is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndChange {
    /// Sets the end time, earlier or later than the current one. Zero ends the sandbox immediately.
    Set(Duration),
    /// Moves the end time later, if the current one is earlier.
    ExtendTo(Duration),
}

/// The sandbox has reached the maximum length that its team allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaxLengthReached;

impl Lifetime {
    /// Returns the end time after a change, limited to the maximum length. `None` if the end time stays exactly equal.
    pub(crate) fn end_after(self, change: EndChange, now: Timestamp) -> Result<Option<Timestamp>, MaxLengthReached> {
        let Self { started_at, end_at, length_max } = self;
        let latest = saturating_add(started_at, length_max);
        match change {
            // An immediate end is possible at any age.
            EndChange::Set(Duration::ZERO) => Ok(Some(now)),
            EndChange::Set(_) if latest <= now => Err(MaxLengthReached),
            EndChange::Set(time) => Ok(Some(saturating_add(now, time).min(latest))),
            EndChange::ExtendTo(time) => {
                let requested = saturating_add(now, time).min(latest);
                Ok((requested > end_at).then_some(requested))
            }
        }
    }
}

/// Adds a duration to a time. Saturates at [`Timestamp::MAX`], which only durations of centuries reach.
pub(crate) fn saturating_add(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Reads the wall clock, truncated to microseconds, the precision of the store.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).expect("a truncated timestamp is in range")
}

/// Returns the duration from `now` until `at`, or zero if `at` is in the past.
pub(crate) fn time_until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn lifetime(started: i64, end: i64, max: u64) -> Lifetime {
        Lifetime { started_at: at(started), end_at: at(end), length_max: Duration::from_secs(max) }
    }

    #[test]
    fn end_changes_follow_the_contract() {
        let set = |seconds| EndChange::Set(Duration::from_secs(seconds));
        let extend_to = |seconds| EndChange::ExtendTo(Duration::from_secs(seconds));
        for (what, lifetime, change, now, expected) in [
            ("longer", lifetime(0, 100, 1000), set(200), 50, Ok(Some(at(250)))),
            ("shorter", lifetime(0, 100, 1000), set(5), 50, Ok(Some(at(55)))),
            ("immediately", lifetime(0, 100, 1000), set(0), 50, Ok(Some(at(50)))),
            ("limited to the maximum length", lifetime(0, 100, 300), set(600), 50, Ok(Some(at(300)))),
            ("maximum length reached", lifetime(0, 100, 60), set(5), 60, Err(MaxLengthReached)),
            ("immediately is always possible", lifetime(0, 100, 60), set(0), 60, Ok(Some(at(60)))),
            ("extended", lifetime(0, 100, 1000), extend_to(300), 50, Ok(Some(at(350)))),
            ("never shortened", lifetime(0, 100, 1000), extend_to(5), 50, Ok(None)),
            ("equal is unchanged", lifetime(0, 100, 1000), extend_to(50), 50, Ok(None)),
            ("extended to the maximum length", lifetime(0, 100, 120), extend_to(300), 50, Ok(Some(at(120)))),
            ("maximum length leaves nothing to extend", lifetime(0, 100, 100), extend_to(300), 50, Ok(None)),
        ] {
            assert_eq!(lifetime.end_after(change, at(now)), expected, "{what}");
        }
    }

    #[test]
    fn time_until_is_never_negative() {
        assert_eq!(time_until(at(10), at(4)), Duration::from_secs(6));
        assert_eq!(time_until(at(4), at(10)), Duration::ZERO);
        assert_eq!(saturating_add(at(1), Duration::MAX), Timestamp::MAX);
    }

    proptest! {
        #[test]
        fn no_end_change_breaks_the_rules(
            started in 0..1000i64, length in 0..1000i64, max in 0..2000u64, change in 0..3000u64, age in 0..2000i64
        ) {
            let lifetime = lifetime(started, started + length, max);
            let now = at(started + age);
            let time = Duration::from_secs(change);
            if let Ok(Some(end)) = lifetime.end_after(EndChange::ExtendTo(time), now) {
                prop_assert!(end > lifetime.end_at, "an extension only extends");
                prop_assert!(end <= saturating_add(lifetime.started_at, lifetime.length_max));
            }
            match lifetime.end_after(EndChange::Set(time), now) {
                Ok(end) => {
                    let end = end.expect("a set always yields an end time");
                    prop_assert!(end >= now && end <= saturating_add(now, time));
                    prop_assert!(change == 0 || end <= saturating_add(lifetime.started_at, lifetime.length_max));
                }
                Err(MaxLengthReached) => prop_assert!(saturating_add(lifetime.started_at, lifetime.length_max) <= now),
            }
        }
    }
}
