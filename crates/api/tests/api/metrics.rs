//! Metrics of sandboxes and teams.

use std::time::Duration;

use hearth_analytics::{Sample, Samples as _, Usage, Usages as _};
use hearth_api::Config;
use hearth_types::{SandboxId, TeamId};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::world::{LIMITS, World, config};

/// Returns the start of the second this many seconds ago.
fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second() - seconds).expect("a time")
}

fn sample(at: Timestamp, mem_used: u64) -> Sample {
    Sample {
        at,
        cpu_count: 2,
        cpu_used_pct: 33.333_333,
        mem_total: 1 << 30,
        mem_used,
        mem_cache: 7,
        disk_total: 1 << 40,
        disk_used: 9,
    }
}

/// Stores samples, as a node would.
async fn store_samples(
    world: &World,
    team_id: TeamId,
    sandbox_id: &SandboxId,
    samples: impl IntoIterator<Item = Sample>,
) {
    for sample in samples {
        world.analytics.record(team_id, sandbox_id, sample).await.expect("stored");
    }
}

fn numbers(metrics: &Value) -> Vec<u64> {
    let metrics = metrics.as_array().expect("an array");
    metrics.iter().map(|metric| metric["memUsed"].as_u64().expect("an integer")).collect()
}

#[tokio::test]
async fn a_metric_has_all_members_that_clients_use_and_outlives_its_sandbox() {
    let world = World::start().await;
    let id = world.running().await;
    let empty = world.client.get(&format!("/sandboxes/{id}/metrics")).await.assert_status(200).json();
    assert_eq!(empty, json!([]));
    let at = ago(60);
    store_samples(&world, world.team.id, &id, [sample(at, 5)]).await;
    let metric = json!({
        "timestamp": at.to_string(), "timestampUnix": at.as_second(), "cpuCount": 2, "cpuUsedPct": 33.33,
        "memUsed": 5, "memTotal": 1u64 << 30, "memCache": 7, "diskUsed": 9, "diskTotal": 1u64 << 40,
    });
    for path in [format!("/sandboxes/{id}/metrics"), format!("/sandboxes/{id}-6532622b/metrics")] {
        assert_eq!(world.client.get(&path).await.assert_status(200).json(), json!([metric]));
    }
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.assert_no_leftovers().await;
    let after = world.client.get(&format!("/sandboxes/{id}/metrics")).await.assert_status(200).json();
    assert_eq!(after, json!([metric]));
    let several = world.client.get(&format!("/sandboxes/metrics?sandbox_ids={id},i0unknown")).await;
    assert_eq!(several.assert_status(200).json(), json!({"sandboxes": {id.as_str(): metric}}));
}

#[tokio::test]
async fn a_range_includes_its_bounds() {
    let world = World::start().await;
    let (id, start) = (SandboxId::generate(), ago(600));
    let every = Duration::from_secs(5);
    // The third sample is half a second late.
    let late = |number: u32| if number == 2 { Duration::from_millis(500) } else { Duration::ZERO };
    let samples = (0..10u32).map(|number| sample(start + every * number + late(number), u64::from(number)));
    store_samples(&world, world.team.id, &id, samples).await;
    let first = start.as_second();
    for (query, expected) in [
        (String::new(), (0..10).collect::<Vec<u64>>()),
        (format!("?start={first}"), (0..10).collect()),
        (format!("?start={}", first + 1), (1..10).collect()),
        (format!("?end={first}"), vec![0]),
        (format!("?end={}", first - 1), vec![]),
        (format!("?start={}&end={}", first + 5, first + 10), vec![1]),
        (format!("?start={}&end={}", first + 5, first + 11), vec![1, 2]),
        (format!("?start={}&end={}", first + 5, first + 5), vec![1]),
        (format!("?start={}&end={first}", first - 3600), vec![0]),
        (format!("?start={}", first + 100_000), vec![]),
        // A longer range has one sample for each half minute of the clock.
        (format!("?start={}&end={}", first - 3600, first - 1), vec![]),
    ] {
        let metrics = world.client.get(&format!("/sandboxes/{id}/metrics{query}")).await.assert_status(200).json();
        assert_eq!(numbers(&metrics), expected, "{query}");
    }
    for (start, count_max) in [(first - 3 * 3600, 3), (first - 7 * 24 * 3600, 2), (0, 2)] {
        let metrics = world.client.get(&format!("/sandboxes/{id}/metrics?start={start}")).await.assert_status(200);
        let metrics = metrics.json();
        let times: Vec<i64> = metrics
            .as_array()
            .expect("some")
            .iter()
            .map(|metric| metric["timestampUnix"].as_i64().expect("a time"))
            .collect();
        assert!((1..=count_max).contains(&times.len()) && times.is_sorted() && times[0] == first, "{start}: {metrics}");
    }
}

#[tokio::test]
async fn invalid_queries_are_rejected_with_the_parameter_s_name() {
    let world = World::start().await;
    let many = (0..101).map(|number| format!("i{number}")).collect::<Vec<_>>().join(",");
    let team = world.team.id;
    for (path, message) in [
        ("/sandboxes/i1/metrics?start=2&end=1".to_owned(), "validation error: end must not be before start"),
        ("/sandboxes/i1/metrics?start=-1".to_owned(), "validation error: start"),
        ("/sandboxes/i1/metrics?end=now".to_owned(), "validation error: end"),
        ("/sandboxes/i1/metrics?start=%zz".to_owned(), "validation error: query is malformed"),
        ("/sandboxes/metrics".to_owned(), "validation error: sandbox_ids"),
        (format!("/sandboxes/metrics?sandbox_ids={many}"), "validation error: sandbox_ids"),
        ("/sandboxes/metrics?sandbox_ids=i1,i1".to_owned(), "validation error: sandbox_ids must be unique"),
        ("/sandboxes/metrics?sandbox_ids=i1,I2".to_owned(), "invalid sandbox ID"),
        ("/sandboxes/metrics?sandbox_ids=i1,".to_owned(), "invalid sandbox ID"),
        ("/teams/x/metrics".to_owned(), "invalid team ID"),
        (format!("/teams/{team}/metrics?start=2&end=1"), "validation error: end must not be before start"),
        (format!("/teams/{team}/metrics/max"), "validation error: metric"),
        (format!("/teams/{team}/metrics/max?metric=cpu"), "validation error: metric"),
        (format!("/teams/{team}/metrics/max?metric=sandbox_start_rate&start=x"), "validation error: start"),
    ] {
        world.client.get(&path).await.assert_error(400, message);
    }
}

#[tokio::test]
async fn other_teams_and_unknown_sandboxes_have_no_metrics() {
    let world = World::start().await;
    let id = world.running().await;
    let at = ago(30);
    store_samples(&world, world.team.id, &id, [sample(at, 1)]).await;
    let (team, stranger) = world.other_team("stranger", LIMITS).await;
    for (client, id) in [(&stranger, id.as_str()), (&world.client, "i0unknown")] {
        let metrics = client.get(&format!("/sandboxes/{id}/metrics")).await.assert_status(200).json();
        assert_eq!(metrics, json!([]));
        let metrics = client.get(&format!("/sandboxes/metrics?sandbox_ids={id}")).await.assert_status(200).json();
        assert_eq!(metrics, json!({"sandboxes": {}}));
    }
    store_samples(&world, team.id, &id, [sample(at, 2)]).await;
    for (client, expected) in [(&world.client, 1), (&stranger, 2)] {
        let metrics = client.get(&format!("/sandboxes/{id}/metrics")).await.assert_status(200).json();
        assert_eq!(numbers(&metrics), [expected]);
    }
    for path in ["metrics", "metrics/max?metric=concurrent_sandboxes"] {
        stranger.get(&format!("/teams/{}/{path}", world.team.id)).await.assert_error(403, "another team");
        stranger.get(&format!("/teams/{}/{path}", TeamId::generate())).await.assert_error(403, "another team");
        stranger.get(&format!("/teams/{}/{path}", team.id)).await.assert_status(200);
        let anonymous = world.client_with(None);
        anonymous.get(&format!("/teams/x/{path}")).await.assert_error(401, "no API key");
    }
}

#[tokio::test]
async fn team_metrics_are_listed_by_range() {
    let world = World::start().await;
    let team_id = world.team.id;
    let minute = Duration::from_secs(60);
    // Each sample is in a half minute of its own, and five minutes are one step of the default range.
    let start = Timestamp::from_second(ago(7200).as_second() / 300 * 300).expect("a time");
    for (number, (sandboxes_max, starts)) in [(1, 3), (4, 6), (2, 0)].into_iter().enumerate() {
        let at = start + minute * u32::try_from(number).expect("small");
        let usage = Usage { at, span: minute, sandboxes_max, starts };
        world.analytics.record_usages(vec![(team_id, usage)]).await.expect("stored");
    }
    let first = start.as_second();
    let shown = |minute: i64, concurrent: u32, rate: f64| {
        let at = Timestamp::from_second(first + 60 * minute).expect("a time");
        json!({
            "timestamp": at.to_string(), "timestampUnix": at.as_second(), "concurrentSandboxes": concurrent,
            "sandboxStartRate": rate,
        })
    };
    let get = async |path: &str| world.client.get(&format!("/teams/{team_id}/{path}")).await.assert_status(200).json();
    let all = [shown(0, 1, 0.05), shown(1, 4, 0.1), shown(2, 2, 0.0)];
    assert_eq!(get(&format!("metrics?start={first}&end={}", first + 120)).await, json!(all));
    assert_eq!(get(&format!("metrics?start={}&end={}", first + 1, first + 119)).await, json!(all[1..2]));
    assert_eq!(get("metrics").await, json!([shown(2, 4, 0.05)]), "seven days, in steps of five minutes");
    assert_eq!(get(&format!("metrics?end={}", first - 1)).await, json!([]));
    let max = async |query: &str| {
        let found = get(&format!("metrics/max?{query}")).await;
        (found["timestampUnix"].as_i64(), found["value"].as_f64())
    };
    assert_eq!(max("metric=concurrent_sandboxes").await, (Some(first + 60), Some(4.0)));
    assert_eq!(max("metric=sandbox_start_rate").await, (Some(first + 60), Some(0.1)));
    assert_eq!(max(&format!("metric=concurrent_sandboxes&end={first}")).await, (Some(first), Some(1.0)));
    assert_eq!(max(&format!("metric=sandbox_start_rate&end={}", first - 9)).await, (Some(first - 9), Some(0.0)));
}

#[tokio::test]
async fn running_and_started_sandboxes_of_teams_are_counted() {
    let mut world = World::with(Config { usage_interval: Duration::from_millis(50), ..config() }).await;
    let team_id = world.team.id;
    let (_, stranger) = world.other_team("stranger", LIMITS).await;
    let ids = [world.running().await, world.running().await];
    for id in &ids {
        world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    }
    let read = async |world: &World| {
        world.analytics.usages(team_id, ago(60), Timestamp::MAX, Duration::from_nanos(1)).await.expect("read")
    };
    world
        .eventually("two starts are counted", async || {
            // Several samples may fall into one second.
            let shown = world.client.get(&format!("/teams/{team_id}/metrics/max?metric=concurrent_sandboxes")).await;
            let usages = read(&world).await;
            let starts: u32 = usages.iter().map(|usage| usage.starts).sum();
            let is_counted = starts == 2 && shown.json()["value"] == json!(2.0);
            if is_counted { Ok(()) } else { Err(format!("{shown:?} {usages:?}")) }
        })
        .await;
    let own = stranger.get("/v2/sandboxes").await.assert_status(200).json();
    assert_eq!(own, json!([]), "another team has no sandboxes");
    world.assert_no_leftovers().await;
    // Counts since the last interval are stored at shutdown.
    world.stop_server().await;
    world.start_server().await;
    world.running().await;
    world.stop_server().await;
    let starts: u32 = read(&world).await.iter().map(|usage| usage.starts).sum();
    assert_eq!(starts, 3);
    world.start_server().await;
}

#[tokio::test]
async fn a_failing_metrics_store_affects_only_metrics() {
    let world = World::start().await;
    world.analytics.close().await;
    let (id, team) = (world.running().await, world.team.id);
    for path in [
        format!("/sandboxes/{id}/metrics"),
        format!("/sandboxes/metrics?sandbox_ids={id}"),
        format!("/teams/{team}/metrics"),
        format!("/teams/{team}/metrics/max?metric=sandbox_start_rate"),
    ] {
        world.client.get(&path).await.assert_error(500, "internal error");
    }
    world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200);
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
}
