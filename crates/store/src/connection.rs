//! Opening and closing the database, and the exclusive right to write.
//!
//! A database has one writer at a time. SQLite supports only one; on Postgres an advisory lock enforces the same, so
//! that what a transaction has read stays true until it commits on either. Within this process writers wait in a fair
//! queue ([`Store::begin`]); between processes they wait for the file's lock or for the advisory lock. Readers see
//! snapshots and never wait. Each commit is synced before it is acknowledged.
//!
//! A connection whose transaction neither committed nor rolled back cleanly is closed and never used again
//! ([`writer`]).
//!
//! Lock rule: a [`Write`] holds the only in-process lock, for one short transaction that does no IO except the
//! database's. A task that holds one must not begin another.

mod writer;

use std::fmt::{self, Display};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection};
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{self, Connection as _};
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr, RuntimeErr, Statement,
};

use crate::error::{Cause, Error};
use crate::migration;
pub(crate) use writer::Write;
use writer::Writer;

/// Maximum number of reading connections. Queries take well below a millisecond, so few are enough.
const READERS_MAX: u32 = 3;
/// Number of writing connections: a database has one writer at a time.
const WRITERS_MAX: u32 = 1;
/// Longest wait of a write for the write of another process; SQLite polls, Postgres queues.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait of a call for a connection when all are in use.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the first connection to a Postgres server.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum attempts to open a database while another process changes it to write-ahead logging.
///
/// SQLite itself cannot wait for that change (<https://www.sqlite.org/c3ref/busy_handler.html>).
const OPEN_ATTEMPTS: u32 = 50;
/// Pause between two attempts to open the database: that change takes a few milliseconds.
const OPEN_PAUSE: Duration = Duration::from_millis(100);
/// Key of the advisory lock that Postgres writers take: any number that is not used otherwise in this database.
const WRITER_LOCK: i64 = 0x6865_6172_7468;
/// Key of the advisory lock that the one control role of a Postgres database holds.
const CLAIM_LOCK: i64 = WRITER_LOCK + 1;
/// Postgres rolls back a transaction that is idle for this long, because its process is dead, and frees its lock.
///
/// Hearth's own transactions never idle.
const IDLE_TRANSACTION_MAX: Duration = Duration::from_secs(30);
/// Mode of the database file: it contains metadata and environments of sandboxes.
const FILE_MODE: u32 = 0o600;

/// Location of the database.
#[derive(Clone)]
pub struct Config {
    /// `sqlite:///absolute/path?mode=rwc` (see [`Config::sqlite`]), or `postgres://user@host:port/database`.
    pub url: String,
}

/// Kind of database that an address refers to.
enum Kind {
    /// Path of the file.
    Sqlite(PathBuf),
    Postgres,
}

impl Config {
    /// Returns the address of the SQLite file at `path`, to be created if it is missing; `None` if `path` is not UTF-8.
    #[must_use]
    pub fn sqlite(path: &Path) -> Option<Self> {
        // `%`, `?` and `#` in a path must not be read as parts of a URL.
        let path = path.to_str()?.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        Some(Self { url: format!("sqlite://{path}?mode=rwc") })
    }

    fn kind(&self) -> Result<Kind, &'static str> {
        const EXPECTED: &str = "`sqlite://PATH?mode=rwc` or `postgres://USER@HOST:PORT/DATABASE` is expected";
        if ["postgres://", "postgresql://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            let options: PgConnectOptions = self.url.parse().map_err(|_| EXPECTED)?;
            return match options.get_database() {
                Some(_) => Ok(Kind::Postgres),
                None => Err("the address has no database name: `postgres://USER@HOST:PORT/DATABASE` is expected"),
            };
        }
        if !self.url.starts_with("sqlite:") {
            return Err(EXPECTED);
        }
        let options: SqliteConnectOptions = self.url.parse().map_err(|_| EXPECTED)?;
        let path = options.get_filename();
        if path.as_os_str().is_empty() {
            return Err(EXPECTED);
        }
        // Each connection would have its own memory, and a restart would lose acknowledged changes.
        if self.url.contains(":memory:") || self.has_parameter("mode=memory") {
            return Err("a database in memory does not outlive the process");
        }
        Ok(Kind::Sqlite(path.to_owned()))
    }

    fn has_parameter(&self, parameter: &str) -> bool {
        self.url.split_once('?').is_some_and(|(_, query)| query.split('&').any(|found| found == parameter))
    }

    /// Returns the address without its credentials, for messages.
    fn display(&self) -> String {
        let Some((scheme, rest)) = self.url.split_once("://").filter(|(scheme, _)| *scheme != "sqlite") else {
            return self.url.clone();
        };
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        // Parameters may contain the password, too.
        let host = host.split_once('?').map_or(host, |(host, _)| host);
        format!("{scheme}://{host}")
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("url", &self.display()).finish()
    }
}

/// Handle to the durable rows. Cheap to clone: clones share connections and the queue of writers.
#[derive(Debug, Clone)]
pub struct Store {
    /// Pool of reading connections.
    pub(crate) database: DatabaseConnection,
    writer: Writer,
    /// The connection whose advisory lock makes this process the only control role.
    claim: Option<DatabaseConnection>,
}

impl Store {
    /// Opens the database, creates it if the address says so, and brings its tables up to date.
    ///
    /// Several processes may do so at the same time. A dropped call leaves an empty or an up-to-date database.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::CreateFile`], [`Error::Open`], [`Error::Newer`], [`Error::Migrate`].
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let url = config.display();
        let kind = config.kind().map_err(|rule| Error::Unsupported { url: url.clone(), rule })?;
        if let Kind::Sqlite(path) = &kind
            && config.has_parameter("mode=rwc")
        {
            create_private(path).map_err(|source| Error::CreateFile { path: path.display().to_string(), source })?;
        }
        let opened = async {
            if matches!(kind, Kind::Postgres) {
                probe(config).await?;
            }
            let writer = Writer::new(connect(config, WRITERS_MAX).await?);
            Ok(Self { database: connect(config, READERS_MAX).await?, writer, claim: None })
        };
        let store = opened.await.map_err(|source| Error::Open { url: url.clone(), source })?;
        match migration::run(&store, &url).await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    /// Opens the database for the control role, of which there can be only one.
    ///
    /// A second control role would take the first one's sandboxes for lost and kill them. The exclusive claim lasts
    /// until [`Store::close`] or the end of the process. A SQLite file is not claimed: its folder has its own lock.
    ///
    /// # Errors
    /// Those of [`Store::open`], and [`Error::Claimed`].
    pub async fn open_exclusive(config: &Config) -> Result<Self, Error> {
        let store = Self::open(config).await?;
        if !store.is_postgres() {
            return Ok(store);
        }
        match claim(config).await {
            Ok(Some(claim)) => Ok(Self { claim: Some(claim), ..store }),
            rejected => {
                store.close().await;
                let url = config.display();
                Err(match rejected {
                    Err(error) => Error::Open { url, source: Cause::from(error) },
                    Ok(_) => Error::Claimed { url },
                })
            }
        }
    }

    /// Waits for running queries and closes all connections, also those of clones; later calls fail. Idempotent.
    pub async fn close(&self) {
        // Readers first: closing the last connection to a SQLite file checkpoints its write-ahead log.
        for database in [Some(&self.database), Some(self.writer.database()), self.claim.as_ref()].into_iter().flatten()
        {
            if let Err(error) = database.close_by_ref().await {
                tracing::warn!(%error, "closing the database failed");
            }
        }
    }

    /// Begins a writing transaction, after those that were requested earlier. Dropping it rolls it back.
    pub(crate) async fn begin(&self, action: &'static str, subject: impl Display + Send) -> Result<Write, Error> {
        self.writer.begin(action, subject.to_string()).await
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.database.get_database_backend() == DbBackend::Postgres
    }
}

/// Creates the file with a private mode; SQLite gives its log files the same mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Connects once. A pool would retry for half a minute, and its error would not contain the cause.
async fn probe(config: &Config) -> Result<(), Cause> {
    let failed = |error| Cause::from(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))));
    let options: PgConnectOptions = config.url.parse().map_err(failed)?;
    let connecting = tokio::time::timeout(PROBE_TIMEOUT, PgConnection::connect_with(&options));
    let connected = connecting.await.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut));
    connected.map_err(failed)?.close().await.map_err(failed)
}

/// Returns a connection that holds the claim while it is open; `None`: another process holds the claim.
async fn claim(config: &Config) -> Result<Option<DatabaseConnection>, DbErr> {
    let mut options = ConnectOptions::new(&config.url);
    // The lock belongs to the connection, so the pool has exactly one and never closes it.
    options.max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None).sqlx_logging(false);
    options.map_sqlx_postgres_opts(|options| options.application_name("hearth claim"));
    let database = Database::connect(options).await?;
    let query = format!("SELECT pg_try_advisory_lock({CLAIM_LOCK}) AS is_ours");
    let row = database.query_one_raw(Statement::from_string(DbBackend::Postgres, query)).await?;
    let is_ours = row.map(|row| row.try_get::<bool>("", "is_ours")).transpose()?.unwrap_or(false);
    if is_ours {
        return Ok(Some(database));
    }
    database.close_by_ref().await?;
    Ok(None)
}

async fn connect(config: &Config, connections_max: u32) -> Result<DatabaseConnection, Cause> {
    let mut options = ConnectOptions::new(&config.url);
    let is_postgres = matches!(config.kind(), Ok(Kind::Postgres));
    if !is_postgres {
        // Connections to a file need no renewal. One of each kind stays open, and with it the write-ahead log and its
        // index: creating those again would need space on a disk that may be full.
        options.min_connections(1).idle_timeout(None).max_lifetime(None);
    }
    options
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A file never closes its connections, a server may.
        .test_before_acquire(is_postgres)
        // Statements contain the contents of rows.
        .sqlx_logging(false)
        .record_stmt_in_spans(false)
        .map_sqlx_sqlite_opts(|options| {
            options
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .busy_timeout(BUSY_TIMEOUT)
        })
        .map_sqlx_sqlite_pool_opts(|pool| {
            pool.after_release(|connection, _| Box::pin(writer::is_rolled_back(connection)))
        })
        .map_sqlx_postgres_opts(|options| {
            options.application_name("hearth").options([
                // These override the server's configuration.
                ("synchronous_commit", "on".to_owned()),
                ("lock_timeout", format!("{}ms", BUSY_TIMEOUT.as_millis())),
                ("idle_in_transaction_session_timeout", format!("{}ms", IDLE_TRANSACTION_MAX.as_millis())),
            ])
        });
    let mut attempt = 1;
    loop {
        match Database::connect(options.clone()).await.map_err(Cause::from) {
            Err(cause) if cause.is_busy() && attempt < OPEN_ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
        tokio::time::sleep(OPEN_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::TransactionTrait as _;

    use super::*;

    fn config(folder: &tempfile::TempDir) -> Config {
        Config::sqlite(&folder.path().join("hearth.db")).expect("the path is UTF-8")
    }

    #[tokio::test]
    async fn every_connection_is_durable() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&config(&folder)).await.expect("an empty database");
        let mut transactions = Vec::new();
        let readers = std::iter::repeat_n(&store.database, READERS_MAX as usize);
        for database in readers.chain([store.writer.database()]) {
            // An open transaction occupies its connection, so the next one gets another.
            transactions.push(database.begin().await.expect("a connection"));
            let connection = transactions.last().expect("just begun");
            for (name, expected) in [("journal_mode", "wal"), ("synchronous", "2"), ("foreign_keys", "1")] {
                let sql = format!("PRAGMA {name}");
                let row =
                    connection.query_one_raw(Statement::from_string(connection.get_database_backend(), sql)).await;
                let row = row.expect("a query").expect("a row");
                let found =
                    row.try_get_by::<String, _>(0).or_else(|_| row.try_get_by::<i64, _>(0).map(|n| n.to_string()));
                assert_eq!(found.expect("a value"), expected, "{name}");
            }
        }
    }

    #[tokio::test]
    async fn a_database_that_another_process_writes_is_busy() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&config(&folder)).await.expect("an empty database");
        let mut options = ConnectOptions::new(&config(&folder).url);
        options.map_sqlx_sqlite_opts(|options| options.busy_timeout(Duration::ZERO));
        // Another process has its own queue.
        let other = Writer::new(Database::connect(options).await.expect("it opens"));
        let write = store.begin("writing", "something").await.expect("the queue is empty");
        let begin = async || other.begin("writing", "something".to_owned()).await;
        let error = begin().await.map(drop).expect_err("the lock is held");
        assert!(error.is_retryable() && !error.is_effect_unknown(), "{error:?}");
        assert_eq!(error.to_string(), "writing something");
        drop(write);
        store
            .begin("writing", "something")
            .await
            .expect("a dropped write frees the queue")
            .commit()
            .await
            .expect("no change");
        begin().await.expect("the lock is free");
    }

    #[test]
    fn credentials_are_not_printed() {
        for (url, shown) in [
            ("postgres://user:hunter2@host:5432/hearth", "postgres://host:5432/hearth"),
            ("postgres://user:hunter@2@host/hearth", "postgres://host/hearth"),
            ("postgres://user@host/hearth?password=hunter2", "postgres://host/hearth"),
            ("postgres:///hearth?password=hunter2", "postgres:///hearth"),
            ("sqlite:///home/me@home/hearth.db", "sqlite:///home/me@home/hearth.db"),
            ("sqlite:hearth.db", "sqlite:hearth.db"),
        ] {
            let config = Config { url: url.to_owned() };
            assert_eq!(config.display(), shown);
            assert_eq!(format!("{config:?}"), format!("Config {{ url: {shown:?} }}"));
        }
    }
}
