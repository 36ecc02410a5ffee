//! Opening and closing the database, and the turn to write.
//!
//! A database has one writer at a time. SQLite can do no other, and Postgres is held to the same by a lock of its own, so
//! that what a transaction has read stays true until it commits on either. Within this process writers wait in a fair
//! queue ([`Store::begin`]); between processes they wait for the file's lock or Postgres's. Readers see snapshots and
//! wait for nobody. Each commit is synced before it is acknowledged.
//!
//! A connection whose transaction neither committed nor rolled back cleanly is closed, never lent again ([`writer`]).
//!
//! Lock rule: a [`Write`] holds the only in-process lock, for one short transaction without any IO but the database's.
//! A task that holds one begins no other.

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

/// Connections that read. Queries take well below a millisecond, so few are enough.
const READERS_MAX: u32 = 3;
/// Connections that write: a database has one writer at a time.
const WRITERS_MAX: u32 = 1;
/// How long a write waits for another process to finish its own; SQLite polls, Postgres queues.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for a connection when all are in use.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may take to answer at all.
const GREET_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts to open a database that another process is just changing to write-ahead logging, for which SQLite cannot
/// wait by itself (<https://www.sqlite.org/c3ref/busy_handler.html>).
const OPEN_ATTEMPTS: u32 = 50;
/// Pause between them: that change takes a few milliseconds.
const OPEN_PAUSE: Duration = Duration::from_millis(100);
/// What Postgres's writers lock: any number that nobody else uses in this database.
const WRITER_LOCK: i64 = 0x6865_6172_7468;
/// What the one control role of a Postgres database holds.
const CLAIM_LOCK: i64 = WRITER_LOCK + 1;
/// A transaction that sits idle this long lost its process: Postgres ends it, and with it its lock. Ours take no breath.
const IDLE_TRANSACTION_MAX: Duration = Duration::from_secs(30);
/// The database's mode: it holds metadata and environments of sandboxes.
const FILE_MODE: u32 = 0o600;

/// Where the rows are.
#[derive(Clone)]
pub struct Config {
    /// `sqlite:///absolute/path?mode=rwc` (see [`Config::sqlite`]), or `postgres://user@host:port/database`.
    pub url: String,
}

/// What an address leads to.
enum Kind {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres,
}

impl Config {
    /// The SQLite file at `path`, created if it is missing. `None`: the path is not UTF-8.
    #[must_use]
    pub fn sqlite(path: &Path) -> Option<Self> {
        // A path that says `%`, `?` or `#` must not be taken for a URL that does.
        let path = path.to_str()?.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        Some(Self { url: format!("sqlite://{path}?mode=rwc") })
    }

    fn kind(&self) -> Result<Kind, &'static str> {
        const EXPECTED: &str = "`sqlite://PATH?mode=rwc` or `postgres://USER@HOST:PORT/DATABASE` is expected";
        if ["postgres://", "postgresql://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            let options: PgConnectOptions = self.url.parse().map_err(|_| EXPECTED)?;
            return match options.get_database() {
                Some(_) => Ok(Kind::Postgres),
                None => Err("the address names no database: `postgres://USER@HOST:PORT/DATABASE` is expected"),
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
        // Each connection would have a memory of its own, and a restart would lose what was acknowledged.
        if self.url.contains(":memory:") || self.has_parameter("mode=memory") {
            return Err("a database in memory does not outlive the process");
        }
        Ok(Kind::Sqlite(path.to_owned()))
    }

    fn has_parameter(&self, parameter: &str) -> bool {
        self.url.split_once('?').is_some_and(|(_, query)| query.split('&').any(|found| found == parameter))
    }

    /// The address without its credentials, for messages.
    fn display(&self) -> String {
        let Some((scheme, rest)) = self.url.split_once("://").filter(|(scheme, _)| *scheme != "sqlite") else {
            return self.url.clone();
        };
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        // Parameters may say the password, too.
        let host = host.split_once('?').map_or(host, |(host, _)| host);
        format!("{scheme}://{host}")
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("url", &self.display()).finish()
    }
}

/// The durable rows. Cheap to clone: clones share connections and the turn to write.
#[derive(Debug, Clone)]
pub struct Store {
    /// Connections that read.
    pub(crate) database: DatabaseConnection,
    writer: Writer,
    /// The connection that holds the claim to be the only control role.
    claim: Option<DatabaseConnection>,
}

impl Store {
    /// Opens the database, creates it if the address says so, and brings its tables up to date. Several processes may
    /// do so at once. A dropped call leaves an empty or an up-to-date database.
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
                greet(config).await?;
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

    /// Opens the database for the control role, of which there can be one: another one would take its sandboxes for
    /// lost, and end them. The claim ends with [`Store::close`], or with the process. Of a SQLite file nothing is
    /// claimed: its folder has a lock of its own.
    ///
    /// # Errors
    /// Those of [`Store::open`], and [`Error::Claimed`].
    pub async fn open_alone(config: &Config) -> Result<Self, Error> {
        let store = Self::open(config).await?;
        if !store.is_postgres() {
            return Ok(store);
        }
        match claim(config).await {
            Ok(Some(claim)) => Ok(Self { claim: Some(claim), ..store }),
            refused => {
                store.close().await;
                let url = config.display();
                Err(match refused {
                    Err(error) => Error::Open { url, source: Cause::from(error) },
                    Ok(_) => Error::Claimed { url },
                })
            }
        }
    }

    /// Waits for what runs and closes all connections, also those of clones; calls after it fail. Idempotent.
    pub async fn close(&self) {
        // Readers first: the last connection to a SQLite file moves the write-ahead log into it.
        for database in [Some(&self.database), Some(self.writer.database()), self.claim.as_ref()].into_iter().flatten()
        {
            if let Err(error) = database.close_by_ref().await {
                tracing::warn!(%error, "closing the database");
            }
        }
    }

    /// Begins a transaction that writes, when it is its turn. Dropping it undoes it.
    pub(crate) async fn begin(&self, action: &'static str, subject: impl Display + Send) -> Result<Write, Error> {
        self.writer.begin(action, subject.to_string()).await
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.database.get_database_backend() == DbBackend::Postgres
    }
}

/// SQLite gives the log files the mode of the database.
fn create_private(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Connects once: a pool goes on trying for half a minute, and then does not say what was wrong.
async fn greet(config: &Config) -> Result<(), Cause> {
    let failed = |error| Cause::from(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))));
    let options: PgConnectOptions = config.url.parse().map_err(failed)?;
    let connecting = tokio::time::timeout(GREET_TIMEOUT, PgConnection::connect_with(&options));
    let connected = connecting.await.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut));
    connected.map_err(failed)?.close().await.map_err(failed)
}

/// A connection that holds the claim for as long as it is open; `None`: another one does.
async fn claim(config: &Config) -> Result<Option<DatabaseConnection>, DbErr> {
    let mut options = ConnectOptions::new(&config.url);
    // The lock is the connection's, so there is one, and it is kept.
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
        // A file's connections need not be renewed. One of each kind stays open, and with it the write-ahead log and its
        // index: making those again takes room on a disk that may be full.
        options.min_connections(1).idle_timeout(None).max_lifetime(None);
    }
    options
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A file does not hang up, a server may.
        .test_before_acquire(is_postgres)
        // Statements carry the contents of rows.
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
                // Whatever the server's own configuration says.
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
    async fn every_connection_keeps_what_it_acknowledges() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&config(&folder)).await.expect("an empty database");
        let mut held = Vec::new();
        let readers = std::iter::repeat_n(&store.database, READERS_MAX as usize);
        for database in readers.chain([store.writer.database()]) {
            // A transaction keeps its connection, so that the next one asks another.
            held.push(database.begin().await.expect("a connection"));
            let asked = held.last().expect("just begun");
            for (name, expected) in [("journal_mode", "wal"), ("synchronous", "2"), ("foreign_keys", "1")] {
                let sql = format!("PRAGMA {name}");
                let row = asked.query_one_raw(Statement::from_string(asked.get_database_backend(), sql)).await;
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
        // Another process has a queue of its own.
        let other = Writer::new(Database::connect(options).await.expect("it opens"));
        let write = store.begin("writing", "something").await.expect("the first turn");
        let begin = async || other.begin("writing", "something".to_owned()).await;
        let error = begin().await.map(drop).expect_err("the lock is held");
        assert!(error.is_retryable() && !error.is_effect_unknown(), "{error:?}");
        assert_eq!(error.to_string(), "writing something");
        drop(write);
        store.begin("writing", "something").await.expect("a dropped turn is over").commit().await.expect("no change");
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
