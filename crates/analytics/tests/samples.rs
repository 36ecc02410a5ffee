//! Samples and usages in the file of the embedded backend: merging with age, and bounds.

use std::time::Duration;

use hearth_analytics::{
    BYTES_MIN, Config, Embedded, Level, LogLine, Logs, Sample, SampleQuery, Samples, Source, Usage, Usages,
};
use hearth_types::{ExecutionId, SandboxId, TeamId};
use jiff::Timestamp;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions as _, query_as, query_scalar, raw_sql};
use tempfile::TempDir;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const FINEST: SampleQuery = SampleQuery { from: None, until: None, step: Some(Duration::from_secs(5)) };

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn config(folder: &TempDir) -> Config {
    Config::new(folder.path().join("analytics.db"))
}

async fn open(config: &Config) -> Embedded {
    Embedded::open(config.clone()).await.expect("it opens")
}

/// Opens a separate connection to the same file.
async fn connect(config: &Config) -> SqliteConnection {
    SqliteConnectOptions::new().filename(&config.path).connect().await.expect("it opens")
}

fn sample(at: Timestamp) -> Sample {
    Sample {
        at,
        cpu_count: 2,
        cpu_used_pct: 50.0,
        mem_total: 1 << 30,
        mem_used: 1 << 20,
        mem_cache: 1 << 10,
        disk_total: 1 << 40,
        disk_used: 1 << 30,
    }
}

/// Inserts many samples by SQL, including the effects of the triggers. It takes a tenth of a second instead of minutes.
async fn fill(config: &Config, sandbox: i64, first: Timestamp, every: Duration, count: u32) {
    let (first, every) = (first.as_microsecond(), every.as_micros());
    let sql = format!(
        "INSERT INTO sampled (id, team_id, sandbox_id) VALUES ({sandbox}, x'{sandbox:032x}', 's{sandbox}')
            ON CONFLICT DO NOTHING;
        WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {count})
        INSERT INTO sample SELECT {sandbox}, {first} + n * {every}, 5, 1, 2, n % 100, 1000, n, n, 1000, n FROM numbers"
    );
    let mut connection = connect(config).await;
    raw_sql(AssertSqlSafe(format!("BEGIN; {sql}; COMMIT"))).execute(&mut connection).await.expect("filled");
}

/// Returns the step, the number of rows and the number of represented samples of each resolution.
async fn by_step(config: &Config) -> Vec<(i64, i64, i64)> {
    let sql = "SELECT step_s, COUNT(*), SUM(weight) FROM sample GROUP BY step_s ORDER BY step_s";
    query_as(sql).fetch_all(&mut connect(config).await).await.expect("rows")
}

#[tokio::test]
async fn samples_are_merged_with_age_and_all_are_counted() {
    let folder = folder();
    let config = config(&folder);
    let embedded = open(&config).await;
    // A sandbox that was sampled for the last six days and twenty hours, until now.
    let age = 7 * DAY - 4 * HOUR;
    let first = Timestamp::now() - age;
    let every = Duration::from_secs(5);
    let count = u32::try_from(age.as_secs() / 5).expect("small");
    fill(&config, 1, first, every, count).await;
    let tidied_at = std::time::Instant::now();
    embedded.tidy().await.expect("tidied");
    let found = by_step(&config).await;
    let weight: i64 = found.iter().map(|(_, _, weight)| weight).sum();
    assert_eq!(weight, i64::from(count), "every sample is counted in one row");
    let expected = [(5, 720), (30, 600), (60, 360), (120, 360), (300, 140 * 12)];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((step, rows, _), (expected_step, expected_rows)) in found.iter().zip(expected) {
        // For steps that are not over yet, and steps that the bound of rows per transaction divided.
        let slack = expected_rows / 10 + 10;
        assert!(*step == expected_step && rows.abs_diff(expected_rows) < slack as u64, "{found:?}");
    }
    // A second tidy merges only what aged meanwhile: a sample in five seconds, and a step that is over in each
    // resolution.
    let passed = tidied_at.elapsed();
    embedded.tidy().await.expect("tidied");
    let aged = passed.as_secs() / 5 + 2 * expected.len() as u64;
    let again = by_step(&config).await;
    let rows = |found: &[(i64, i64, i64)]| found.iter().map(|(_, rows, _)| *rows).sum::<i64>();
    assert!(rows(&found).abs_diff(rows(&again)) <= aged, "{found:?} {again:?} after {passed:?}");
    let counted: (i64, i64) =
        query_as("SELECT (SELECT kept FROM counted WHERE name = 'sample'), (SELECT samples FROM sampled)")
            .fetch_one(&mut connect(&config).await)
            .await
            .expect("a row");
    assert_eq!(counted, (rows(&again), rows(&again)), "the counts are right");
}

#[tokio::test]
async fn merged_samples_are_averages() {
    let folder = folder();
    let config = config(&folder);
    let embedded = open(&config).await;
    let (team_id, sandbox_id) = (TeamId::generate(), SandboxId::generate());
    let step = Timestamp::from_second((Timestamp::now().as_second() / 300 - 24) * 300).expect("two hours ago");
    for (second, percent, used) in [(1, 10.0, 100), (6, 20.0, 200), (11, 60.0, 600), (31, 1.0, 7)] {
        let at = step + Duration::from_secs(second);
        let sample = Sample { cpu_used_pct: percent, mem_used: used, ..sample(at) };
        embedded.record(team_id, &sandbox_id, sample).await.expect("a write");
    }
    embedded.tidy().await.expect("tidied");
    let found = embedded.range(team_id, &sandbox_id, &FINEST).await.expect("a read");
    let [first, second] = found.as_slice() else { panic!("two: {found:?}") };
    assert_eq!((first.at, first.mem_used, first.mem_total), (step + Duration::from_secs(1), 300, 1 << 30));
    assert!((first.cpu_used_pct - 30.0).abs() < 1e-9, "{first:?}");
    assert_eq!(second, &Sample { cpu_used_pct: 1.0, mem_used: 7, ..sample(step + Duration::from_secs(31)) });
    // Merging merged samples weights them.
    let minute = SampleQuery { step: Some(MINUTE), ..FINEST };
    let found = embedded.range(team_id, &sandbox_id, &minute).await.expect("a read");
    let [merged] = found.as_slice() else { panic!("one: {found:?}") };
    assert_eq!(merged.mem_used, 907 / 4);
}

#[tokio::test]
async fn aged_samples_are_hidden_and_deleted() {
    let folder = folder();
    let long = config(&folder);
    let embedded = open(&long).await;
    let (team_id, sandbox_id, ended) = (TeamId::generate(), SandboxId::generate(), SandboxId::generate());
    let old = sample(Timestamp::now() - 3 * DAY);
    embedded.record(team_id, &sandbox_id, old).await.expect("a write");
    embedded.record(team_id, &ended, old).await.expect("a write");
    embedded.record(team_id, &sandbox_id, sample(Timestamp::now())).await.expect("a write");
    let usage = Usage { at: old.at, span: MINUTE, sandboxes_max: 1, starts: 1 };
    embedded.record_usages(vec![(team_id, usage)]).await.expect("a write");
    embedded.close().await;
    let short = Config { retention: DAY, ..long };
    let embedded = open(&short).await;
    assert_eq!(embedded.range(team_id, &sandbox_id, &FINEST).await.expect("a read").len(), 1);
    let latest = embedded.latest(team_id, &[sandbox_id, ended]).await.expect("a read");
    assert_eq!(latest.len(), 1);
    let rows: (i64, i64, i64) =
        query_as("SELECT (SELECT COUNT(*) FROM sample), (SELECT COUNT(*) FROM sampled), (SELECT COUNT(*) FROM usage)")
            .fetch_one(&mut connect(&short).await)
            .await
            .expect("a row");
    assert_eq!(rows, (1, 1, 0), "an ended sandbox has no rows");
}

#[tokio::test]
async fn samples_are_bounded_and_the_oldest_are_deleted() {
    let folder = folder();
    let config = Config { bytes_max: BYTES_MIN, ..config(&folder) };
    let embedded = open(&config).await;
    let source = Source {
        team_id: TeamId::generate(),
        sandbox_id: SandboxId::generate(),
        template_id: None,
        execution_id: ExecutionId::generate(),
    };
    let line = LogLine {
        at: Timestamp::now(),
        level: Level::Info,
        logger: String::new(),
        message: "stored".to_owned(),
        fields: std::collections::BTreeMap::new(),
    };
    embedded.append(&source, vec![line]).await.expect("a write");
    // As if many sandboxes had just been sampled at the same time: no sample is old enough to be merged.
    let start = Timestamp::now() - 30 * MINUTE;
    for sandbox in 1..=100 {
        fill(&config, sandbox, start + Duration::from_millis(sandbox.unsigned_abs()), Duration::from_secs(5), 300)
            .await;
    }
    let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("a time");
    let newest = sample(now);
    embedded.record(source.team_id, &source.sandbox_id, newest).await.expect("a write");
    let (rows, pages): (i64, i64) =
        query_as("SELECT (SELECT kept FROM counted WHERE name = 'sample'), page_count FROM pragma_page_count")
            .fetch_one(&mut connect(&config).await)
            .await
            .expect("a row");
    assert!((9000..=10_486).contains(&rows), "a fourth of 8 MiB, 200 bytes each: {rows}");
    assert!(pages * 4096 < 8 << 20, "{pages} pages");
    let oldest: i64 =
        query_scalar("SELECT MIN(at_us) FROM sample").fetch_one(&mut connect(&config).await).await.expect("a row");
    assert!(oldest > (start + 10 * MINUTE).as_microsecond(), "the oldest of all sandboxes were deleted");
    assert_eq!(embedded.range(source.team_id, &source.sandbox_id, &FINEST).await.expect("a read"), [newest]);
    let query = hearth_analytics::Query {
        from: None,
        until: None,
        direction: hearth_analytics::Direction::Forward,
        limit: 10,
        level_min: None,
        search: None,
    };
    let lines = embedded.query(source.team_id, &source.sandbox_id, &query).await.expect("a read");
    assert_eq!(lines.len(), 1, "samples do not displace lines");
}

#[tokio::test]
async fn a_sample_needs_at_most_the_estimated_space() {
    let folder = folder();
    let config = config(&folder);
    let embedded = open(&config).await;
    let pages = async || -> i64 {
        let used = "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count";
        query_scalar(used).fetch_one(&mut connect(&config).await).await.expect("a row")
    };
    let before = pages().await;
    // Interleaved, as samples of concurrent sandboxes are.
    let ids: Vec<SandboxId> = (0..40).map(|_| SandboxId::generate()).collect();
    let team_id = TeamId::generate();
    let start = Timestamp::now() - 20 * MINUTE;
    for round in 0..50 {
        for id in &ids {
            let at = start + Duration::from_secs(5) * round;
            let huge = Sample { mem_used: (1 << 53) - 1, mem_cache: 1 << 52, cpu_used_pct: 33.3, ..sample(at) };
            embedded.record(team_id, id, huge).await.expect("a write");
        }
    }
    let bytes = (pages().await - before) * 4096;
    assert!(bytes / (40 * 50) <= 200, "{} bytes each", bytes / (40 * 50));
}

#[tokio::test]
async fn an_older_file_gets_the_new_tables() {
    let folder = folder();
    let config = config(&folder);
    let embedded = open(&config).await;
    embedded.close().await;
    // The state that the previous version left.
    let undo = "DROP TABLE sample; DROP TABLE sampled; DROP TABLE usage; DROP TABLE counted; PRAGMA user_version = 1";
    raw_sql(undo).execute(&mut connect(&config).await).await.expect("undone");
    let embedded = open(&config).await;
    let (team_id, sandbox_id) = (TeamId::generate(), SandboxId::generate());
    embedded.record(team_id, &sandbox_id, sample(Timestamp::now())).await.expect("a write");
    assert_eq!(embedded.range(team_id, &sandbox_id, &FINEST).await.expect("a read").len(), 1);
}

#[tokio::test]
async fn errors_name_the_attempted_action() {
    let folder = folder();
    let config = config(&folder);
    let embedded = open(&config).await;
    let (team_id, sandbox_id) = (TeamId::generate(), SandboxId::generate());
    embedded.record(team_id, &sandbox_id, sample(Timestamp::now())).await.expect("a write");
    raw_sql("UPDATE sample SET mem_used = -1").execute(&mut connect(&config).await).await.expect("damaged");
    let error = embedded.range(team_id, &sandbox_id, &FINEST).await.expect_err("damaged");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("mem_used") && !error.is_retryable(), "{cause}");
    embedded.close().await;
    let error = embedded.record(team_id, &sandbox_id, sample(Timestamp::now())).await.expect_err("closed");
    assert_eq!(error.to_string(), format!("recording a sample of sandbox {sandbox_id}"));
    embedded.latest(team_id, &[sandbox_id]).await.expect_err("closed");
    let usage = Usage { at: Timestamp::now(), span: MINUTE, sandboxes_max: 1, starts: 1 };
    embedded.record_usages(vec![(team_id, usage)]).await.expect_err("closed");
    embedded.usages(team_id, Timestamp::MIN, Timestamp::MAX, MINUTE).await.expect_err("closed");
}
