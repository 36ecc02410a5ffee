//! Log lines in the file of the embedded backend: bounds of space and age, opening, failures.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{
    BYTES_MIN, Config, Direction, Embedded, Level, LogLine, Logs, OpenError, Query, SANDBOX_BYTES_MIN, Source,
    StoredLine,
};
use hearth_types::{ExecutionId, SandboxId, TeamId};
use jiff::Timestamp;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions as _, raw_sql};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MIB: u64 = 1024 * 1024;

fn source() -> Source {
    Source {
        team_id: TeamId::generate(),
        sandbox_id: SandboxId::generate(),
        template_id: None,
        execution_id: ExecutionId::generate(),
    }
}

fn lines(first: usize, count: usize, length: usize) -> Vec<LogLine> {
    let line = |number: usize| LogLine {
        at: Timestamp::now(),
        level: Level::Info,
        logger: "process".to_owned(),
        message: format!("{number:0length$}"),
        fields: [("pid".to_owned(), "7".to_owned())].into(),
    };
    (first..first + count).map(line).collect()
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn config(folder: &TempDir) -> Config {
    Config::new(folder.path().join("analytics.db"))
}

async fn open(config: &Config) -> Embedded {
    Embedded::open(config.clone()).await.expect("it opens")
}

async fn newest(logs: &Embedded, source: &Source, limit: u32) -> Vec<StoredLine> {
    let query = Query { from: None, until: None, direction: Direction::Backward, limit, level_min: None, search: None };
    logs.query(source.team_id, &source.sandbox_id, &query).await.expect("a read")
}

async fn oldest(logs: &Embedded, source: &Source) -> Option<StoredLine> {
    let query =
        Query { from: None, until: None, direction: Direction::Forward, limit: 1, level_min: None, search: None };
    logs.query(source.team_id, &source.sandbox_id, &query).await.expect("a read").pop()
}

fn number(stored: &StoredLine) -> usize {
    stored.line.message.parse().expect("a number")
}

/// Returns the size of the file with its write-ahead log.
fn bytes_on_disk(config: &Config) -> u64 {
    let length = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    length(config.path.clone()) + length(beside(&config.path, "-wal"))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    format!("{}{suffix}", path.display()).into()
}

/// Opens a separate connection to the same file.
async fn connect(config: &Config) -> SqliteConnection {
    SqliteConnectOptions::new().filename(&config.path).connect().await.expect("it opens")
}

async fn tamper(config: &Config, sql: &str) {
    raw_sql(AssertSqlSafe(sql)).execute(&mut connect(config).await).await.expect(sql);
}

#[tokio::test]
async fn lines_survive_reopening() {
    let folder = folder();
    let (config, source) = (config(&folder), source());
    let first = open(&config).await;
    first.append(&source, lines(0, 20, 10)).await.expect("a write");
    let before = newest(&first, &source, 1000).await;
    assert_eq!(before.len(), 20);
    for closes_before in [true, false] {
        if closes_before {
            first.close().await;
        }
        let again = open(&config).await;
        assert_eq!(newest(&again, &source, 1000).await, before);
        again.append(&source, lines(20, 1, 10)).await.expect("a write");
        assert_eq!(number(&newest(&again, &source, 1).await[0]), 20);
        tamper(&config, "DELETE FROM line WHERE id > 20").await;
    }
}

#[tokio::test]
async fn aged_lines_are_hidden_and_deleted() {
    let folder = folder();
    let (long, source) = (config(&folder), source());
    let first = open(&long).await;
    let mut appended = lines(0, 3000, 2000);
    for line in &mut appended[..2900] {
        line.at -= 3 * DAY;
    }
    first.append(&source, appended).await.expect("a write");
    assert_eq!(oldest(&first, &source).await.as_ref().map(number), Some(0));
    let before = fs::metadata(&long.path).expect("the file").len();
    first.close().await;
    // The same lines with a shorter retention.
    let short = Config { retention: DAY, ..long };
    let again = open(&short).await;
    assert_eq!(newest(&again, &source, 1000).await.len(), 100);
    let mut counted = connect(&short).await;
    let sandbox_bytes: (i64, i64) =
        sea_orm::sqlx::query_as("SELECT (SELECT COUNT(*) FROM line), (SELECT SUM(bytes) FROM sandbox)")
            .fetch_one(&mut counted)
            .await
            .expect("a row");
    assert_eq!(sandbox_bytes, (100, 100 * (2000 + 7 + 4 + 128)), "the rows are deleted, and the count is right");
    let after = fs::metadata(&short.path).expect("the file").len();
    assert!(
        before > 5 * MIB && after < 5 * MIB,
        "its space was returned, except the pages that stay free: {before} {after}"
    );
    again.close().await;
    // Lines that age while the file is open are hidden immediately, and deleted by the next tidy.
    let none = Config { retention: Duration::ZERO, ..short };
    let last = open(&none).await;
    last.append(&source, lines(0, 10, 10)).await.expect("a write");
    assert_eq!(newest(&last, &source, 1000).await.len(), 0);
    last.tidy().await.expect("tidied");
    let rows: (i64, i64) =
        sea_orm::sqlx::query_as("SELECT (SELECT COUNT(*) FROM line), (SELECT COUNT(*) FROM sandbox)")
            .fetch_one(&mut counted)
            .await
            .expect("a row");
    assert_eq!(rows, (0, 0));
}

#[tokio::test]
async fn a_noisy_sandbox_loses_only_its_own_lines() {
    let folder = folder();
    let config = Config { sandbox_bytes_max: SANDBOX_BYTES_MIN, ..config(&folder) };
    let logs = open(&config).await;
    let (quiet, noisy) = (source(), Source { team_id: TeamId::generate(), ..source() });
    logs.append(&quiet, lines(0, 10, 10)).await.expect("a write");
    let mut next = 0;
    // Many small lines, then large ones; many in one call, and few per call.
    for (count, length) in [(20_000, 10), (1000, 7000), (1, 10), (1, 10), (300, 10), (1, 8000)] {
        logs.append(&noisy, lines(next, count, length)).await.expect("a write");
        next += count;
        let used: i64 = sea_orm::sqlx::query_scalar("SELECT MAX(bytes) FROM sandbox")
            .fetch_one(&mut connect(&config).await)
            .await
            .expect("a number");
        assert!(used > 1_000_000 && used <= i64::try_from(SANDBOX_BYTES_MIN).expect("small"), "{used}");
        assert_eq!(number(&newest(&logs, &noisy, 1).await[0]), next - 1);
    }
    assert!(oldest(&logs, &noisy).await.is_some_and(|line| number(&line) > 20_000), "the oldest are deleted");
    assert_eq!(newest(&logs, &quiet, 1000).await.len(), 10, "other sandboxes' lines stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_never_exceeds_its_bound_and_the_oldest_are_deleted() {
    let folder = folder();
    let config = Config { bytes_max: BYTES_MIN, sandbox_bytes_max: 64 * MIB, ..config(&folder) };
    let logs = Arc::new(open(&config).await);
    let team_id = TeamId::generate();
    let sources: Vec<Source> = (0..8).map(|_| Source { team_id, ..source() }).collect();
    // Overlapping readers without a gap, which let a write-ahead log grow.
    let stop = CancellationToken::new();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (logs, sources, stop) = (Arc::clone(&logs), sources.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    for source in &sources {
                        newest(&logs, source, 100).await;
                    }
                }
            })
        })
        .collect();
    let (mut written, mut next, mut round) = (0u64, 0, 0);
    while written < 24 * MIB {
        let (count, length) = [(3000, 60), (150, 8000), (200, 4100), (1, 10)][round % 4];
        let source = &sources[round % sources.len()];
        logs.append(source, lines(next, count, length)).await.expect("a write");
        next += count;
        written += (count * length) as u64;
        round += 1;
        let found = bytes_on_disk(&config);
        assert!(found <= BYTES_MIN, "{found} bytes in round {round}");
        assert_eq!(number(&newest(&logs, source, 1).await[0]), next - 1, "the newest are stored");
    }
    stop.cancel();
    for reader in readers {
        reader.await.expect("no panic");
    }
    // Across all sandboxes the remaining lines are the last ones that were appended, without a gap.
    let mut connection = connect(&config).await;
    let (low, high, count): (i64, i64, i64) = sea_orm::sqlx::query_as(
        "SELECT MIN(CAST(message AS INTEGER)), MAX(CAST(message AS INTEGER)), COUNT(*) FROM line",
    )
    .fetch_one(&mut connection)
    .await
    .expect("a row");
    assert_eq!((usize::try_from(high).expect("positive"), high - low + 1), (next - 1, count));
    let used = fs::metadata(&config.path).expect("the file").len();
    assert!(used > 5 * MIB, "the bound is used: {used}");
    let (counted, real): (i64, i64) =
        sea_orm::sqlx::query_as("SELECT (SELECT SUM(bytes) FROM sandbox), (SELECT SUM(bytes) FROM line)")
            .fetch_one(&mut connection)
            .await
            .expect("a row");
    assert_eq!(counted, real);
}

#[tokio::test]
async fn a_noisy_team_loses_only_its_own_lines() {
    let folder = folder();
    let config = Config { bytes_max: BYTES_MIN, sandbox_bytes_max: 64 * MIB, ..config(&folder) };
    let logs = open(&config).await;
    let (quiet, noisy) = (source(), TeamId::generate());
    // The first lines of all, so the first to be deleted if only age counted.
    logs.append(&quiet, lines(0, 100, 100)).await.expect("a write");
    let mut last = source();
    for _ in 0..20 {
        last = Source { team_id: noisy, ..source() };
        logs.append(&last, lines(0, 150, 8000)).await.expect("a write");
        assert!(bytes_on_disk(&config) <= BYTES_MIN);
    }
    assert_eq!(newest(&logs, &quiet, 1000).await.len(), 100, "other teams' lines stay");
    assert_eq!(number(&newest(&logs, &last, 1).await[0]), 149, "the newest are stored");
}

#[tokio::test]
async fn a_lower_bound_shrinks_the_file() {
    let folder = folder();
    let wide = Config { bytes_max: 64 * MIB, sandbox_bytes_max: 64 * MIB, ..config(&folder) };
    let (logs, source) = (open(&wide).await, source());
    logs.append(&source, lines(0, 4000, 8000)).await.expect("a write");
    logs.close().await;
    let before = fs::metadata(&wide.path).expect("the file").len();
    assert!(before > 30 * MIB, "{before}");
    let narrow = Config { bytes_max: BYTES_MIN, ..wide };
    let logs = open(&narrow).await;
    assert!(bytes_on_disk(&narrow) <= BYTES_MIN);
    for round in 1..=10 {
        logs.append(&source, lines(4000 * round, 200, 8000)).await.expect("a write");
        assert!(bytes_on_disk(&narrow) <= BYTES_MIN);
    }
    assert_eq!(number(&newest(&logs, &source, 1).await[0]), 40_199);
}

#[tokio::test]
async fn tidying_stops_with_its_token() {
    let folder = folder();
    let logs = open(&config(&folder)).await;
    let stop = CancellationToken::new();
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), logs.tidy_until(stop)).await.expect("it stops");
}

#[tokio::test]
async fn a_blocked_writer_fails_and_readers_continue() {
    let folder = folder();
    let (config, source) = (config(&folder), source());
    let logs = open(&config).await;
    logs.append(&source, lines(0, 1, 10)).await.expect("a write");
    let mut other = connect(&config).await;
    raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.expect("the lock");
    let error = logs.append(&source, lines(1, 3, 10)).await.expect_err("locked");
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(error.to_string(), format!("storing 3 log lines of sandbox {}", source.sandbox_id));
    assert_eq!(newest(&logs, &source, 1000).await.len(), 1);
    raw_sql("ROLLBACK").execute(&mut other).await.expect("the lock is free");
    logs.append(&source, lines(1, 3, 10)).await.expect("a write");
    assert_eq!(newest(&logs, &source, 1000).await.len(), 4);
}

#[tokio::test]
async fn a_failed_write_is_an_error_and_later_ones_succeed() {
    let folder = folder();
    let (config, source) = (config(&folder), source());
    let logs = open(&config).await;
    logs.append(&source, lines(0, 1, 10)).await.expect("a write");
    // Simulates a full disk: writing fails, reading still works.
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON line BEGIN SELECT RAISE(ABORT, 'no space'); END";
    tamper(&config, refuse).await;
    let error = logs.append(&source, lines(1, 1, 10)).await.expect_err("rejected");
    assert!(!error.is_retryable(), "{error:?}");
    assert_eq!(newest(&logs, &source, 1000).await.len(), 1);
    tamper(&config, "DROP TRIGGER refuse").await;
    logs.append(&source, lines(1, 1, 10)).await.expect("a write");
    assert_eq!(newest(&logs, &source, 1000).await.len(), 2);
}

#[tokio::test]
async fn damaged_lines_are_reported() {
    for (column, value) in
        [("level", "9"), ("fields", "'{'"), ("template_id", "'A B'"), ("at_us", "9000000000000000000")]
    {
        let folder = folder();
        let (config, source) = (config(&folder), source());
        let logs = open(&config).await;
        logs.append(&source, lines(0, 1, 10)).await.expect("a write");
        tamper(&config, &format!("UPDATE line SET {column} = {value}")).await;
        let query =
            Query { from: None, until: None, direction: Direction::Forward, limit: 1, level_min: None, search: None };
        let error = logs.query(source.team_id, &source.sandbox_id, &query).await.expect_err("damaged");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.contains(column) && !error.is_retryable(), "{column}: {cause}");
    }
}

#[tokio::test]
async fn a_closed_file_fails() {
    let folder = folder();
    let (logs, source) = (open(&config(&folder)).await, source());
    logs.close().await;
    logs.close().await;
    logs.append(&source, lines(0, 1, 10)).await.expect_err("closed");
    logs.tidy().await.expect_err("closed");
}

#[tokio::test]
async fn other_users_cannot_read_it() {
    let folder = folder();
    let (config, source) = (config(&folder), source());
    let logs = open(&config).await;
    logs.append(&source, lines(0, 1, 10)).await.expect("a write");
    let files = ["", "-wal", "-shm"].map(|suffix| beside(&config.path, suffix));
    for file in files {
        let mode = fs::metadata(&file).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn paths_are_taken_literally() {
    let folder = folder();
    for name in ["a b.db", "a?mode=memory.db", "a#b.db", "100%25.db", "ä.db"] {
        let path = folder.path().join(name);
        open(&Config::new(path.clone())).await.close().await;
        assert!(path.is_file(), "{name}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 5, "no other files");
}

#[tokio::test]
async fn invalid_configurations_and_files_are_rejected_unchanged() {
    let folder = folder();
    let config = config(&folder);
    for bad in [
        Config { bytes_max: BYTES_MIN - 1, ..config.clone() },
        Config { sandbox_bytes_max: SANDBOX_BYTES_MIN - 1, ..config.clone() },
        Config { retention: Duration::MAX, ..config.clone() },
    ] {
        let error = Embedded::open(bad).await.expect_err("bounds");
        assert!(matches!(error, OpenError::Bounds { .. }), "{error}");
    }
    assert!(!config.path.exists());
    let elsewhere = Config::new(folder.path().join("no/such/folder.db"));
    let error = Embedded::open(elsewhere).await.expect_err("no folder");
    assert!(matches!(error, OpenError::CreateFile { .. }), "{error}");
    let letter = "Dear database,\n".repeat(1000);
    fs::write(&config.path, &letter).expect("a file");
    let error = Embedded::open(config.clone()).await.expect_err("a letter");
    assert!(matches!(error, OpenError::Open { .. }) && error.to_string().contains("remove it"), "{error}");
    assert_eq!(fs::read_to_string(&config.path).expect("the file"), letter);
    fs::remove_file(&config.path).expect("removed");
    open(&config).await.close().await;
    tamper(&config, "PRAGMA user_version = 99").await;
    let error = Embedded::open(config.clone()).await.expect_err("newer");
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
}
