//! What a guest uses, asked every few seconds for as long as the sandbox runs.
//!
//! One request at a time, by the task that owns the sandbox, so that it ends with it and holds nothing up: a guest that does
//! not answer is not asked again before the next time. Sandboxes that began together are asked at different times, which a
//! number of their execution decides.
//!
//! The guest may say anything. What it says becomes a [`Sample`] or nothing; the time of a sample is that of the host, whose
//! clock the queries are by. A guest's clock that is far off is a line in the node's log.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{CPUS_MAX, SAMPLE_BYTES_MAX, SAMPLE_INTERVAL, Sample, Samples};
use hearth_envd_api::{Client, Error, GuestMetrics};
use hearth_types::{ExecutionId, SandboxId, SandboxSpec, TeamId};
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};

/// From when the sandbox runs until its first sample. The first command of its client should not wait behind it, and by then
/// also the control role has noted that it runs: no sample is older than the sandbox.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// How long a guest may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// A clock that is further off than this is told about.
const CLOCK_ERROR_S_MAX: u64 = 5;

/// Who keeps samples of what guests use.
#[derive(Clone)]
pub struct GuestSamples(pub Arc<dyn Samples>);

impl fmt::Debug for GuestSamples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestSamples").finish_non_exhaustive()
    }
}

/// Asks one guest.
pub(crate) struct Meter {
    client: Arc<Client>,
    samples: GuestSamples,
    team_id: TeamId,
    sandbox_id: SandboxId,
    execution_id: ExecutionId,
    /// Samples that were not kept since one was.
    failures: u64,
    /// Whether the guest's clock was far off when it was last asked.
    is_clock_off: bool,
}

impl Meter {
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

    /// Samples the guest for ever, for the first time soon. Cancel safe: a sample that is cut off may be kept or not.
    pub(crate) async fn run(&mut self) {
        tokio::time::sleep(FIRST_AFTER).await;
        self.sample().await;
        let mut timer = tokio::time::interval_at(Instant::now() + phase(self.execution_id), SAMPLE_INTERVAL);
        // A node that stood still has no use for many samples at once.
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            self.sample().await;
        }
    }

    async fn sample(&mut self) {
        let metrics = match tokio::time::timeout(ANSWER_TIME_MAX, self.client.metrics()).await {
            Ok(Ok(metrics)) => metrics,
            Ok(Err(error)) => return skip(&error),
            Err(_elapsed) => return skip(&Error::Silent { budget: ANSWER_TIME_MAX }),
        };
        let now = Timestamp::now();
        self.look_at_clock(metrics.unix_seconds, now);
        let Some(sample) = plausible(&metrics, now) else {
            tracing::debug!(?metrics, "what the guest says it uses cannot be");
            return;
        };
        match self.samples.0.keep(self.team_id, &self.sandbox_id, sample).await {
            Ok(()) => self.failures = 0,
            Err(error) => {
                self.failures += 1;
                // Once for each time it stops working.
                if self.failures == 1 {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a sample was not kept");
                }
            }
        }
    }

    fn look_at_clock(&mut self, unix_seconds: i64, now: Timestamp) {
        let error_s = unix_seconds.abs_diff(now.as_second());
        let is_off = error_s > CLOCK_ERROR_S_MAX;
        if is_off && !self.is_clock_off {
            tracing::info!(error_s, "the guest's clock is off");
        }
        self.is_clock_off = is_off;
    }
}

fn skip(error: &Error) {
    tracing::debug!(%error, "the guest was not sampled");
}

/// How long after the first sample the second comes: from half an interval to one and a half.
fn phase(execution_id: ExecutionId) -> Duration {
    // The last bytes of an id are random, whatever its version.
    let (_, random) = execution_id.as_uuid().as_u64_pair();
    let span = u64::try_from(SAMPLE_INTERVAL.as_millis()).unwrap_or(u64::MAX);
    SAMPLE_INTERVAL / 2 + Duration::from_millis(random % span)
}

/// A sample of what a guest says, if it can be true. What is used cannot be more than there is.
fn plausible(metrics: &GuestMetrics, now: Timestamp) -> Option<Sample> {
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
    use hearth_analytics::{Cause, Error as KeepError, SampleQuery};
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Samples in a list; a sandbox in it is not kept while the keeper is broken.
    #[derive(Default)]
    struct List {
        kept: Mutex<Vec<(TeamId, SandboxId, Sample)>>,
        is_broken: bool,
    }

    #[async_trait]
    impl Samples for List {
        async fn keep(&self, team_id: TeamId, sandbox_id: &SandboxId, sample: Sample) -> Result<(), KeepError> {
            if self.is_broken {
                return Err(KeepError::KeepSample { sandbox_id: sandbox_id.clone(), source: Cause::new("full") });
            }
            self.kept.lock().expect("sound").push((team_id, sandbox_id.clone(), sample));
            Ok(())
        }

        async fn range(&self, _: TeamId, _: &SandboxId, _: &SampleQuery) -> Result<Vec<Sample>, KeepError> {
            unreachable!("nodes only keep")
        }

        async fn latest(&self, _: TeamId, _: &[SandboxId]) -> Result<BTreeMap<SandboxId, Sample>, KeepError> {
            unreachable!("nodes only keep")
        }
    }

    /// A guest that gives these answers, one for each connection, and then none.
    async fn guest(answers: Vec<String>) -> Arc<Client> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.expect("a request");
                assert!(request[..length].starts_with(b"GET /metrics HTTP/1.1\r\n"), "{request:?}");
                stream.write_all(answer.as_bytes()).await.expect("sent");
            }
            let _silent = listener.accept().await.expect("a connection");
            std::future::pending::<()>().await;
        });
        Arc::new(Client::new(
            Box::new(move || Box::pin(TcpStream::connect(address))),
            "localhost:49983",
            HeaderMap::new(),
        ))
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    fn body(cpu_count: u32) -> String {
        format!(
            r#"{{"ts":100,"cpu_count":{cpu_count},"cpu_used_pct":12.5,"mem_total":1000,"mem_used":600,"mem_cache":300,
                "disk_total":5000,"disk_used":2000}}"#
        )
    }

    fn meter(client: Arc<Client>, list: &Arc<List>) -> Meter {
        Meter {
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
    async fn only_what_can_be_is_kept_and_the_rest_is_passed_over() {
        let answers = vec![
            answer("200 OK", &body(2)),
            answer("500 Internal Server Error", ""),
            answer("401 Unauthorized", "{}"),
            answer("200 OK", "nonsense"),
            answer("200 OK", &body(0)),
            answer("200 OK", &" ".repeat(1 << 20)),
            "\0\0\0".to_owned(),
            String::new(),
            answer("200 OK", &body(4)),
        ];
        let (list, asked) = (Arc::new(List::default()), answers.len());
        let mut meter = meter(guest(answers).await, &list);
        let before = Timestamp::now();
        for _ in 0..asked {
            meter.sample().await;
        }
        let kept = list.kept.lock().expect("sound").clone();
        let [(team_id, sandbox_id, first), (_, _, second)] = kept.as_slice() else { panic!("two: {kept:?}") };
        assert_eq!((team_id, sandbox_id), (&meter.team_id, &meter.sandbox_id));
        assert_eq!((first.cpu_count, first.mem_used, second.cpu_count), (2, 600, 4));
        assert!(first.at >= before && first.at <= Timestamp::now(), "the guest's clock is of 1970: {}", first.at);
        assert!(meter.is_clock_off);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_guest_is_given_up() {
        let list = Arc::new(List::default());
        let mut meter = meter(guest(Vec::new()).await, &list);
        let before = Instant::now();
        meter.sample().await;
        assert_eq!(before.elapsed().as_secs(), ANSWER_TIME_MAX.as_secs());
        assert!(list.kept.lock().expect("sound").is_empty());
    }

    #[tokio::test]
    async fn samples_that_are_not_kept_cost_nothing_else() {
        let answers = vec![answer("200 OK", &body(2)); 3];
        let list = Arc::new(List { is_broken: true, ..List::default() });
        let mut meter = meter(guest(answers).await, &list);
        for failures in 1..=3 {
            meter.sample().await;
            assert_eq!(meter.failures, failures);
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
    fn an_honest_guest_is_believed_but_for_the_time() {
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
        assert_eq!(plausible(&HONEST, at()), Some(expected));
        let greedy = GuestMetrics { mem_used: u64::MAX, mem_cache: 1001, disk_used: 5001, cpu_used_pct: 1e9, ..HONEST };
        let capped = Sample { mem_used: 1000, mem_cache: 1000, disk_used: 5000, cpu_used_pct: 100.0, ..expected };
        assert_eq!(plausible(&greedy, at()), Some(capped));
        let idle = GuestMetrics { cpu_used_pct: -0.1, ..HONEST };
        assert_eq!(plausible(&idle, at()), Some(Sample { cpu_used_pct: 0.0, ..expected }));
    }

    #[test]
    fn what_cannot_be_is_no_sample() {
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
            assert_eq!(plausible(&nonsense, at()), None, "{nonsense:?}");
        }
    }

    #[test]
    fn sandboxes_are_asked_at_different_times() {
        let phases: Vec<Duration> = (0..1000).map(|_| phase(ExecutionId::generate())).collect();
        assert!(phases.iter().all(|phase| (SAMPLE_INTERVAL / 2..SAMPLE_INTERVAL * 3 / 2).contains(phase)));
        for fifth in 0..5 {
            let start = SAMPLE_INTERVAL / 2 + SAMPLE_INTERVAL / 5 * fifth;
            let within = phases.iter().filter(|phase| (start..start + SAMPLE_INTERVAL / 5).contains(*phase)).count();
            assert!((100..300).contains(&within), "{fifth}: {within}");
        }
    }
}
