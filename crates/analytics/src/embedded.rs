//! Lines, samples and usages in one SQLite file of the data directory.
//!
//! One connection writes, in the order of calls, and is closed when an operation on it fails. A few connections read
//! snapshots of the write-ahead log and never wait for others. Each connection has its own thread, so the runtime never
//! waits for the disk. Commits are not synced: a power failure may lose the last lines, whose durability is not
//! guaranteed.
//!
//! The bounds are enforced before a line is inserted (`space`):
//!
//! * **Age**: no query returns rows that are older than the retention; [`Embedded::tidy`] deletes them. It also merges
//!   samples that have reached an age at which fewer are stored.
//! * **A sandbox**: triggers count the bytes of each sandbox's lines; its own oldest lines are deleted.
//! * **Samples and usages**: each has a maximum number of rows, derived from a part of the file; the oldest are
//!   deleted.
//! * **The file**: the oldest lines, and after them the oldest samples, are deleted while the pages in use and those
//!   that the new lines need exceed the bound. Freed pages are reused for the next lines, so the file keeps its size.
//!   When many pages are free, after lines aged or the bound was lowered, [`Embedded::tidy`] returns them to the file
//!   system. SQLite's own limit, `max_page_count`, is a second barrier: a bug here would make appends fail, and never
//!   fill the disk. A part of the bound is reserved for the write-ahead log, which is emptied when it comes near that
//!   size.

mod read;
mod samples;
mod schema;
mod space;
mod usages;
mod write;
mod writer;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use hearth_stdx::chain;
use hearth_types::{SandboxId, TeamId};
use jiff::{SignedDuration, Timestamp};
use sea_orm::sqlx::ConnectOptions as _;
use sea_orm::sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::error::{Cause, Error, OpenError};
use crate::line::{LogLine, Source, StoredLine};
use crate::query::Query;
use crate::sample::{Sample, SampleQuery, Usage};
use crate::{Logs, Samples, Usages, intake};

use space::{Space, WAL_BYTES_MAX};
use writer::Writer;

/// Default age after which rows are deleted.
pub const RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Smallest allowed bound of the file: its write-ahead log, some lines, and the space that appending them needs.
pub const BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Smallest allowed bound of one sandbox: the lines of one transaction always fit.
pub const SANDBOX_BYTES_MIN: u64 = 2 * 1024 * 1024;

/// Default bound of the file.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Default bound of one sandbox: tens of thousands of ordinary lines, one thirty-second of the file.
const SANDBOX_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Maximum number of reading connections. A query takes milliseconds.
const READERS_MAX: u32 = 3;
/// Longest wait of a connection for another's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait of a call for a connection when all are in use.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for storing lines. Nodes drop lines that take longer.
const APPEND_TIME_MAX: Duration = Duration::from_secs(10);
/// Interval between two removals of aged rows: exact enough for an age of days.
const TIDY_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Mode of the file: it contains output of users' programs.
const FILE_MODE: u32 = 0o600;

/// Location and bounds of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file; created if it is missing.
    pub path: PathBuf,
    /// Maximum bytes of the file with its write-ahead log; at least [`BYTES_MIN`].
    pub bytes_max: u64,
    /// Maximum bytes of one sandbox's lines; at least [`SANDBOX_BYTES_MIN`].
    ///
    /// An estimate of the file's overhead per line is included.
    pub sandbox_bytes_max: u64,
    /// Age up to which rows are stored and returned.
    pub retention: Duration,
}

impl Config {
    /// Creates the default configuration: 256 MiB, 8 MiB for each sandbox, seven days.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, bytes_max: BYTES_MAX, sandbox_bytes_max: SANDBOX_BYTES_MAX, retention: RETENTION }
    }
}

/// The embedded backend.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
    retention: SignedDuration,
    space: Space,
    writer: Writer,
    readers: SqlitePool,
}

impl Embedded {
    /// Opens the file, creates it if it is missing, brings its tables up to date and deletes rows beyond the bounds.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let Config { path, bytes_max, sandbox_bytes_max, retention } = config;
        let bounds = |rule| OpenError::Bounds { rule };
        if bytes_max < BYTES_MIN {
            return Err(bounds("the file needs 16 MiB or more"));
        }
        if sandbox_bytes_max < SANDBOX_BYTES_MIN {
            return Err(bounds("a sandbox needs 2 MiB or more"));
        }
        let retention = SignedDuration::try_from(retention).map_err(|_| bounds("the retention is too long"))?;
        create_private(&path).map_err(|source| OpenError::CreateFile { path: path.clone(), source })?;
        let space = Space::new(bytes_max, sandbox_bytes_max, write_ahead_log(&path));
        let failed = |source| OpenError::Open { path: path.clone(), source };
        let writer = pool(1).connect_with(writing(&path, &space)).await.map_err(|error| failed(error.into()))?;
        let writer = Writer::new(writer);
        let readers = pool(READERS_MAX).connect_with(options(&path).pragma("query_only", "ON")).await;
        let readers = readers.map_err(|error| failed(error.into()))?;
        let embedded = Self { path: path.clone(), retention, space, writer, readers };
        let is_known = match schema::ensure(&embedded.writer).await {
            Ok(true) => embedded.remove_old().await.map(|()| true),
            outcome => outcome,
        };
        let rejection = match is_known {
            Ok(true) => return Ok(embedded),
            Ok(false) => OpenError::Newer { path },
            Err(source) => failed(source),
        };
        embedded.close().await;
        Err(rejection)
    }

    /// Deletes aged rows, shrinks the file to its bound, and empties the write-ahead log. Cancel safe.
    ///
    /// It may be called at any time.
    ///
    /// # Errors
    /// [`Error::Tidy`]. Rows that were deleted before the failure stay deleted.
    pub async fn tidy(&self) -> Result<(), Error> {
        self.remove_old().await.map_err(|source| Error::Tidy { source })
    }

    /// Calls [`tidy`](Self::tidy) at intervals until `stop` is cancelled. Cancel safe.
    pub async fn tidy_until(&self, stop: CancellationToken) {
        let mut timer = tokio::time::interval(TIDY_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = timer.tick() => {}
            }
            if let Err(error) = self.tidy().await {
                tracing::warn!(
                    error = %chain(&error),
                    path = %self.path.display(),
                    "deleting old log lines and samples failed"
                );
            }
        }
    }

    /// Waits for running queries and closes the file; later calls fail. Idempotent.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn remove_old(&self) -> Result<(), Cause> {
        let now = Timestamp::now();
        let oldest = self.oldest(now);
        let mut connection = self.writer.acquire().await?;
        samples::delete_aged(&mut connection, oldest).await?;
        connection.release();
        samples::merge_aged(&self.writer, now).await?;
        let mut connection = self.writer.acquire().await?;
        usages::delete_aged(&mut connection, oldest).await?;
        self.space.tidy(&mut connection, oldest).await?;
        connection.release();
        Ok(())
    }

    /// Returns the time before which rows are too old.
    fn oldest(&self, now: Timestamp) -> Timestamp {
        // A retention that reaches back before the earliest time deletes nothing.
        now.checked_sub(self.retention).unwrap_or(Timestamp::MIN)
    }
}

#[async_trait]
impl Logs for Embedded {
    async fn append(&self, source: &Source, lines: Vec<LogLine>) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        let failed = {
            let lines = lines.len();
            move |cause| Error::Append { sandbox_id: source.sandbox_id.clone(), lines, source: cause }
        };
        let now = Timestamp::now();
        let plausible = self.oldest(now)..=now;
        let lines = lines.into_iter().map(|line| intake::accept(line, &plausible)).collect();
        let writing = write::append(&self.writer, &self.space, source, lines);
        in_time(writing).await.map_err(failed)
    }

    async fn query(&self, team_id: TeamId, sandbox_id: &SandboxId, query: &Query) -> Result<Vec<StoredLine>, Error> {
        let oldest = self.oldest(Timestamp::now());
        let read = read::query(&self.readers, team_id, sandbox_id, query, oldest).await;
        read.map_err(|source| Error::Query { sandbox_id: sandbox_id.clone(), source })
    }
}

#[async_trait]
impl Samples for Embedded {
    async fn record(&self, team_id: TeamId, sandbox_id: &SandboxId, sample: Sample) -> Result<(), Error> {
        let now = Timestamp::now();
        let sample = intake::accept_sample(sample, &(self.oldest(now)..=now));
        let recording = samples::record(&self.writer, &self.space, team_id, sandbox_id, &sample);
        let recorded = in_time(recording).await;
        recorded.map_err(|source| Error::RecordSample { sandbox_id: sandbox_id.clone(), source })
    }

    async fn range(&self, team_id: TeamId, sandbox_id: &SandboxId, query: &SampleQuery) -> Result<Vec<Sample>, Error> {
        let oldest = self.oldest(Timestamp::now());
        let read = samples::range(&self.readers, team_id, sandbox_id, query, oldest).await;
        read.map_err(|source| Error::ReadSamples { source })
    }

    async fn latest(&self, team_id: TeamId, sandbox_ids: &[SandboxId]) -> Result<BTreeMap<SandboxId, Sample>, Error> {
        let oldest = self.oldest(Timestamp::now());
        let read = samples::latest(&self.readers, team_id, sandbox_ids, oldest).await;
        read.map_err(|source| Error::ReadSamples { source })
    }
}

#[async_trait]
impl Usages for Embedded {
    async fn record_usages(&self, usages: Vec<(TeamId, Usage)>) -> Result<(), Error> {
        if usages.is_empty() {
            return Ok(());
        }
        let recorded = in_time(usages::record(&self.writer, &self.space, &usages)).await;
        recorded.map_err(|source| Error::RecordUsage { teams: usages.len(), source })
    }

    async fn usages(
        &self,
        team_id: TeamId,
        from: Timestamp,
        until: Timestamp,
        step: Duration,
    ) -> Result<Vec<Usage>, Error> {
        let from = from.max(self.oldest(Timestamp::now()));
        let read = usages::range(&self.readers, team_id, from, until, step).await;
        read.map_err(|source| Error::ReadUsage { team_id, source })
    }
}

/// Awaits a write, for at most [`APPEND_TIME_MAX`], in case the disk does not respond.
async fn in_time(writing: impl Future<Output = Result<(), Cause>>) -> Result<(), Cause> {
    tokio::time::timeout(APPEND_TIME_MAX, writing).await.unwrap_or_else(|_| Err(Cause::too_slow(APPEND_TIME_MAX)))
}

fn pool(connections_max: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        // One connection of each kind stays open, and with it the write-ahead log and its index: creating those again
        // would need space on a disk that may be full.
        .min_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A file never closes its connections.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // Statements contain output of users' programs.
        .disable_statement_logging()
}

fn writing(path: &Path, space: &Space) -> SqliteConnectOptions {
    options(path)
        // These two take effect when the file is created. Setting them takes the write lock, so readers do not.
        .page_size(space::PAGE_BYTES)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .pragma("wal_autocheckpoint", space::CHECKPOINT_PAGES.to_string())
        .pragma("journal_size_limit", (WAL_BYTES_MAX / 2).to_string())
        .pragma("max_page_count", space.pages_max().to_string())
}

/// Creates the file with a private mode; SQLite gives its log files the same mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_ahead_log(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    name.into()
}

#[cfg(test)]
mod tests {
    use sea_orm::sqlx::{AssertSqlSafe, Row as _};

    use super::*;

    #[tokio::test]
    async fn the_file_can_shrink_and_is_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config { bytes_max: BYTES_MIN, ..Config::new(folder.path().join("analytics.db")) };
        let pages_max = (BYTES_MIN - WAL_BYTES_MAX) / u64::from(space::PAGE_BYTES);
        for _ in 0..2 {
            let embedded = Embedded::open(config.clone()).await.expect("it opens");
            let pages_max = pages_max.to_string();
            for (pool, name, expected) in [
                (embedded.writer.pool(), "journal_mode", "wal"),
                (embedded.writer.pool(), "synchronous", "1"),
                (embedded.writer.pool(), "auto_vacuum", "2"),
                (embedded.writer.pool(), "max_page_count", &pages_max),
                (&embedded.readers, "journal_mode", "wal"),
                (&embedded.readers, "query_only", "1"),
            ] {
                let row = sea_orm::sqlx::query(AssertSqlSafe(format!("PRAGMA {name}"))).fetch_one(pool).await;
                let row = row.expect("a row");
                let found = row.try_get::<String, _>(0).or_else(|_| row.try_get::<i64, _>(0).map(|n| n.to_string()));
                assert_eq!(found.expect("a value"), expected, "{name}");
            }
            embedded.close().await;
        }
    }
}
