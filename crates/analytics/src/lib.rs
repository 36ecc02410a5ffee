//! Log lines and samples of sandboxes, and usages of teams.
//!
//! Nodes write lines and samples; the control role reads them. Usages are written and read by the control role.
//!
//! ```text
//!   node ──▶ Logs::append ────▶ intake: times, lengths ──▶ backend ◀── Logs::query ◀── control role
//!     └────▶ Samples::record ─▶ intake: times, numbers ──▶    │    ◀── Samples::range, latest ────────┤
//!                                                             │    ◀── Usages::record_usages, usages ─┘
//!                embedded: one SQLite file ───────────────────┘
//!                  schema    its tables              write   appending lines
//!                  read      windows of lines        space   enforcing bounds, shrinking the file
//!                  samples   and usages: recording, windows of time, merging with age
//! ```
//!
//! * **The host sets the source.** A [`Source`] is written by the node that reads a sandbox's output; nothing in a line
//!   can change it, and every query names the team whose lines it may return.
//! * **The content is hostile.** Texts may contain any characters, including zero bytes and escape sequences. They are
//!   stored unchanged, up to the bounds of [`LogLine`], and must be escaped where they are displayed. An implausible
//!   time is replaced by the time of arrival.
//! * **Everything is bounded**: lines by length, sandboxes by bytes, the file as a whole, all rows by age, replies by
//!   lines and bytes. The oldest lines of the team with the most bytes are deleted first. Samples are merged with age,
//!   into averages over longer and longer steps.
//! * **Losing lines is allowed, hiding a loss is not.** An append that failed returns an error. A power failure may
//!   lose lines of the last moments, but never makes the other lines unreadable.
//!
//! Backends are behind the ports [`Logs`], [`Samples`] and [`Usages`]; [`Embedded`] is the only one so far.

#![forbid(unsafe_code)]

mod embedded;
mod error;
mod intake;
mod line;
mod query;
mod sample;

use std::collections::BTreeMap;

use async_trait::async_trait;
use hearth_types::{SandboxId, TeamId};
use jiff::Timestamp;

pub use embedded::{BYTES_MIN, Config, Embedded, RETENTION, SANDBOX_BYTES_MIN};
pub use error::{Cause, Error, OpenError};
pub use line::{
    CUT_MARK, FIELD_NAME_BYTES_MAX, FIELDS_BYTES_MAX, FIELDS_MAX, LINE_BYTES_MAX, LOGGER_BYTES_MAX, Level, LogLine,
    MESSAGE_BYTES_MAX, Source, StoredLine, UnknownLevel,
};
pub use query::{Direction, QUERY_BYTES_MAX, QUERY_LINES_MAX, Query};
pub use sample::{CPUS_MAX, SAMPLE_BYTES_MAX, SAMPLE_INTERVAL, Sample, SampleQuery, Usage, step_of};

/// Storage of log lines. A port: every backend passes the suite in `tests/conformance.rs`.
#[async_trait]
pub trait Logs: Send + Sync {
    /// Stores lines of one sandbox, in this order, each truncated to its bounds.
    ///
    /// Callers collect lines and append them together: every call writes to the disk. It never blocks the runtime, and
    /// returns within some seconds even if the disk does not respond. Cancel safe: the first lines may have been
    /// stored.
    ///
    /// # Errors
    /// [`Error::Append`]: not all lines were stored. The first lines may have been, so another append could duplicate
    /// them.
    async fn append(&self, source: &Source, lines: Vec<LogLine>) -> Result<(), Error>;

    /// Returns lines of a sandbox, of all its executions. Cancel safe.
    ///
    /// The result is empty for a sandbox without output, an unknown sandbox, or one of another team.
    ///
    /// # Errors
    /// [`Error::Query`].
    async fn query(&self, team_id: TeamId, sandbox_id: &SandboxId, query: &Query) -> Result<Vec<StoredLine>, Error>;
}

/// Storage of samples of sandboxes. A port: every backend passes the suite in `tests/conformance.rs`.
#[async_trait]
pub trait Samples: Send + Sync {
    /// Stores a sample of a sandbox, with its values limited to their bounds.
    ///
    /// Callers record one about every [`SAMPLE_INTERVAL`]. It never blocks the runtime, and returns within some seconds
    /// even if the disk does not respond. Cancel safe: the sample was stored or not.
    ///
    /// # Errors
    /// [`Error::RecordSample`].
    async fn record(&self, team_id: TeamId, sandbox_id: &SandboxId, sample: Sample) -> Result<(), Error>;

    /// Returns samples of a sandbox, of all its executions, oldest first. Cancel safe.
    ///
    /// The result is empty for a sandbox that was never sampled or that belongs to another team.
    ///
    /// # Errors
    /// [`Error::ReadSamples`].
    async fn range(&self, team_id: TeamId, sandbox_id: &SandboxId, query: &SampleQuery) -> Result<Vec<Sample>, Error>;

    /// Returns the newest sample of each of these sandboxes that has one. Cancel safe.
    ///
    /// # Errors
    /// [`Error::ReadSamples`].
    async fn latest(&self, team_id: TeamId, sandbox_ids: &[SandboxId]) -> Result<BTreeMap<SandboxId, Sample>, Error>;
}

/// Storage of usages of teams. A port: every backend passes the suite in `tests/conformance.rs`.
#[async_trait]
pub trait Usages: Send + Sync {
    /// Stores the usages of teams during the last span of time. Cancel safe: all were stored, or none.
    ///
    /// # Errors
    /// [`Error::RecordUsage`].
    async fn record_usages(&self, usages: Vec<(TeamId, Usage)>) -> Result<(), Error>;

    /// Returns a team's usages at `from` or later and before `until`, oldest first, one for each `step` of the clock.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::ReadUsage`].
    async fn usages(
        &self,
        team_id: TeamId,
        from: Timestamp,
        until: Timestamp,
        step: std::time::Duration,
    ) -> Result<Vec<Usage>, Error>;
}
