//! Samples of sandboxes, usages of teams, and their resolution by age.

use std::time::Duration;

use jiff::Timestamp;

/// Time between two samples of a sandbox.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum number of CPUs in a sample. More than any machine has.
pub const CPUS_MAX: u32 = 4096;
/// Maximum bytes in a sample: 2^53, which the columns and the numbers of clients represent exactly.
pub const SAMPLE_BYTES_MAX: u64 = 1 << 53;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Resolution of a reply for a length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resolution {
    /// Longest window with this resolution. Older samples are stored with the next coarser one.
    pub(crate) range_max: Duration,
    /// Time that one sample covers.
    pub(crate) step: Duration,
}

/// From the finest to the coarsest; the values are E2B's.
pub(crate) const RESOLUTIONS: [Resolution; 6] = [
    Resolution { range_max: HOUR, step: SAMPLE_INTERVAL },
    Resolution { range_max: Duration::from_secs(6 * 60 * 60), step: Duration::from_secs(30) },
    Resolution { range_max: Duration::from_secs(12 * 60 * 60), step: MINUTE },
    Resolution { range_max: DAY, step: Duration::from_secs(2 * 60) },
    Resolution { range_max: Duration::from_secs(7 * 24 * 60 * 60), step: Duration::from_secs(5 * 60) },
    Resolution { range_max: Duration::MAX, step: Duration::from_secs(15 * 60) },
];

/// Returns the time that one sample covers in a reply for a window of this length.
#[must_use]
pub fn step_of(range: Duration) -> Duration {
    let [.., coarsest] = RESOLUTIONS;
    RESOLUTIONS.into_iter().find(|resolution| range <= resolution.range_max).unwrap_or(coarsest).step
}

/// Resource usage of a sandbox at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Time; the first one if several samples were merged. Stored in microseconds.
    pub at: Timestamp,
    /// Number of logical CPUs, at most [`CPUS_MAX`].
    pub cpu_count: u32,
    /// Utilization of all CPUs together, in percent.
    pub cpu_used_pct: f64,
    /// In bytes, at most [`SAMPLE_BYTES_MAX`], like all fields below.
    pub mem_total: u64,
    /// Memory used by programs.
    pub mem_used: u64,
    /// Memory that the kernel would free for programs.
    pub mem_cache: u64,
    /// Size of the root file system.
    pub disk_total: u64,
    /// Used space of the root file system.
    pub disk_used: u64,
}

/// Query for samples of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleQuery {
    /// Only samples at this time or later.
    pub from: Option<Timestamp>,
    /// Only samples before this time.
    pub until: Option<Timestamp>,
    /// Time that one sample covers, as an average; `None`: chosen by the length of the found window ([`step_of`]).
    ///
    /// The resolution is never finer than the stored one.
    pub step: Option<Duration>,
}

/// Sandboxes of a team during a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// End of the span. Stored in microseconds.
    pub at: Timestamp,
    /// Length; stored in milliseconds.
    pub span: Duration,
    /// Maximum number of sandboxes that ran at the same time.
    pub sandboxes_max: u32,
    /// Number of sandboxes that were started.
    pub starts: u32,
}

impl Usage {
    /// Returns the starts per second.
    #[must_use]
    pub fn start_rate(&self) -> f64 {
        if self.span.is_zero() { 0.0 } else { f64::from(self.starts) / self.span.as_secs_f64() }
    }
}

/// A sample that represents several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct WeightedSample {
    pub(crate) sample: Sample,
    /// Number of samples that it represents.
    pub(crate) weight: u32,
}

/// The samples of one step, merged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bucket {
    pub(crate) merged: WeightedSample,
    /// Time of the last of them.
    pub(crate) last: Timestamp,
}

/// Merges samples, ordered by time, into one for each step of the clock.
pub(crate) fn buckets(samples: &[WeightedSample], step: Duration) -> Vec<Bucket> {
    let same = |one: &WeightedSample, other: &WeightedSample| {
        bucket_index(one.sample.at, step) == bucket_index(other.sample.at, step)
    };
    samples.chunk_by(same).filter_map(merge).collect()
}

/// Merges samples to the resolution of `step`.
pub(crate) fn downsample(samples: Vec<WeightedSample>, step: Duration) -> Vec<Sample> {
    // Samples arrive about an interval apart: two may fall into one step of the clock.
    if step <= SAMPLE_INTERVAL {
        return samples.into_iter().map(|weighted| weighted.sample).collect();
    }
    buckets(&samples, step).into_iter().map(|bucket| bucket.merged.sample).collect()
}

/// Merges usages of a team to the resolution of `step`: the maximum of the sandboxes, and the sum of the starts.
pub(crate) fn downsample_usages(usages: &[Usage], step: Duration) -> Vec<Usage> {
    let same = |one: &Usage, other: &Usage| bucket_index(one.at, step) == bucket_index(other.at, step);
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

/// Returns the index of the clock's step that contains a time. Times before 1970 do not occur.
pub(crate) fn bucket_index(at: Timestamp, step: Duration) -> i64 {
    let seconds = i64::try_from(step.as_secs()).unwrap_or(i64::MAX).max(1);
    at.as_second().div_euclid(seconds)
}

/// Merges samples: averages of used resources, and the newest totals.
///
/// The time is that of the first sample, which is within every window that contains all of them.
fn merge(samples: &[WeightedSample]) -> Option<Bucket> {
    let (first, last) = (samples.first()?, samples.last()?);
    let weight: u64 = samples.iter().map(|weighted| u64::from(weighted.weight)).sum::<u64>().max(1);
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
    Some(Bucket { merged: WeightedSample { sample, weight }, last: last.sample.at })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weighted(second: i64, percent: f64, used: u64, weight: u32) -> WeightedSample {
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
        WeightedSample { sample, weight }
    }

    #[test]
    fn longer_windows_have_coarser_steps() {
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
    fn every_step_is_a_multiple_of_the_finer_one() {
        for pair in RESOLUTIONS.windows(2) {
            let [finer, coarser] = pair else { panic!("two") };
            assert!(coarser.step.as_secs() > finer.step.as_secs() && coarser.range_max > finer.range_max);
            // Otherwise samples that are merged twice would be in the wrong step. 5 minutes are not a multiple of 2:
            // there a sample is off by less than a step.
            let is_whole = coarser.step.as_secs() % finer.step.as_secs() == 0;
            assert!(is_whole || finer.step == 2 * MINUTE, "{pair:?}");
        }
    }

    #[test]
    fn averages_are_weighted_and_totals_are_the_newest() {
        let mut last = weighted(59, 40.0, 400, 3);
        (last.sample.mem_total, last.sample.cpu_count) = (2000, 4);
        let found = buckets(&[weighted(31, 20.0, 100, 1), last, weighted(60, 7.0, 7, 1)], Duration::from_secs(30));
        let [first, second] = found.as_slice() else { panic!("two: {found:?}") };
        let Sample { at, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used } =
            first.merged.sample;
        assert_eq!((at.as_second(), first.last.as_second(), first.merged.weight), (31, 59, 4));
        assert!((cpu_used_pct - 35.0).abs() < 1e-9, "{cpu_used_pct}");
        assert_eq!((cpu_count, mem_total, disk_total), (4, 2000, 1000));
        assert_eq!((mem_used, mem_cache, disk_used), (325, 325, 325));
        assert_eq!(second.merged, weighted(60, 7.0, 7, 1));
    }

    #[test]
    fn the_maximum_of_a_team_is_preserved() {
        let usage = |second, sandboxes_max, starts| Usage {
            at: Timestamp::from_second(second).expect("a time"),
            span: MINUTE,
            sandboxes_max,
            starts,
        };
        let found = downsample_usages(&[usage(60, 3, 6), usage(120, 9, 0), usage(300, 1, 1)], 5 * MINUTE);
        let merged = Usage { span: 2 * MINUTE, ..usage(120, 9, 6) };
        assert_eq!(found, [merged, usage(300, 1, 1)]);
        assert!((found[0].start_rate() - 0.05).abs() < 1e-9);
        assert!(Usage { span: Duration::ZERO, ..merged }.start_rate().abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn merging_counts_every_sample_and_stays_between_minimum_and_maximum(
            values in prop::collection::vec((0i64..2000, 0.0f64..100.0, 0u64..SAMPLE_BYTES_MAX, 1u32..200), 0..40),
            step in prop::sample::select(vec![30u64, 60, 120, 300, 900]),
        ) {
            let mut samples: Vec<WeightedSample> =
                values.into_iter().map(|(at, percent, used, weight)| weighted(at, percent, used, weight)).collect();
            samples.sort_by_key(|weighted| weighted.sample.at);
            let step = Duration::from_secs(step);
            let found = buckets(&samples, step);
            let weights = |weights: &mut dyn Iterator<Item = u32>| weights.map(u64::from).sum::<u64>();
            prop_assert_eq!(
                weights(&mut found.iter().map(|bucket| bucket.merged.weight)),
                weights(&mut samples.iter().map(|weighted| weighted.weight))
            );
            for pair in found.windows(2) {
                prop_assert!(bucket_index(pair[0].merged.sample.at, step) < bucket_index(pair[1].merged.sample.at, step));
            }
            for bucket in &found {
                let Bucket { merged, last } = bucket;
                let within = samples.iter().filter(|each| (merged.sample.at..=*last).contains(&each.sample.at));
                let used: Vec<u64> = within.map(|each| each.sample.mem_used).collect();
                let (min, max) = (used.iter().min().expect("one"), used.iter().max().expect("one"));
                prop_assert!((*min..=*max).contains(&merged.sample.mem_used));
                prop_assert!((-1e-6..100.0 + 1e-6).contains(&merged.sample.cpu_used_pct));
            }
        }
    }
}
