//! Why lines, samples or usages could not be kept or read.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hearth_types::{SandboxId, TeamId};
use sea_orm::sqlx;

/// Low byte of a SQLite result code: another process or connection writes (<https://www.sqlite.org/rescode.html>).
const SQLITE_BUSY: u32 = 5;
/// The same, within one shared cache.
const SQLITE_LOCKED: u32 = 6;
/// The file cannot grow: the disk, or the bound that SQLite itself keeps, is full.
const SQLITE_FULL: u32 = 13;
/// The index of the write-ahead log cannot grow (`SQLITE_IOERR_SHMSIZE`).
const SQLITE_INDEX_FULL: u32 = 4874;

/// Why the embedded backend could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configured bounds leave no room to work in.
    #[error("log lines and samples cannot be kept within such bounds: {rule}")]
    Bounds {
        /// What they would have to be.
        rule: &'static str,
    },
    /// The file could not be made private before it was opened.
    #[error("creating the file of log lines and samples `{}`", path.display())]
    CreateFile {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A newer version of Hearth made the file; this one would misread it.
    #[error(
        "the file of log lines and samples `{}` was made by a newer version of Hearth: run that version, or remove the file",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be opened or brought up to date.
    #[error(
        "opening the file of log lines and samples `{}`: if it is damaged, remove it, for it holds nothing else",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: Cause,
    },
}

/// Why lines, samples or usages could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not all lines were kept.
    #[error("keeping {lines} log lines of sandbox {sandbox_id}")]
    Append {
        /// Whose.
        sandbox_id: SandboxId,
        /// How many were to be kept.
        lines: usize,
        /// Why it failed.
        source: Cause,
    },
    /// Lines could not be read.
    #[error("reading log lines of sandbox {sandbox_id}")]
    Query {
        /// Whose.
        sandbox_id: SandboxId,
        /// Why it failed.
        source: Cause,
    },
    /// A sample was not kept.
    #[error("keeping a sample of sandbox {sandbox_id}")]
    KeepSample {
        /// Whose.
        sandbox_id: SandboxId,
        /// Why it failed.
        source: Cause,
    },
    /// Samples could not be read.
    #[error("reading samples of sandboxes")]
    ReadSamples {
        /// Why it failed.
        source: Cause,
    },
    /// What teams used was not kept.
    #[error("keeping what {teams} teams used")]
    KeepUsage {
        /// How many teams.
        teams: usize,
        /// Why it failed.
        source: Cause,
    },
    /// What a team used could not be read.
    #[error("reading what team {team_id} used")]
    ReadUsage {
        /// Whose.
        team_id: TeamId,
        /// Why it failed.
        source: Cause,
    },
    /// What has to go could not be removed.
    #[error("removing old log lines and samples")]
    Tidy {
        /// Why it failed.
        source: Cause,
    },
}

impl Error {
    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.cause().is_retryable()
    }

    /// Returns true if the disk is full. The same call succeeds once there is room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.cause().sqlite_code(), Some(SQLITE_FULL | SQLITE_INDEX_FULL))
    }

    fn cause(&self) -> &Cause {
        let (Self::Append { source, .. }
        | Self::Query { source, .. }
        | Self::KeepSample { source, .. }
        | Self::ReadSamples { source }
        | Self::KeepUsage { source, .. }
        | Self::ReadUsage { source, .. }
        | Self::Tidy { source }) = self;
        source
    }
}

/// What the backend said. Its text is for logs, not for clients.
#[derive(Debug)]
pub struct Cause(Reason);

#[derive(Debug)]
enum Reason {
    Database(sqlx::Error),
    /// A row holds what no version of Hearth wrote.
    Damaged(&'static str, Box<dyn StdError + Send + Sync>),
    TooSlow(Duration),
    Other(Box<dyn StdError + Send + Sync>),
}

impl Cause {
    /// What a backend outside of this crate said. The same call would fail again.
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

// sqlx's messages repeat their sources, so this is the end of the chain.
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
