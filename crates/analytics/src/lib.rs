//! What sandboxes tell about themselves, log lines and samples of what they use, kept by nodes and read by the control role;
//! and what teams use, kept and read by the control role.
//!
//! ```text
//!   node ──▶ Logs::append ──▶ intake: times, lengths ──▶ backend ◀── Logs::query ◀── control role
//!     └────▶ Samples::keep ─▶ intake: times, numbers ──▶    │    ◀── Samples::range, latest ┤
//!                                                           │    ◀── Usages::keep, range ───┘
//!              embedded: one SQLite file ───────────────────┘
//!                schema    its tables              write   appending lines
//!                read      windows of lines        space   what has to go, and giving space back
//!                samples   and usages: keeping, windows of time, coarser with age
//! ```
//!
//! * **Who said it is the host's word.** A [`Source`] comes from the node that reads a sandbox's output; nothing in a
//!   line can change it, and every query names the team whose lines it may see.
//! * **What is said is hostile.** Texts may hold any characters, also zero bytes and escape sequences: they are kept as
//!   they are, up to the bounds of [`LogLine`], and whoever shows them has to escape them for the place where they
//!   appear. A time that cannot be true is replaced by that of arrival.
//! * **Everything is bounded**: lines by length, sandboxes by bytes, the file as a whole, everything by age, answers by lines
//!   and bytes. The oldest go first, of the team that has most. Samples become fewer with age: averages over longer and longer steps.
//! * **Losing lines is allowed, lying about them is not.** An append that failed says so; a power cut may take what was
//!   appended in the last moments, never what makes the rest readable.
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
    MESSAGE_BYTES_MAX, Source, Stored, UnknownLevel,
};
pub use query::{Direction, QUERY_BYTES_MAX, QUERY_LINES_MAX, Query};
pub use sample::{CPUS_MAX, SAMPLE_BYTES_MAX, SAMPLE_INTERVAL, Sample, SampleQuery, Usage, step_of};

/// Where log lines are kept. A port: every backend passes the suite in `tests/conformance.rs`.
#[async_trait]
pub trait Logs: Send + Sync {
    /// Keeps lines of one sandbox, in this order, each cut to its bounds. Callers collect lines and append them together:
    /// every call is a write to the disk. Never blocks the runtime, and ends within some seconds also if the disk does not
    /// answer. Cancel safe: some of the first lines may have been kept.
    ///
    /// # Errors
    /// [`Error::Append`]: not all lines were kept; some of the first may have been, so appending again could double
    /// them.
    async fn append(&self, source: &Source, lines: Vec<LogLine>) -> Result<(), Error>;

    /// Lines of a sandbox, of all its executions. A sandbox that said nothing, or never was, or is another team's has
    /// none. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Query`].
    async fn query(&self, team_id: TeamId, sandbox_id: &SandboxId, query: &Query) -> Result<Vec<Stored>, Error>;
}

/// Where samples of sandboxes are kept. A port: every backend passes the suite in `tests/conformance.rs`.
#[async_trait]
pub trait Samples: Send + Sync {
    /// Keeps a sample of a sandbox, one about every [`SAMPLE_INTERVAL`]. What it tells is cut to its bounds. Never blocks
    /// the runtime, and ends within some seconds also if the disk does not answer. Cancel safe: it was kept or not.
    ///
    /// # Errors
    /// [`Error::KeepSample`].
    async fn keep(&self, team_id: TeamId, sandbox_id: &SandboxId, sample: Sample) -> Result<(), Error>;

    /// Samples of a sandbox, of all its executions, oldest first. One that was never sampled, or is another team's, has
    /// none. Cancel safe.
    ///
    /// # Errors
    /// [`Error::ReadSamples`].
    async fn range(&self, team_id: TeamId, sandbox_id: &SandboxId, query: &SampleQuery) -> Result<Vec<Sample>, Error>;

    /// The newest sample of each of these sandboxes that has one. Cancel safe.
    ///
    /// # Errors
    /// [`Error::ReadSamples`].
    async fn latest(&self, team_id: TeamId, sandbox_ids: &[SandboxId]) -> Result<BTreeMap<SandboxId, Sample>, Error>;
}

/// Where it is kept how many sandboxes teams had. A port: every backend passes the suite in `tests/conformance.rs`.
#[async_trait]
pub trait Usages: Send + Sync {
    /// Keeps what teams used during the last span of time. Cancel safe: all of it was kept, or nothing.
    ///
    /// # Errors
    /// [`Error::KeepUsage`].
    async fn keep_usages(&self, usages: Vec<(TeamId, Usage)>) -> Result<(), Error>;

    /// What a team used from a time on and before another, oldest first, one for each `step` of the clock. Cancel safe.
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
