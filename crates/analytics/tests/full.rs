//! A disk that is full, and then is not.

#[path = "../../store/tests/conformance/small_disk.rs"]
mod small_disk;

use std::time::Duration;

use hearth_analytics::{
    Config, Direction, Embedded, Level, LogLine, Logs as _, Query, Sample, Samples as _, Source, Usage, Usages as _,
};
use hearth_types::{ExecutionId, SandboxId, TeamId};
use jiff::Timestamp;
use small_disk::SmallDisk;

/// Writes of each kind after the first that failed.
const FAILURES: usize = 20;

fn lines(count: usize) -> Vec<LogLine> {
    let line = |number: usize| LogLine {
        at: Timestamp::now(),
        level: Level::Info,
        logger: "process".to_owned(),
        message: format!("{number:04000}"),
        fields: [].into(),
    };
    (0..count).map(line).collect()
}

fn sample() -> Sample {
    Sample {
        at: Timestamp::now(),
        cpu_count: 1,
        cpu_used_pct: 1.0,
        mem_total: 1,
        mem_used: 1,
        mem_cache: 0,
        disk_total: 1,
        disk_used: 1,
    }
}

fn usage() -> Usage {
    Usage { at: Timestamp::now(), span: Duration::from_secs(1), sandboxes_max: 1, starts: 1 }
}

#[tokio::test]
async fn a_full_disk_is_told_and_harms_nothing_later() {
    let Some(disk) = SmallDisk::mount(6) else { return };
    let logs = Embedded::open(Config::new(disk.path().join("analytics.db"))).await.expect("it opens");
    let source = Source {
        team_id: TeamId::generate(),
        sandbox_id: SandboxId::generate(),
        template_id: None,
        execution_id: ExecutionId::generate(),
    };
    let query =
        Query { from: None, until: None, direction: Direction::Forward, limit: 1000, level_min: None, search: None };
    let read = async || logs.query(source.team_id, &source.sandbox_id, &query).await.expect("a read").len();
    logs.append(&source, lines(1)).await.expect("there is room");
    disk.fill();
    while logs.append(&source, lines(1)).await.is_ok() {}
    for _ in 0..FAILURES {
        let error = logs.append(&source, lines(500)).await.expect_err("no room");
        assert!(error.is_full(), "{error:?}");
        logs.keep(source.team_id, &source.sandbox_id, sample()).await.expect_err("no room");
        logs.keep_usages(vec![(source.team_id, usage())]).await.expect_err("no room");
        assert!(read().await > 0, "what there is can be read");
    }
    disk.make_room();
    let before = read().await;
    for _ in 0..FAILURES {
        logs.append(&source, lines(1)).await.expect("there is room");
        logs.keep(source.team_id, &source.sandbox_id, sample()).await.expect("there is room");
        logs.keep_usages(vec![(source.team_id, usage())]).await.expect("there is room");
    }
    logs.tidy().await.expect("there is room");
    assert_eq!(read().await, before + FAILURES);
    logs.close().await;
}
