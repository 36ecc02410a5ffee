//! Percentiles of durations.

use std::time::Duration;

/// Percentiles of a series of measurements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Percentiles {
    pub(crate) p50: Duration,
    pub(crate) p95: Duration,
    pub(crate) p99: Duration,
}

impl Percentiles {
    /// Calculates the percentiles by nearest rank.
    ///
    /// # Panics
    /// Panics if the series is empty.
    pub(crate) fn of(mut series: Vec<Duration>) -> Self {
        assert!(!series.is_empty(), "nothing was measured");
        series.sort();
        let rank = |percent: usize| series[(series.len() * percent).div_ceil(100).clamp(1, series.len()) - 1];
        Self { p50: rank(50), p95: rank(95), p99: rank(99) }
    }
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let series = (1..=100).rev().map(Duration::from_millis).collect();
        let percentiles = Percentiles::of(series);
        assert_eq!(percentiles.p50, Duration::from_millis(50));
        assert_eq!(percentiles.p95, Duration::from_millis(95));
        assert_eq!(percentiles.p99, Duration::from_millis(99));
        assert_eq!(Percentiles::of(vec![Duration::from_secs(1)]).p99, Duration::from_secs(1));
    }
}
