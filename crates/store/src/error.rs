//! Why the store could not answer.

use std::error::Error as StdError;
use std::fmt;

use sea_orm::sqlx::postgres::PgDatabaseError;
use sea_orm::{DbErr, RuntimeErr};

/// Low byte of a SQLite result code: another process or connection writes (<https://www.sqlite.org/rescode.html>).
const SQLITE_BUSY: u32 = 5;
/// The same, within one shared cache.
const SQLITE_LOCKED: u32 = 6;
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

    /// Whether the change may have been made although the call failed. Read again before you decide.
    #[must_use]
    pub fn is_effect_unknown(&self) -> bool {
        // A busy database refuses a commit before it begins it.
        matches!(self, Self::Commit { source, .. } if !source.is_busy())
    }
}

/// What the database said. Its text is for logs, not for clients.
#[derive(Debug)]
pub struct Cause(DbErr);

impl Cause {
    pub(crate) fn is_busy(&self) -> bool {
        match &self.0 {
            DbErr::ConnectionAcquire(_) => true,
            DbErr::Conn(error) | DbErr::Exec(error) | DbErr::Query(error) => is_busy(error),
            _ => false,
        }
    }
}

fn is_busy(error: &RuntimeErr) -> bool {
    let RuntimeErr::SqlxError(error) = error else { return false };
    let Some(error) = error.as_database_error() else { return false };
    if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        return POSTGRES_BUSY.contains(&error.code());
    }
    let code = error.code().and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| matches!(code & 0xff, SQLITE_BUSY | SQLITE_LOCKED))
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
