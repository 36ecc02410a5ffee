//! Why the store could not answer.

use std::error::Error as StdError;
use std::fmt;

use sea_orm::sqlx::error::DatabaseError;
use sea_orm::sqlx::postgres::PgDatabaseError;
use sea_orm::sqlx::sqlite::SqliteError;
use sea_orm::{DbErr, RuntimeErr};

/// Low byte of a SQLite result code: another process or connection writes (<https://www.sqlite.org/rescode.html>).
const SQLITE_BUSY: u32 = 5;
/// The same, within one shared cache.
const SQLITE_LOCKED: u32 = 6;
/// The file cannot grow: the disk, or the quota that SQLite itself keeps, is full.
const SQLITE_FULL: u32 = 13;
/// The index of the write-ahead log cannot grow (`SQLITE_IOERR_SHMSIZE`).
const SQLITE_INDEX_FULL: u32 = 4874;
/// Postgres's disk is full.
const POSTGRES_FULL: &str = "53100";
/// Postgres's codes for a lock or a connection that may be free a little later: a lock's timeout, a deadlock, no
/// connection left, a server that starts (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
const POSTGRES_BUSY: [&str; 4] = ["55P03", "40P01", "53300", "57P03"];

/// Why the store could not answer. Refusals that a caller can act on have types of their own, next to the calls.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is none that the store can open.
    #[error("`{url}` is no database that can be used: {rule}")]
    Unsupported {
        /// The address, without credentials.
        url: String,
        /// What it would have to be.
        rule: &'static str,
    },
    /// The file could not be made private before it was opened.
    #[error("creating the database file `{path}`")]
    CreateFile {
        /// The file.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The database could not be opened.
    #[error("opening the database `{url}`")]
    Open {
        /// The address, without credentials.
        url: String,
        /// Why it failed.
        source: Cause,
    },
    /// Another control role uses the database, and there can be one.
    #[error("another Hearth serves from the database `{url}`: stop it first, or give this one a database of its own")]
    Claimed {
        /// The address, without credentials.
        url: String,
    },
    /// A newer version of Hearth made the database; this one would misread it.
    #[error(
        "the database `{url}` was made by a newer version of Hearth (it has `{migration}`): run that version, or \
         restore a copy from before the upgrade"
    )]
    Newer {
        /// The address, without credentials.
        url: String,
        /// The first step this version does not know.
        migration: String,
    },
    /// Bringing the tables up to date failed. The database is as it was.
    #[error("bringing the tables of `{url}` up to date")]
    Migrate {
        /// The address, without credentials.
        url: String,
        /// Why it failed.
        source: Cause,
    },
    /// A query failed. Nothing was changed.
    #[error("{action} {subject}")]
    Query {
        /// What was tried.
        action: &'static str,
        /// On what.
        subject: String,
        /// Why it failed.
        source: Cause,
    },
    /// The end of a transaction failed: it may have happened, or not.
    #[error("committing: {action} {subject}")]
    Commit {
        /// What was tried.
        action: &'static str,
        /// On what.
        subject: String,
        /// Why it failed.
        source: Cause,
    },
    /// A row holds what no version of Hearth wrote.
    #[error("row `{id}` of table `{table}` has an unreadable `{column}`")]
    Damaged {
        /// The table.
        table: &'static str,
        /// The row.
        id: String,
        /// The column.
        column: &'static str,
        /// What is wrong with it.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open { source, .. }
            | Self::Migrate { source, .. }
            | Self::Query { source, .. }
            | Self::Commit { source, .. } => source.is_busy(),
            Self::Unsupported { .. }
            | Self::CreateFile { .. }
            | Self::Claimed { .. }
            | Self::Newer { .. }
            | Self::Damaged { .. } => false,
        }
    }

    /// Whether the database's disk is full. The same call succeeds once there is room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Open { source, .. }
            | Self::Migrate { source, .. }
            | Self::Query { source, .. }
            | Self::Commit { source, .. } => source.is_full(),
            Self::CreateFile { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Unsupported { .. } | Self::Claimed { .. } | Self::Newer { .. } | Self::Damaged { .. } => false,
        }
    }

    /// Whether the change may have been made although the call failed. Read again before you decide.
    #[must_use]
    pub fn is_effect_unknown(&self) -> bool {
        // A busy database refuses a commit before it begins it; of one that found no room, the last frame, which makes it
        // one, is not in the write-ahead log.
        matches!(self, Self::Commit { source, .. } if !source.is_busy() && source.sqlite_code() != Some(SQLITE_FULL))
    }
}

/// What the database said. Its text is for logs, not for clients.
#[derive(Debug)]
pub struct Cause(DbErr);

impl Cause {
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.0, DbErr::ConnectionAcquire(_))
            || self.postgres_code().is_some_and(|code| POSTGRES_BUSY.contains(&code))
            || self.sqlite_code().is_some_and(|code| matches!(code & 0xff, SQLITE_BUSY | SQLITE_LOCKED))
    }

    fn is_full(&self) -> bool {
        self.postgres_code() == Some(POSTGRES_FULL)
            || self.sqlite_code().is_some_and(|code| matches!(code, SQLITE_FULL | SQLITE_INDEX_FULL))
    }

    fn postgres_code(&self) -> Option<&str> {
        self.database_error()?.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::code)
    }

    /// SQLite's extended result code.
    fn sqlite_code(&self) -> Option<u32> {
        let error = self.database_error()?;
        error.try_downcast_ref::<SqliteError>()?.code()?.parse().ok()
    }

    fn database_error(&self) -> Option<&dyn DatabaseError> {
        let (DbErr::Conn(error) | DbErr::Exec(error) | DbErr::Query(error)) = &self.0 else { return None };
        let RuntimeErr::SqlxError(error) = error else { return None };
        error.as_database_error()
    }
}

impl From<DbErr> for Cause {
    fn from(error: DbErr) -> Self {
        Self(error)
    }
}

// sea-orm's messages repeat their sources, so this is the end of the chain.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Cause {}

/// For `map_err`: the query did `action` on `subject`.
pub(crate) fn failed(action: &'static str, subject: impl fmt::Display) -> impl FnOnce(DbErr) -> Error {
    move |error| Error::Query { action, subject: subject.to_string(), source: Cause(error) }
}
