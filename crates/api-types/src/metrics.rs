//! Resource usage of sandboxes and teams, and its queries.
//!
//! Times are Unix seconds in queries, and both RFC 3339 texts and Unix seconds in replies.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::form::{FormError, digits, pairs, parameters};

/// Maximum number of sandboxes in one query.
pub const SANDBOXES_MAX: usize = 100;

/// Reason for rejecting a query. The texts are sent to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetricsQueryError {
    /// The query is not form encoded.
    #[error("query is malformed: {0}")]
    Form(FormError),
    /// The parameter is not a time.
    #[error("{0} must be a time in Unix seconds")]
    Time(&'static str),
    /// The end is before the start.
    #[error("end must not be before start")]
    Range,
    /// The list is missing, or has too many sandboxes.
    #[error("sandbox_ids must name 1 to {SANDBOXES_MAX} sandboxes")]
    Sandboxes,
    /// The list contains a sandbox twice.
    #[error("sandbox_ids must be unique")]
    Duplicate,
    /// The metric is missing or unknown.
    #[error("metric must be `concurrent_sandboxes` or `sandbox_start_rate`")]
    Metric,
}

/// Time range: the query of `GET /sandboxes/{sandboxID}/metrics` and `GET /teams/{teamID}/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MetricsQuery {
    /// Start of the range in Unix seconds, inclusive.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 253_402_207_200_i64)]
    pub start: Option<Timestamp>,
    /// End of the range in Unix seconds, inclusive; not before `start`.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 253_402_207_200_i64)]
    pub end: Option<Timestamp>,
}

impl MetricsQuery {
    /// Parses the text after the `?`. Unknown parameters are ignored; one without a value counts as absent.
    ///
    /// # Errors
    /// [`MetricsQueryError`], whose text is for the client.
    pub fn parse(query: &str) -> Result<Self, MetricsQueryError> {
        Self::of(&parameters(query).map_err(MetricsQueryError::Form)?)
    }

    fn of(parameters: &BTreeMap<String, String>) -> Result<Self, MetricsQueryError> {
        let time = |name| parameters.get(name).map(|text| time(name, text)).transpose();
        let (start, end) = (time("start")?, time("end")?);
        if start.zip(end).is_some_and(|(start, end)| end < start) {
            return Err(MetricsQueryError::Range);
        }
        Ok(Self { start, end })
    }
}

/// Metric of a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum TeamMetricName {
    /// Number of running sandboxes.
    ConcurrentSandboxes,
    /// Sandboxes started per second.
    SandboxStartRate,
}

/// Query of `GET /teams/{teamID}/metrics/max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MaxQuery {
    /// Time range. Its parameters are documented in [`MetricsQuery`].
    #[param(ignore)]
    pub range: MetricsQuery,
    /// Metric to return the maximum of.
    #[param(inline)]
    pub metric: TeamMetricName,
}

impl MaxQuery {
    /// Parses the text after the `?`, like [`MetricsQuery::parse`].
    ///
    /// # Errors
    /// [`MetricsQueryError`], whose text is for the client.
    pub fn parse(query: &str) -> Result<Self, MetricsQueryError> {
        let parameters = parameters(query).map_err(MetricsQueryError::Form)?;
        let metric = match parameters.get("metric").map(String::as_str) {
            Some("concurrent_sandboxes") => TeamMetricName::ConcurrentSandboxes,
            Some("sandbox_start_rate") => TeamMetricName::SandboxStartRate,
            Some(_) | None => return Err(MetricsQueryError::Metric),
        };
        Ok(Self { range: MetricsQuery::of(&parameters)?, metric })
    }
}

/// Returns the distinct IDs in the query of `GET /sandboxes/metrics`. The texts are not validated as sandbox IDs.
///
/// # Errors
/// [`MetricsQueryError`], whose text is for the client.
pub fn sandbox_ids(query: &str) -> Result<BTreeSet<String>, MetricsQueryError> {
    let pairs = pairs(query).map_err(MetricsQueryError::Form)?;
    let mut ids = BTreeSet::new();
    for (_, value) in pairs.iter().filter(|(name, value)| name == "sandbox_ids" && !value.is_empty()) {
        for id in value.split(',') {
            if !ids.insert(id.to_owned()) {
                return Err(MetricsQueryError::Duplicate);
            }
            if ids.len() > SANDBOXES_MAX {
                return Err(MetricsQueryError::Sandboxes);
            }
        }
    }
    if ids.is_empty() { Err(MetricsQueryError::Sandboxes) } else { Ok(ids) }
}

fn time(name: &'static str, text: &str) -> Result<Timestamp, MetricsQueryError> {
    let time = digits(text).and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.ok_or(MetricsQueryError::Time(name))
}

/// Resource usage of a sandbox at one time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxMetric {
    /// Time of the measurement.
    pub timestamp: Timestamp,
    /// Time of the measurement in whole Unix seconds.
    pub timestamp_unix: i64,
    /// Number of logical CPUs.
    pub cpu_count: u32,
    /// Busy share of all CPUs in percent.
    pub cpu_used_pct: f64,
    /// Used memory in bytes.
    pub mem_used: u64,
    /// Total memory in bytes.
    pub mem_total: u64,
    /// Cached memory in bytes, which the kernel frees when programs need it.
    pub mem_cache: u64,
    /// Used bytes of the root file system.
    pub disk_used: u64,
    /// Size of the root file system in bytes.
    pub disk_total: u64,
}

/// Reply of `GET /sandboxes/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxesMetrics {
    /// Metrics by sandbox ID. Sandboxes without data are omitted.
    pub sandboxes: BTreeMap<String, SandboxMetric>,
}

/// Usage of a team at one time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TeamMetric {
    /// Time of the measurement.
    pub timestamp: Timestamp,
    /// Time of the measurement in whole Unix seconds.
    pub timestamp_unix: i64,
    /// Number of sandboxes that ran at the same time.
    pub concurrent_sandboxes: u32,
    /// Sandboxes started per second.
    pub sandbox_start_rate: f64,
}

/// Maximum of a metric of a team.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaxTeamMetric {
    /// Time of the maximum.
    pub timestamp: Timestamp,
    /// Time of the maximum in whole Unix seconds.
    pub timestamp_unix: i64,
    /// Value of the metric.
    pub value: f64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn second(second: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(second).expect("a time"))
    }

    #[test]
    fn ranges_are_parsed_or_rejected() {
        for (text, start, end) in [
            ("", None, None),
            ("start=&end=", None, None),
            ("start=7&x=y", second(7), None),
            ("end=0", None, second(0)),
            ("start=7&end=7", second(7), second(7)),
            ("start=7&end=8&start=9", second(7), second(8)),
        ] {
            assert_eq!(MetricsQuery::parse(text), Ok(MetricsQuery { start, end }), "{text}");
        }
        for (text, expected) in [
            ("start=8&end=7", MetricsQueryError::Range),
            ("start=-1", MetricsQueryError::Time("start")),
            ("end=1.5", MetricsQueryError::Time("end")),
            ("end=99999999999999", MetricsQueryError::Time("end")),
            ("start=2026-01-01", MetricsQueryError::Time("start")),
            ("start=%zz", MetricsQueryError::Form(FormError::Escape)),
        ] {
            assert_eq!(MetricsQuery::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn max_queries_require_a_metric() {
        let range = MetricsQuery { start: second(1), end: None };
        let expected = MaxQuery { range, metric: TeamMetricName::SandboxStartRate };
        assert_eq!(MaxQuery::parse("metric=sandbox_start_rate&start=1"), Ok(expected));
        for text in ["", "metric=", "metric=cpu"] {
            assert_eq!(MaxQuery::parse(text), Err(MetricsQueryError::Metric), "{text}");
        }
        let reversed = "metric=concurrent_sandboxes&start=2&end=1";
        assert_eq!(MaxQuery::parse(reversed), Err(MetricsQueryError::Range));
    }

    #[test]
    fn ids_are_bounded_and_unique() {
        let read = |text: &str| sandbox_ids(text).map(|ids| ids.into_iter().collect::<Vec<_>>().join(" "));
        assert_eq!(read("sandbox_ids=b,a&x=y"), Ok("a b".to_owned()));
        assert_eq!(read("sandbox_ids=b%2Ca&sandbox_ids=c"), Ok("a b c".to_owned()));
        let many = |count: usize| {
            let ids: Vec<String> = (0..count).map(|number| format!("i{number}")).collect();
            format!("sandbox_ids={}", ids.join(","))
        };
        assert_eq!(sandbox_ids(&many(100)).map(|ids| ids.len()), Ok(100));
        for (text, expected) in [
            (many(101).as_str(), MetricsQueryError::Sandboxes),
            ("", MetricsQueryError::Sandboxes),
            ("sandbox_ids=", MetricsQueryError::Sandboxes),
            ("sandbox_ids=a,b,a", MetricsQueryError::Duplicate),
            ("sandbox_ids=a&sandbox_ids=a", MetricsQueryError::Duplicate),
            ("sandbox_ids=%f", MetricsQueryError::Form(FormError::Escape)),
        ] {
            assert_eq!(sandbox_ids(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn replies_have_the_contract_s_format() {
        let timestamp: Timestamp = "2026-01-02T03:04:05.5Z".parse().expect("a time");
        let timestamp_unix = timestamp.as_second();
        let metric = SandboxMetric {
            timestamp,
            timestamp_unix,
            cpu_count: 2,
            cpu_used_pct: 12.5,
            mem_used: 3,
            mem_total: 4,
            mem_cache: 5,
            disk_used: 6,
            disk_total: 7,
        };
        let shown = json!({
            "timestamp": "2026-01-02T03:04:05.5Z", "timestampUnix": 1_767_323_045, "cpuCount": 2, "cpuUsedPct": 12.5,
            "memUsed": 3, "memTotal": 4, "memCache": 5, "diskUsed": 6, "diskTotal": 7,
        });
        let of_several = SandboxesMetrics { sandboxes: BTreeMap::from([("i1".to_owned(), metric)]) };
        assert_eq!(serde_json::to_value(of_several).expect("plain"), json!({"sandboxes": {"i1": shown}}));
        let team = TeamMetric { timestamp, timestamp_unix, concurrent_sandboxes: 3, sandbox_start_rate: 0.5 };
        let shown = json!({
            "timestamp": "2026-01-02T03:04:05.5Z", "timestampUnix": 1_767_323_045, "concurrentSandboxes": 3,
            "sandboxStartRate": 0.5,
        });
        assert_eq!(serde_json::to_value(team).expect("plain"), shown);
        let most = MaxTeamMetric { timestamp, timestamp_unix, value: 3.0 };
        let shown = json!({"timestamp": "2026-01-02T03:04:05.5Z", "timestampUnix": 1_767_323_045, "value": 3.0});
        assert_eq!(serde_json::to_value(most).expect("plain"), shown);
    }

    proptest! {
        #[test]
        fn no_query_panics(text in ".*") {
            let _ = MetricsQuery::parse(&text);
            let _ = MaxQuery::parse(&text);
            let _ = sandbox_ids(&text);
        }
    }
}
