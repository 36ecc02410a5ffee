//! Metrics of a guest, requested every few seconds while the sandbox runs.
//!
//! The task that owns the sandbox sends one request at a time, so sampling ends with the sandbox and delays nothing: a
//! guest without a reply is not asked again before the next interval. Sandboxes that started together are sampled at
//! different times, which follow from their execution id.
//!
//! The guest may report anything. A report becomes a valid [`Sample`] or is dropped. The time of a sample is the
//! host's, because queries use the host's clock. A large difference of the guest's clock is logged.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{CPUS_MAX, SAMPLE_BYTES_MAX, SAMPLE_INTERVAL, Sample, Samples};
use hearth_envd_api::{Client, Error, GuestMetrics};
use hearth_types::{ExecutionId, SandboxId, SandboxSpec, TeamId};
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};

/// Time from the start of the sandbox until its first sample.
///
/// The first command of a client should not wait behind the sample, and by then the control role has recorded that the
/// sandbox runs: no sample is older than the sandbox.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// Limit for a guest to reply.
const REPLY_LIMIT: Duration = Duration::from_secs(2);
/// Difference of clocks above which it is logged.
const CLOCK_ERROR_S_MAX: u64 = 5;

/// Store for samples of guests' metrics.
#[derive(Clone)]
pub struct GuestSamples(pub Arc<dyn Samples>);

impl fmt::Debug for GuestSamples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestSamples").finish_non_exhaustive()
    }
}

/// Sampler of one guest's metrics.
pub(crate) struct Sampler {
    client: Arc<Client>,
    samples: GuestSamples,
    team_id: TeamId,
    sandbox_id: SandboxId,
    execution_id: ExecutionId,
    /// Failures to store a sample since the last success.
    failures: u64,
    /// The guest's clock was far off at the last sample.
    is_clock_off: bool,
}

impl Sampler {
    pub(crate) fn new(client: Arc<Client>, samples: GuestSamples, spec: &SandboxSpec) -> Self {
        Self {
            client,
            samples,
            team_id: spec.team_id,
            sandbox_id: spec.sandbox_id.clone(),
            execution_id: spec.execution_id,
            failures: 0,
            is_clock_off: false,
        }
    }

    /// Samples the guest for ever, starting after [`FIRST_AFTER`].
    ///
    /// Cancel safe: a cancelled sample may be stored or not.
    pub(crate) async fn run(&mut self) {
        tokio::time::sleep(FIRST_AFTER).await;
        self.sample().await;
        let mut timer =
            tokio::time::interval_at(Instant::now() + second_sample_after(self.execution_id), SAMPLE_INTERVAL);
        // A node that was suspended needs no catch-up samples.
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            self.sample().await;
        }
    }

    async fn sample(&mut self) {
        let metrics = match tokio::time::timeout(REPLY_LIMIT, self.client.metrics()).await {
            Ok(Ok(metrics)) => metrics,
            Ok(Err(error)) => return log_failure(&error),
            Err(_elapsed) => return log_failure(&Error::NoReply { budget: REPLY_LIMIT }),
        };
        let now = Timestamp::now();
        self.check_clock(metrics.unix_seconds, now);
        let Some(sample) = validate(&metrics, now) else {
            tracing::debug!(?metrics, "sample rejected: implausible values");
            return;
        };
        match self.samples.0.record(self.team_id, &self.sandbox_id, sample).await {
            Ok(()) => self.failures = 0,
            Err(error) => {
                self.failures += 1;
                // Logged once per outage.
                if self.failures == 1 {
                    tracing::warn!(error = &error as &dyn std::error::Error, "could not store a sample");
                }
            }
        }
    }

    fn check_clock(&mut self, unix_seconds: i64, now: Timestamp) {
        let error_s = unix_seconds.abs_diff(now.as_second());
        let is_off = error_s > CLOCK_ERROR_S_MAX;
        if is_off && !self.is_clock_off {
            tracing::info!(error_s, "guest clock differs from the host's");
        }
        self.is_clock_off = is_off;
    }
}

fn log_failure(error: &Error) {
    tracing::debug!(%error, "could not sample the guest");
}

/// Returns the time between the first and the second sample: from half an interval to one and a half.
fn second_sample_after(execution_id: ExecutionId) -> Duration {
    // The last bytes of an id are random in every UUID version.
    let (_, random) = execution_id.as_uuid().as_u64_pair();
    let span = u64::try_from(SAMPLE_INTERVAL.as_millis()).unwrap_or(u64::MAX);
    SAMPLE_INTERVAL / 2 + Duration::from_millis(random % span)
}

/// Validates a guest's report. Usage is limited to the total; `None` if the values are impossible.
fn validate(metrics: &GuestMetrics, now: Timestamp) -> Option<Sample> {
    let GuestMetrics {
        unix_seconds: _,
        cpu_count,
        cpu_used_pct,
        mem_total,
        mem_used,
        mem_cache,
        disk_total,
        disk_used,
    } = *metrics;
    let cpu_count = u32::try_from(cpu_count).ok().filter(|count| (1..=CPUS_MAX).contains(count))?;
    let totals = [mem_total, disk_total];
    if !cpu_used_pct.is_finite() || totals.iter().any(|total| !(1..=SAMPLE_BYTES_MAX).contains(total)) {
        return None;
    }
    Some(Sample {
        at: now,
        cpu_count,
        cpu_used_pct: cpu_used_pct.clamp(0.0, 100.0),
        mem_total,
        mem_used: mem_used.min(mem_total),
        mem_cache: mem_cache.min(mem_total),
        disk_total,
        disk_used: disk_used.min(disk_total),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use hearth_analytics::{Cause, Error as StoreError, SampleQuery};
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Stores samples in a list, or fails.
    #[derive(Default)]
    struct List {
        stored: Mutex<Vec<(TeamId, SandboxId, Sample)>>,
        is_broken: bool,
    }

    #[async_trait]
    impl Samples for List {
        async fn record(&self, team_id: TeamId, sandbox_id: &SandboxId, sample: Sample) -> Result<(), StoreError> {
            if self.is_broken {
                return Err(StoreError::RecordSample { sandbox_id: sandbox_id.clone(), source: Cause::new("full") });
            }
            self.stored.lock().expect("sound").push((team_id, sandbox_id.clone(), sample));
            Ok(())
        }

        async fn range(&self, _: TeamId, _: &SandboxId, _: &SampleQuery) -> Result<Vec<Sample>, StoreError> {
            unreachable!("nodes only store")
        }

        async fn latest(&self, _: TeamId, _: &[SandboxId]) -> Result<BTreeMap<SandboxId, Sample>, StoreError> {
            unreachable!("nodes only store")
        }
    }

    /// A guest that sends these replies, one per connection, and then none.
    async fn guest(replies: Vec<String>) -> Arc<Client> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            for reply in replies {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.expect("a request");
                assert!(request[..length].starts_with(b"GET /metrics HTTP/1.1\r\n"), "{request:?}");
                stream.write_all(reply.as_bytes()).await.expect("sent");
            }
            let _silent = listener.accept().await.expect("a connection");
            std::future::pending::<()>().await;
        });
        Arc::new(Client::new(Box::new(move || Box::pin(TcpStream::connect(address))), "guest", HeaderMap::new()))
    }

    fn reply(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    fn body(cpu_count: u32) -> String {
        format!(
            r#"{{"ts":100,"cpu_count":{cpu_count},"cpu_used_pct":12.5,"mem_total":1000,"mem_used":600,"mem_cache":300,
                "disk_total":5000,"disk_used":2000}}"#
        )
    }

    fn sampler(client: Arc<Client>, list: &Arc<List>) -> Sampler {
        Sampler {
            client,
            samples: GuestSamples(list.clone()),
            team_id: TeamId::generate(),
            sandbox_id: SandboxId::generate(),
            execution_id: ExecutionId::generate(),
            failures: 0,
            is_clock_off: false,
        }
    }

    #[tokio::test]
    async fn only_valid_reports_are_stored() {
        let replies = vec![
            reply("200 OK", &body(2)),
            reply("500 Internal Server Error", ""),
            reply("401 Unauthorized", "{}"),
            reply("200 OK", "nonsense"),
            reply("200 OK", &body(0)),
            reply("200 OK", &" ".repeat(1 << 20)),
            "\0\0\0".to_owned(),
            String::new(),
            reply("200 OK", &body(4)),
        ];
        let (list, requests) = (Arc::new(List::default()), replies.len());
        let mut sampler = sampler(guest(replies).await, &list);
        let before = Timestamp::now();
        for _ in 0..requests {
            sampler.sample().await;
        }
        let stored = list.stored.lock().expect("sound").clone();
        let [(team_id, sandbox_id, first), (_, _, second)] = stored.as_slice() else { panic!("two: {stored:?}") };
        assert_eq!((team_id, sandbox_id), (&sampler.team_id, &sampler.sandbox_id));
        assert_eq!((first.cpu_count, first.mem_used, second.cpu_count), (2, 600, 4));
        assert!(first.at >= before && first.at <= Timestamp::now(), "the time is the guest's, of 1970: {}", first.at);
        assert!(sampler.is_clock_off);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_without_a_reply_times_out() {
        let list = Arc::new(List::default());
        let mut sampler = sampler(guest(Vec::new()).await, &list);
        let before = Instant::now();
        sampler.sample().await;
        assert_eq!(before.elapsed().as_secs(), REPLY_LIMIT.as_secs());
        assert!(list.stored.lock().expect("sound").is_empty());
    }

    #[tokio::test]
    async fn failures_to_store_samples_are_counted() {
        let replies = vec![reply("200 OK", &body(2)); 3];
        let list = Arc::new(List { is_broken: true, ..List::default() });
        let mut sampler = sampler(guest(replies).await, &list);
        for failures in 1..=3 {
            sampler.sample().await;
            assert_eq!(sampler.failures, failures);
        }
    }

    const HONEST: GuestMetrics = GuestMetrics {
        unix_seconds: 100,
        cpu_count: 2,
        cpu_used_pct: 12.5,
        mem_total: 1000,
        mem_used: 600,
        mem_cache: 300,
        disk_total: 5000,
        disk_used: 2000,
    };

    fn at() -> Timestamp {
        Timestamp::from_second(1000).expect("a time")
    }

    #[test]
    fn a_valid_report_becomes_a_sample_with_the_host_s_time() {
        let expected = Sample {
            at: at(),
            cpu_count: 2,
            cpu_used_pct: 12.5,
            mem_total: 1000,
            mem_used: 600,
            mem_cache: 300,
            disk_total: 5000,
            disk_used: 2000,
        };
        assert_eq!(validate(&HONEST, at()), Some(expected));
        let greedy = GuestMetrics { mem_used: u64::MAX, mem_cache: 1001, disk_used: 5001, cpu_used_pct: 1e9, ..HONEST };
        let capped = Sample { mem_used: 1000, mem_cache: 1000, disk_used: 5000, cpu_used_pct: 100.0, ..expected };
        assert_eq!(validate(&greedy, at()), Some(capped));
        let idle = GuestMetrics { cpu_used_pct: -0.1, ..HONEST };
        assert_eq!(validate(&idle, at()), Some(Sample { cpu_used_pct: 0.0, ..expected }));
    }

    #[test]
    fn impossible_values_are_rejected() {
        for nonsense in [
            GuestMetrics { cpu_count: 0, ..HONEST },
            GuestMetrics { cpu_count: u64::from(CPUS_MAX) + 1, ..HONEST },
            GuestMetrics { cpu_count: 1 << 40, ..HONEST },
            GuestMetrics { cpu_used_pct: f64::NAN, ..HONEST },
            GuestMetrics { cpu_used_pct: f64::INFINITY, ..HONEST },
            GuestMetrics { mem_total: 0, ..HONEST },
            GuestMetrics { mem_total: SAMPLE_BYTES_MAX + 1, ..HONEST },
            GuestMetrics { disk_total: 0, ..HONEST },
            GuestMetrics { disk_total: u64::MAX, ..HONEST },
        ] {
            assert_eq!(validate(&nonsense, at()), None, "{nonsense:?}");
        }
    }

    #[test]
    fn sandboxes_are_sampled_at_different_times() {
        let phases: Vec<Duration> = (0..1000).map(|_| second_sample_after(ExecutionId::generate())).collect();
        assert!(phases.iter().all(|phase| (SAMPLE_INTERVAL / 2..SAMPLE_INTERVAL * 3 / 2).contains(phase)));
        for fifth in 0..5 {
            let start = SAMPLE_INTERVAL / 2 + SAMPLE_INTERVAL / 5 * fifth;
            let within = phases.iter().filter(|phase| (start..start + SAMPLE_INTERVAL / 5).contains(*phase)).count();
            assert!((100..300).contains(&within), "{fifth}: {within}");
        }
    }
}
