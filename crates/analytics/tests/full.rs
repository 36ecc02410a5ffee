//! Full disks, and recovery once there is space again.

#[path = "../../store/tests/conformance/small_disk.rs"]
mod small_disk;

use std::time::Duration;

use hearth_analytics::{
    Config, Direction, Embedded, Level, LogLine, Logs as _, Query, Sample, Samples as _, Source, Usage, Usages as _,
};
use hearth_types::{ExecutionId, SandboxId, TeamId};
use jiff::Timestamp;
use small_disk::SmallDisk;

/// Failing writes of each kind after the first one.
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
async fn a_full_disk_is_reported_and_recovered_from() {
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
    logs.append(&source, lines(1)).await.expect("there is space");
    disk.fill();
    while logs.append(&source, lines(1)).await.is_ok() {}
    for _ in 0..FAILURES {
        let error = logs.append(&source, lines(500)).await.expect_err("no space");
        assert!(error.is_full(), "{error:?}");
        logs.record(source.team_id, &source.sandbox_id, sample()).await.expect_err("no space");
        logs.record_usages(vec![(source.team_id, usage())]).await.expect_err("no space");
        assert!(read().await > 0, "stored lines can be read");
    }
    disk.free_space();
    let before = read().await;
    for _ in 0..FAILURES {
        logs.append(&source, lines(1)).await.expect("there is space");
        logs.record(source.team_id, &source.sandbox_id, sample()).await.expect("there is space");
        logs.record_usages(vec![(source.team_id, usage())]).await.expect("there is space");
    }
    logs.tidy().await.expect("there is space");
    assert_eq!(read().await, before + FAILURES);
    logs.close().await;
}
