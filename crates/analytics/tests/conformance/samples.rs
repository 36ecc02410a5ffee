//! Samples of sandboxes.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_analytics::{CPUS_MAX, SAMPLE_BYTES_MAX, Sample, SampleQuery};
use hearth_types::{SandboxId, TeamId};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::{Fixture, ago};

const RAW: SampleQuery = SampleQuery { from: None, until: None, step: Some(Duration::from_secs(5)) };

fn sample(at: Timestamp, mem_used: u64) -> Sample {
    let (mem_total, mem_cache) = (8 << 30, mem_used / 2);
    Sample {
        at,
        cpu_count: 2,
        cpu_used_pct: 12.34,
        mem_total,
        mem_used,
        mem_cache,
        disk_total: 10 << 30,
        disk_used: 3 << 30,
    }
}

impl Fixture {
    async fn record(&self, team_id: TeamId, sandbox_id: &SandboxId, samples: &[Sample]) {
        for sample in samples {
            self.samples.record(team_id, sandbox_id, *sample).await.expect("a write");
        }
    }

    async fn range(&self, team_id: TeamId, sandbox_id: &SandboxId, query: &SampleQuery) -> Vec<Sample> {
        self.samples.range(team_id, sandbox_id, query).await.expect("a read")
    }
}

pub(crate) async fn a_sample_is_returned_as_recorded(fixture: &Fixture) {
    let (team_id, sandbox_id) = (TeamId::generate(), SandboxId::generate());
    assert_eq!(fixture.range(team_id, &sandbox_id, &RAW).await, []);
    let second = Duration::from_secs(1);
    let taken: Vec<Sample> =
        (0..4).map(|number| sample(ago(60_000_000) + second * number, u64::from(number))).collect();
    // In any order, and one of them twice.
    for sample in [3, 1, 0, 2, 1].map(|number: usize| taken[number]) {
        fixture.record(team_id, &sandbox_id, &[sample]).await;
    }
    assert_eq!(fixture.range(team_id, &sandbox_id, &RAW).await, taken);
}

pub(crate) async fn windows_of_samples_agree_with_a_model(fixture: &Fixture) {
    let start = ago(3_600_000_000);
    let time = move |nanos: i64| start + jiff::SignedDuration::from_nanos(nanos);
    let times = prop::collection::btree_set((0i64..8).prop_map(|micros| micros * 1000), 0..8);
    let edge = || prop::option::of((-500i64..8500).prop_map(time));
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    block_in_place(|| {
        let run = runner.run(&(times, edge(), edge()), |(times, from, until)| {
            let (team_id, sandbox_id) = (TeamId::generate(), SandboxId::generate());
            let taken: Vec<Sample> = times.into_iter().map(|nanos| sample(time(nanos), 1)).collect();
            let found = Handle::current().block_on(async {
                fixture.record(team_id, &sandbox_id, &taken).await;
                fixture.range(team_id, &sandbox_id, &SampleQuery { from, until, ..RAW }).await
            });
            let is_within = |sample: &Sample| {
                from.is_none_or(|from| sample.at >= from) && until.is_none_or(|until| sample.at < until)
            };
            prop_assert_eq!(found, taken.into_iter().filter(is_within).collect::<Vec<_>>());
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{error}"));
    });
}

pub(crate) async fn implausible_samples_are_limited_to_bounds(fixture: &Fixture) {
    for (at, percent, expected) in
        [(Timestamp::MAX, f64::NAN, 0.0), (Timestamp::MIN, f64::INFINITY, 100.0), (Timestamp::UNIX_EPOCH, -0.5, 0.0)]
    {
        let (team_id, sandbox_id) = (TeamId::generate(), SandboxId::generate());
        let most = u64::MAX;
        let before = Timestamp::now() - Duration::from_micros(1);
        let hostile = Sample {
            at,
            cpu_count: u32::MAX,
            cpu_used_pct: percent,
            mem_total: most,
            mem_used: most,
            mem_cache: most,
            disk_total: most,
            disk_used: most,
        };
        fixture.record(team_id, &sandbox_id, &[hostile]).await;
        let found = fixture.range(team_id, &sandbox_id, &RAW).await;
        let [found] = found.as_slice() else { panic!("one: {found:?}") };
        assert!(found.at >= before && found.at <= Timestamp::now(), "{at} became {}", found.at);
        assert_eq!((found.cpu_count, found.cpu_used_pct), (CPUS_MAX, expected));
        for bytes in [found.mem_total, found.mem_used, found.mem_cache, found.disk_total, found.disk_used] {
            assert_eq!(bytes, SAMPLE_BYTES_MAX);
        }
    }
}

pub(crate) async fn samples_of_other_teams_and_sandboxes_are_isolated(fixture: &Fixture) {
    let (team_id, sandbox_id) = (TeamId::generate(), SandboxId::generate());
    let (other_team, other_sandbox) = (TeamId::generate(), SandboxId::generate());
    let at = ago(5_000_000);
    let owners = [(team_id, &sandbox_id), (team_id, &other_sandbox), (other_team, &sandbox_id)];
    for ((team_id, sandbox_id), mem_used) in owners.into_iter().zip(1..) {
        fixture.record(team_id, sandbox_id, &[sample(at, mem_used)]).await;
    }
    for ((team_id, sandbox_id), mem_used) in owners.into_iter().zip(1..) {
        assert_eq!(fixture.range(team_id, sandbox_id, &RAW).await, [sample(at, mem_used)]);
        let latest = fixture.samples.latest(team_id, std::slice::from_ref(sandbox_id)).await.expect("a read");
        assert_eq!(latest, BTreeMap::from([(sandbox_id.clone(), sample(at, mem_used))]));
    }
    assert_eq!(fixture.range(other_team, &other_sandbox, &RAW).await, []);
    assert_eq!(fixture.samples.latest(other_team, &[other_sandbox]).await.expect("a read"), BTreeMap::new());
}

pub(crate) async fn latest_returns_the_newest_sample_of_each_sandbox(fixture: &Fixture) {
    let team_id = TeamId::generate();
    let ids: Vec<SandboxId> = (0..100).map(|_| SandboxId::generate()).collect();
    let mut expected = BTreeMap::new();
    for (id, number) in ids.iter().zip(1..).step_by(3) {
        let newest = sample(ago(1_000_000 * number), number);
        let older = sample(newest.at - Duration::from_secs(1), 0);
        fixture.record(team_id, id, &[newest, older]).await;
        expected.insert(id.clone(), newest);
    }
    assert_eq!(fixture.samples.latest(team_id, &ids).await.expect("a read"), expected);
    assert_eq!(fixture.samples.latest(team_id, &[]).await.expect("a read"), BTreeMap::new());
}

pub(crate) async fn the_default_step_depends_on_the_length(fixture: &Fixture) {
    let minute = Duration::from_secs(60);
    // The start of an hour of the clock, so that the steps of the samples are known.
    let hour = Timestamp::from_second((Timestamp::now().as_second() / 3600 - 9) * 3600).expect("a time");
    let taken: Vec<Sample> =
        (0..10).map(|number| sample(hour + minute / 6 * number, 100 * u64::from(number))).collect();
    let (team_id, short) = (TeamId::generate(), SandboxId::generate());
    fixture.record(team_id, &short, &taken).await;
    let by_length = SampleQuery { step: None, ..RAW };
    assert_eq!(fixture.range(team_id, &short, &by_length).await, taken, "within an hour they are not merged");
    let half = SampleQuery { step: Some(minute / 2), ..RAW };
    let used = |samples: &[Sample]| samples.iter().map(|sample| sample.mem_used).collect::<Vec<_>>();
    let merged = fixture.range(team_id, &short, &half).await;
    assert_eq!(used(&merged), [100, 400, 700, 900]);
    assert_eq!(merged[1].at, taken[3].at, "the time is that of the first merged sample");
    // The first sample of a window is within it, even if its step begins before.
    let from = Some(taken[1].at);
    assert_eq!(fixture.range(team_id, &short, &SampleQuery { from, ..half }).await[0].at, taken[1].at);
    // With a further sample seven hours later there is one sample for each minute.
    let long = SandboxId::generate();
    fixture.record(team_id, &long, &taken).await;
    fixture.record(team_id, &long, &[sample(hour + minute * 420, 5)]).await;
    assert_eq!(used(&fixture.range(team_id, &long, &by_length).await), [250, 750, 5]);
}
