//! Errors of storing and reading lines, samples and usages.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hearth_types::{SandboxId, TeamId};
use sea_orm::sqlx;

/// Primary result code of SQLite: another process or connection writes (<https://www.sqlite.org/rescode.html>).
const SQLITE_BUSY: u32 = 5;
/// Same as `SQLITE_BUSY`, within one shared cache.
const SQLITE_LOCKED: u32 = 6;
/// The file cannot grow: the disk, or SQLite's own page limit, is full.
const SQLITE_FULL: u32 = 13;
/// The index of the write-ahead log cannot grow (`SQLITE_IOERR_SHMSIZE`).
const SQLITE_INDEX_FULL: u32 = 4874;

/// Reason why the embedded backend could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configured bounds are too small or too large.
    #[error("invalid bounds for log lines and samples: {rule}")]
    Bounds {
        /// The rule that the bounds violate.
        rule: &'static str,
    },
    /// The file could not be created with a private mode.
    #[error("creating the file of log lines and samples `{}`", path.display())]
    CreateFile { path: PathBuf, source: std::io::Error },
    /// A newer version of Hearth wrote the file; this version would misread it.
    #[error(
        "the file of log lines and samples `{}` was written by a newer version of Hearth: run that version, or remove the file",
        path.display()
    )]
    Newer { path: PathBuf },
    /// The file could not be opened or brought up to date.
    #[error(
        "opening the file of log lines and samples `{}`: if it is damaged, remove it: it contains nothing else",
        path.display()
    )]
    Open { path: PathBuf, source: Cause },
}

/// Reason why lines, samples or usages could not be stored or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not all lines were stored.
    #[error("storing {lines} log lines of sandbox {sandbox_id}")]
    Append {
        sandbox_id: SandboxId,
        /// Number of lines in the call.
        lines: usize,
        source: Cause,
    },
    /// Lines could not be read.
    #[error("reading log lines of sandbox {sandbox_id}")]
    Query { sandbox_id: SandboxId, source: Cause },
    /// A sample was not stored.
    #[error("recording a sample of sandbox {sandbox_id}")]
    RecordSample { sandbox_id: SandboxId, source: Cause },
    /// Samples could not be read.
    #[error("reading samples of sandboxes")]
    ReadSamples { source: Cause },
    /// Usages were not stored.
    #[error("recording usages of {teams} teams")]
    RecordUsage {
        /// Number of teams in the call.
        teams: usize,
        source: Cause,
    },
    /// Usages of a team could not be read.
    #[error("reading usages of team {team_id}")]
    ReadUsage { team_id: TeamId, source: Cause },
    /// Old rows could not be deleted.
    #[error("deleting old log lines and samples")]
    Tidy { source: Cause },
}

impl Error {
    /// Returns `true` if the same call may succeed a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.cause().is_retryable()
    }

    /// Returns `true` if the disk is full. The same call succeeds once there is space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.cause().sqlite_code(), Some(SQLITE_FULL | SQLITE_INDEX_FULL))
    }

    fn cause(&self) -> &Cause {
        let (Self::Append { source, .. }
        | Self::Query { source, .. }
        | Self::RecordSample { source, .. }
        | Self::ReadSamples { source }
        | Self::RecordUsage { source, .. }
        | Self::ReadUsage { source, .. }
        | Self::Tidy { source }) = self;
        source
    }
}

/// Error reported by the backend. Its text is for logs, not for clients.
#[derive(Debug)]
pub struct Cause(Reason);

#[derive(Debug)]
enum Reason {
    Database(sqlx::Error),
    /// A row contains a value that no version of Hearth wrote.
    Damaged(&'static str, Box<dyn StdError + Send + Sync>),
    TooSlow(Duration),
    Other(Box<dyn StdError + Send + Sync>),
}

impl Cause {
    /// Wraps an error of a backend outside of this crate. The same call would fail again.
    #[must_use]
    pub fn new(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(Reason::Other(source.into()))
    }

    pub(crate) fn damaged(column: &'static str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(Reason::Damaged(column, source.into()))
    }

    pub(crate) fn too_slow(patience: Duration) -> Self {
        Self(Reason::TooSlow(patience))
    }

    fn is_retryable(&self) -> bool {
        match &self.0 {
            Reason::TooSlow(_) | Reason::Database(sqlx::Error::PoolTimedOut) => true,
            Reason::Damaged(..) | Reason::Other(_) => false,
            Reason::Database(_) => {
                self.sqlite_code().is_some_and(|code| matches!(code & 0xff, SQLITE_BUSY | SQLITE_LOCKED))
            }
        }
    }

    /// SQLite's extended result code.
    fn sqlite_code(&self) -> Option<u32> {
        let Reason::Database(error) = &self.0 else { return None };
        error.as_database_error()?.code()?.parse().ok()
    }
}

impl From<sqlx::Error> for Cause {
    fn from(error: sqlx::Error) -> Self {
        Self(Reason::Database(error))
    }
}

// sqlx's messages repeat their sources, so the chain stops here.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Database(error) => error.fmt(f),
            Reason::Other(error) => error.fmt(f),
            Reason::Damaged(column, source) => write!(f, "a row has an unreadable `{column}`: {source}"),
            Reason::TooSlow(patience) => write!(f, "it took longer than {} s", patience.as_secs()),
        }
    }
}

impl StdError for Cause {}
