//! What a sandbox used at one moment, how many sandboxes a team had, and how exact either is kept.

use std::time::Duration;

use jiff::Timestamp;

/// Time between two samples of a sandbox.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// CPUs that a sample may tell of. More than any machine has.
pub const CPUS_MAX: u32 = 4096;
/// Bytes that a sample may tell of: what the columns and what clients count with can hold exactly (2^53).
pub const SAMPLE_BYTES_MAX: u64 = 1 << 53;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How exact an answer over a length of time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resolution {
    /// Windows up to this length have it. What is older than this is kept with the next one.
    pub(crate) range_max: Duration,
    /// One sample for so much time.
    pub(crate) step: Duration,
}

/// From the finest to the coarsest: those of E2B.
pub(crate) const RESOLUTIONS: [Resolution; 6] = [
    Resolution { range_max: HOUR, step: SAMPLE_INTERVAL },
    Resolution { range_max: Duration::from_secs(6 * 60 * 60), step: Duration::from_secs(30) },
    Resolution { range_max: Duration::from_secs(12 * 60 * 60), step: MINUTE },
    Resolution { range_max: DAY, step: Duration::from_secs(2 * 60) },
    Resolution { range_max: Duration::from_secs(7 * 24 * 60 * 60), step: Duration::from_secs(5 * 60) },
    Resolution { range_max: Duration::MAX, step: Duration::from_secs(15 * 60) },
];

/// The time for which an answer over a window of this length has one sample.
#[must_use]
pub fn step_of(range: Duration) -> Duration {
    let [.., coarsest] = RESOLUTIONS;
    RESOLUTIONS.into_iter().find(|resolution| range <= resolution.range_max).unwrap_or(coarsest).step
}

/// What a sandbox used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When; of several samples in one, the first. Kept in microseconds.
    pub at: Timestamp,
    /// Logical CPUs, at most [`CPUS_MAX`].
    pub cpu_count: u32,
    /// Busy share of all of them, in percent.
    pub cpu_used_pct: f64,
    /// Bytes, at most [`SAMPLE_BYTES_MAX`], as all that follow.
    pub mem_total: u64,
    /// What programs use.
    pub mem_used: u64,
    /// What would be given up if they needed it.
    pub mem_cache: u64,
    /// Of the root filesystem.
    pub disk_total: u64,
    /// Of the root filesystem.
    pub disk_used: u64,
}

/// Which samples of a sandbox to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleQuery {
    /// At this time or later.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// One sample for so much time, an average; `None`: as the length of what is found says ([`step_of`]). Never finer than
    /// what is kept.
    pub step: Option<Duration>,
}

/// How many sandboxes a team had during a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// When the span ended. Kept in microseconds.
    pub at: Timestamp,
    /// How long it was; kept in milliseconds.
    pub span: Duration,
    /// Most sandboxes that ran at the same time.
    pub sandboxes_max: u32,
    /// How many were started.
    pub starts: u32,
}

impl Usage {
    /// Starts in a second.
    #[must_use]
    pub fn start_rate(&self) -> f64 {
        if self.span.is_zero() { 0.0 } else { f64::from(self.starts) / self.span.as_secs_f64() }
    }
}

/// A sample that stands for several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Weighed {
    pub(crate) sample: Sample,
    /// For how many.
    pub(crate) weight: u32,
}

/// The samples of one step, as one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bucket {
    pub(crate) merged: Weighed,
    /// When the last of them was.
    pub(crate) last: Timestamp,
}

/// Merges samples, in the order of their times, into one for each step of the clock.
pub(crate) fn buckets(samples: &[Weighed], step: Duration) -> Vec<Bucket> {
    let same = |one: &Weighed, other: &Weighed| number(one.sample.at, step) == number(other.sample.at, step);
    samples.chunk_by(same).filter_map(merge).collect()
}

/// As few samples as the step says.
pub(crate) fn thin(samples: Vec<Weighed>, step: Duration) -> Vec<Sample> {
    // Samples come about an interval apart: two may well fall into one step of the clock.
    if step <= SAMPLE_INTERVAL {
        return samples.into_iter().map(|weighed| weighed.sample).collect();
    }
    buckets(&samples, step).into_iter().map(|bucket| bucket.merged.sample).collect()
}

/// The same for a team: the most of the most, and all starts.
pub(crate) fn thin_usage(usages: &[Usage], step: Duration) -> Vec<Usage> {
    let same = |one: &Usage, other: &Usage| number(one.at, step) == number(other.at, step);
    let merged = usages.chunk_by(same).filter_map(|part| {
        part.iter().copied().reduce(|sum, next| Usage {
            at: next.at,
            span: sum.span.saturating_add(next.span),
            sandboxes_max: sum.sandboxes_max.max(next.sandboxes_max),
            starts: sum.starts.saturating_add(next.starts),
        })
    });
    merged.collect()
}

/// Which step of the clock a time is in. Times before 1970 do not occur; they would share steps with nothing.
pub(crate) fn number(at: Timestamp, step: Duration) -> i64 {
    let seconds = i64::try_from(step.as_secs()).unwrap_or(i64::MAX).max(1);
    at.as_second().div_euclid(seconds)
}

/// Averages of what is used; the newest word on what there is. The time is that of the first, which is within every window
/// that they are all in.
fn merge(samples: &[Weighed]) -> Option<Bucket> {
    let (first, last) = (samples.first()?, samples.last()?);
    let weight: u64 = samples.iter().map(|weighed| u64::from(weighed.weight)).sum::<u64>().max(1);
    let average = |of: fn(&Sample) -> u64| {
        let sum: u128 = samples.iter().map(|each| u128::from(of(&each.sample)) * u128::from(each.weight)).sum();
        u64::try_from(sum / u128::from(weight)).unwrap_or(u64::MAX)
    };
    let busy: f64 = samples.iter().map(|each| each.sample.cpu_used_pct * f64::from(each.weight)).sum();
    let Sample { cpu_count, mem_total, disk_total, .. } = last.sample;
    let weight = u32::try_from(weight).unwrap_or(u32::MAX);
    let sample = Sample {
        at: first.sample.at,
        cpu_count,
        cpu_used_pct: busy / f64::from(weight),
        mem_total,
        mem_used: average(|sample| sample.mem_used),
        mem_cache: average(|sample| sample.mem_cache),
        disk_total,
        disk_used: average(|sample| sample.disk_used),
    };
    Some(Bucket { merged: Weighed { sample, weight }, last: last.sample.at })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weighed(second: i64, percent: f64, used: u64, weight: u32) -> Weighed {
        let at = Timestamp::from_second(second).expect("a time");
        let sample = Sample {
            at,
            cpu_count: 2,
            cpu_used_pct: percent,
            mem_total: 1000,
            mem_used: used,
            mem_cache: used,
            disk_total: 1000,
            disk_used: used,
        };
        Weighed { sample, weight }
    }

    #[test]
    fn the_longer_the_window_the_coarser_the_answer() {
        let second = Duration::from_secs(1);
        for (range, step) in [
            (Duration::ZERO, 5),
            (HOUR, 5),
            (HOUR + second, 30),
            (6 * HOUR, 30),
            (6 * HOUR + second, 60),
            (12 * HOUR, 60),
            (DAY, 120),
            (DAY + second, 300),
            (7 * DAY, 300),
            (7 * DAY + second, 900),
            (Duration::MAX, 900),
        ] {
            assert_eq!(step_of(range).as_secs(), step, "{range:?}");
        }
    }

    #[test]
    fn every_step_is_made_of_whole_finer_ones() {
        for pair in RESOLUTIONS.windows(2) {
            let [finer, coarser] = pair else { panic!("two") };
            assert!(coarser.step.as_secs() > finer.step.as_secs() && coarser.range_max > finer.range_max);
            // Without this, samples that are merged twice would lie in the wrong step. The one of 2 to 5 minutes is not
            // whole: there a sample is off by less than a step.
            let is_whole = coarser.step.as_secs() % finer.step.as_secs() == 0;
            assert!(is_whole || finer.step == 2 * MINUTE, "{pair:?}");
        }
    }

    #[test]
    fn averages_weigh_and_totals_are_the_newest() {
        let mut last = weighed(59, 40.0, 400, 3);
        (last.sample.mem_total, last.sample.cpu_count) = (2000, 4);
        let found = buckets(&[weighed(31, 20.0, 100, 1), last, weighed(60, 7.0, 7, 1)], Duration::from_secs(30));
        let [first, second] = found.as_slice() else { panic!("two: {found:?}") };
        let Sample { at, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used } =
            first.merged.sample;
        assert_eq!((at.as_second(), first.last.as_second(), first.merged.weight), (31, 59, 4));
        assert!((cpu_used_pct - 35.0).abs() < 1e-9, "{cpu_used_pct}");
        assert_eq!((cpu_count, mem_total, disk_total), (4, 2000, 1000));
        assert_eq!((mem_used, mem_cache, disk_used), (325, 325, 325));
        assert_eq!(second.merged, weighed(60, 7.0, 7, 1));
    }

    #[test]
    fn a_team_s_most_stays_the_most() {
        let usage = |second, sandboxes_max, starts| Usage {
            at: Timestamp::from_second(second).expect("a time"),
            span: MINUTE,
            sandboxes_max,
            starts,
        };
        let found = thin_usage(&[usage(60, 3, 6), usage(120, 9, 0), usage(300, 1, 1)], 5 * MINUTE);
        let merged = Usage { span: 2 * MINUTE, ..usage(120, 9, 6) };
        assert_eq!(found, [merged, usage(300, 1, 1)]);
        assert!((found[0].start_rate() - 0.05).abs() < 1e-9);
        assert!(Usage { span: Duration::ZERO, ..merged }.start_rate().abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn merging_loses_no_sample_and_stays_between_least_and_most(
            values in prop::collection::vec((0i64..2000, 0.0f64..100.0, 0u64..SAMPLE_BYTES_MAX, 1u32..200), 0..40),
            step in prop::sample::select(vec![30u64, 60, 120, 300, 900]),
        ) {
            let mut samples: Vec<Weighed> =
                values.into_iter().map(|(at, percent, used, weight)| weighed(at, percent, used, weight)).collect();
            samples.sort_by_key(|weighed| weighed.sample.at);
            let step = Duration::from_secs(step);
            let found = buckets(&samples, step);
            let weights = |weighed: &mut dyn Iterator<Item = u32>| weighed.map(u64::from).sum::<u64>();
            prop_assert_eq!(
                weights(&mut found.iter().map(|bucket| bucket.merged.weight)),
                weights(&mut samples.iter().map(|weighed| weighed.weight))
            );
            for pair in found.windows(2) {
                prop_assert!(number(pair[0].merged.sample.at, step) < number(pair[1].merged.sample.at, step));
            }
            for bucket in &found {
                let Bucket { merged, last } = bucket;
                let within = samples.iter().filter(|each| (merged.sample.at..=*last).contains(&each.sample.at));
                let used: Vec<u64> = within.map(|each| each.sample.mem_used).collect();
                let (least, most) = (used.iter().min().expect("one"), used.iter().max().expect("one"));
                prop_assert!((*least..=*most).contains(&merged.sample.mem_used));
                prop_assert!((-1e-6..100.0 + 1e-6).contains(&merged.sample.cpu_used_pct));
            }
        }
    }
}
