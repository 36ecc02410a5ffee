//! Bounds on the lines and samples of guests, applied before they are stored. They are the same for every backend.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use jiff::Timestamp;

use crate::line::{
    CUT_MARK, FIELD_NAME_BYTES_MAX, FIELDS_BYTES_MAX, FIELDS_MAX, LOGGER_BYTES_MAX, LogLine, MESSAGE_BYTES_MAX,
};
use crate::sample::{CPUS_MAX, SAMPLE_BYTES_MAX, Sample};

/// A line within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) line: LogLine,
    pub(crate) is_cut: bool,
}

/// Truncates a line to its bounds, and replaces a time outside of `plausible` by the time of arrival.
///
/// `plausible` ends now, and begins where lines are too old to be stored. A time outside of it comes from a guest with
/// a wrong clock, or from one that tries to outlive the retention or to be first in every list.
pub(crate) fn accept(line: LogLine, plausible: &RangeInclusive<Timestamp>) -> Accepted {
    let LogLine { at, level, mut logger, mut message, fields } = line;
    let at = if plausible.contains(&at) { at } else { *plausible.end() };
    let (fields, are_fields_cut) = cut_fields(fields);
    let is_logger_cut = cut(&mut logger, LOGGER_BYTES_MAX);
    let is_message_cut = cut(&mut message, MESSAGE_BYTES_MAX);
    let line = LogLine { at, level, logger, message, fields };
    Accepted { line, is_cut: are_fields_cut || is_logger_cut || is_message_cut }
}

/// Limits a sample to its bounds: no value of a guest may overflow later calculations.
pub(crate) fn accept_sample(sample: Sample, plausible: &RangeInclusive<Timestamp>) -> Sample {
    let Sample { at, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used } = sample;
    let at = if plausible.contains(&at) { at } else { *plausible.end() };
    let cap = |bytes: u64| bytes.min(SAMPLE_BYTES_MAX);
    Sample {
        at,
        cpu_count: cpu_count.min(CPUS_MAX),
        // `clamp` does not replace NaN.
        cpu_used_pct: if cpu_used_pct.is_nan() { 0.0 } else { cpu_used_pct.clamp(0.0, 100.0) },
        mem_total: cap(mem_total),
        mem_used: cap(mem_used),
        mem_cache: cap(mem_cache),
        disk_total: cap(disk_total),
        disk_used: cap(disk_used),
    }
}

fn cut_fields(fields: BTreeMap<String, String>) -> (BTreeMap<String, String>, bool) {
    let mut accepted = BTreeMap::new();
    let mut is_cut = false;
    let mut bytes_left = FIELDS_BYTES_MAX;
    for (name, mut value) in fields {
        if accepted.len() == FIELDS_MAX || name.len() > FIELD_NAME_BYTES_MAX || name.len() > bytes_left {
            is_cut = true;
            continue;
        }
        bytes_left -= name.len();
        is_cut |= cut(&mut value, bytes_left);
        bytes_left -= value.len();
        accepted.insert(name, value);
    }
    (accepted, is_cut)
}

/// Truncates a text to at most `bytes_max`, between characters, with the mark at its end. Returns `true` if it was
/// longer.
fn cut(text: &mut String, bytes_max: usize) -> bool {
    if text.len() <= bytes_max {
        return false;
    }
    match bytes_max.checked_sub(CUT_MARK.len()) {
        Some(text_max) => {
            text.truncate(text.floor_char_boundary(text_max));
            text.push_str(CUT_MARK);
        }
        None => text.clear(),
    }
    // Frees the memory of a long hostile text.
    text.shrink_to_fit();
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::line::{LINE_BYTES_MAX, Level};

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn line(message: String, fields: BTreeMap<String, String>) -> LogLine {
        LogLine { at: second(5), level: Level::Info, logger: "process".to_owned(), message, fields }
    }

    #[test]
    fn implausible_times_become_the_time_of_arrival() {
        let plausible = second(10)..=second(20);
        for (claimed, stored) in [(9, 20), (10, 10), (15, 15), (20, 20), (21, 20), (-377_705_000_000, 20)] {
            let line = LogLine { at: second(claimed), ..line(String::new(), BTreeMap::new()) };
            assert_eq!(accept(line, &plausible).line.at, second(stored), "{claimed}");
        }
    }

    #[test]
    fn samples_are_limited_to_their_bounds() {
        let plausible = second(10)..=second(20);
        let sample = Sample {
            at: second(15),
            cpu_count: 2,
            cpu_used_pct: 12.5,
            mem_total: 5,
            mem_used: 4,
            mem_cache: 3,
            disk_total: 2,
            disk_used: 1,
        };
        assert_eq!(accept_sample(sample, &plausible), sample);
        for (percent, expected) in
            [(f64::NAN, 0.0), (f64::INFINITY, 100.0), (f64::NEG_INFINITY, 0.0), (-1.0, 0.0), (1e300, 100.0)]
        {
            let huge = u64::MAX;
            let found = accept_sample(
                Sample {
                    at: second(99),
                    cpu_count: u32::MAX,
                    cpu_used_pct: percent,
                    mem_total: huge,
                    mem_used: huge,
                    mem_cache: huge,
                    disk_total: huge,
                    disk_used: huge,
                },
                &plausible,
            );
            let most = SAMPLE_BYTES_MAX;
            let bounded = Sample {
                at: second(20),
                cpu_count: CPUS_MAX,
                cpu_used_pct: expected,
                mem_total: most,
                mem_used: most,
                mem_cache: most,
                disk_total: most,
                disk_used: most,
            };
            assert_eq!(found, bounded, "{percent}");
        }
    }

    #[test]
    fn long_fields_are_truncated_and_further_ones_dropped() {
        let fields = BTreeMap::from([
            ("a".to_owned(), "x".repeat(10)),
            ("b".to_owned(), "y".repeat(FIELDS_BYTES_MAX)),
            ("c".to_owned(), "z".to_owned()),
            ("n".repeat(FIELD_NAME_BYTES_MAX + 1), String::new()),
        ]);
        let (accepted, is_cut) = cut_fields(fields);
        assert!(is_cut);
        assert_eq!(accepted.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((accepted["a"].len(), accepted["b"].len()), (10, FIELDS_BYTES_MAX - 12));
        assert!(accepted["b"].ends_with(CUT_MARK));
        let many: BTreeMap<_, _> = (0..=FIELDS_MAX).map(|number| (format!("{number:03}"), String::new())).collect();
        let (accepted, is_cut) = cut_fields(many);
        assert_eq!((accepted.len(), is_cut), (FIELDS_MAX, true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn texts_are_truncated_between_characters(text in ".{0,40}", bytes_max in 0usize..60) {
            let mut short = text.clone();
            let is_cut = cut(&mut short, bytes_max);
            prop_assert!(short.len() <= bytes_max);
            prop_assert_eq!(is_cut, text.len() > bytes_max);
            prop_assert!(is_cut || short == text);
            let prefix = short.strip_suffix(CUT_MARK).unwrap_or(&short);
            prop_assert!(!is_cut || text.starts_with(prefix));
            // As long as possible: the longest character has four bytes.
            prop_assert!(!is_cut || bytes_max < CUT_MARK.len() || short.len() + 4 > bytes_max);
        }

        #[test]
        fn accepted_lines_are_within_bounds_and_stay_unchanged(
            message in prop_oneof![".{0,20}", Just("ä".repeat(MESSAGE_BYTES_MAX))],
            logger in prop_oneof![".{0,20}", Just("l".repeat(LOGGER_BYTES_MAX * 2))],
            fields in prop::collection::btree_map(".{0,50}", "(.{0,10}|(ab){2000})", 0..40),
        ) {
            let plausible = second(0)..=second(10);
            let claimed = LogLine { logger, ..line(message, fields) };
            let accepted = accept(claimed.clone(), &plausible);
            prop_assert!(accepted.line.bytes() <= LINE_BYTES_MAX);
            prop_assert_eq!(accepted.is_cut, accepted.line != claimed);
            let again = accept(accepted.line.clone(), &plausible);
            prop_assert_eq!(again, Accepted { is_cut: false, ..accepted });
        }
    }
}
