//! Errors of the store.

use std::error::Error as StdError;
use std::fmt;

use sea_orm::sqlx::error::DatabaseError;
use sea_orm::sqlx::postgres::PgDatabaseError;
use sea_orm::sqlx::sqlite::SqliteError;
use sea_orm::{DbErr, RuntimeErr};

/// Primary result code of SQLite: another process or connection writes (<https://www.sqlite.org/rescode.html>).
const SQLITE_BUSY: u32 = 5;
/// Same as `SQLITE_BUSY`, within one shared cache.
const SQLITE_LOCKED: u32 = 6;
/// The file cannot grow: the disk, or SQLite's own page limit, is full.
const SQLITE_FULL: u32 = 13;
/// The index of the write-ahead log cannot grow (`SQLITE_IOERR_SHMSIZE`).
const SQLITE_INDEX_FULL: u32 = 4874;
/// Postgres's code for a full disk.
const POSTGRES_FULL: &str = "53100";
/// Postgres's codes for conditions that may pass soon.
///
/// In order: lock timeout, deadlock, no connections available, server starting
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
const POSTGRES_BUSY: [&str; 4] = ["55P03", "40P01", "53300", "57P03"];

/// Reason why a call to the store failed. Rejections that a caller can act on have their own types, next to the calls.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store cannot open an address of this form.
    #[error("`{url}` is not a supported database address: {rule}")]
    Unsupported {
        /// The address, without credentials.
        url: String,
        /// The form that is expected.
        rule: &'static str,
    },
    /// The database file could not be created with a private mode.
    #[error("creating the database file `{path}`")]
    CreateFile {
        /// Path of the file.
        path: String,
        source: std::io::Error,
    },
    /// The database could not be opened.
    #[error("opening the database `{url}`")]
    Open {
        /// The address, without credentials.
        url: String,
        source: Cause,
    },
    /// Another control role uses the database, and only one is allowed.
    #[error("another Hearth daemon uses the database `{url}`: stop it first, or configure another database")]
    Claimed {
        /// The address, without credentials.
        url: String,
    },
    /// A newer version of Hearth wrote the database; this version would misread it.
    #[error(
        "the database `{url}` was written by a newer version of Hearth (it has `{migration}`): run that version, or \
         restore a copy from before the upgrade"
    )]
    Newer {
        /// The address, without credentials.
        url: String,
        /// The first migration that this version does not know.
        migration: String,
    },
    /// Bringing the tables up to date failed. The database is unchanged.
    #[error("bringing the tables of `{url}` up to date")]
    Migrate {
        /// The address, without credentials.
        url: String,
        source: Cause,
    },
    /// A query failed. Nothing was changed.
    #[error("{action} {subject}")]
    Query {
        /// The attempted action, such as `reading team`.
        action: &'static str,
        /// The object of the action, such as an id.
        subject: String,
        source: Cause,
    },
    /// The commit of a transaction failed: it may or may not have taken effect.
    #[error("committing: {action} {subject}")]
    Commit {
        /// The attempted action, such as `creating team`.
        action: &'static str,
        /// The object of the action, such as an id.
        subject: String,
        source: Cause,
    },
    /// A row contains a value that no version of Hearth wrote.
    #[error("row `{id}` of table `{table}` has an unreadable `{column}`")]
    Damaged {
        table: &'static str,
        /// Primary key of the row.
        id: String,
        column: &'static str,
        /// Reason why the value is invalid.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// Returns `true` if the same call may succeed a little later.
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

    /// Returns `true` if the database's disk is full. The same call succeeds once there is space.
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

    /// Returns `true` if the change may have been made although the call failed. Read the row again before deciding.
    #[must_use]
    pub fn is_effect_unknown(&self) -> bool {
        // A busy database rejects a commit before it begins it. When a commit finds no space, its last frame, which
        // makes it effective, is missing from the write-ahead log.
        matches!(self, Self::Commit { source, .. } if !source.is_busy() && source.sqlite_code() != Some(SQLITE_FULL))
    }
}

/// Error reported by the database. Its text is for logs, not for clients.
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

// sea-orm's messages repeat their sources, so the chain stops here.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Cause {}

/// Returns a function for `map_err` that adds the attempted `action` and its `subject` to a database error.
pub(crate) fn failed(action: &'static str, subject: impl fmt::Display) -> impl FnOnce(DbErr) -> Error {
    move |error| Error::Query { action, subject: subject.to_string(), source: Cause(error) }
}
