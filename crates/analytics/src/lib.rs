//! What sandboxes tell about themselves: log lines so far, appended by nodes and read by the control role.
//!
//! ```text
//!   node ──▶ Logs::append ──▶ intake: times, lengths ──▶ backend ◀── Logs::query ◀── control role
//!                                                           │
//!              embedded: one SQLite file ───────────────────┘
//!                schema    its tables              write   appending
//!                read      windows of lines        space   what has to go, and giving space back
//! ```
//!
//! * **Who said it is the host's word.** A [`Source`] comes from the node that reads a sandbox's output; nothing in a
//!   line can change it, and every query names the team whose lines it may see.
//! * **What is said is hostile.** Texts may hold any characters, also zero bytes and escape sequences: they are kept as
//!   they are, up to the bounds of [`LogLine`], and whoever shows them has to escape them for the place where they
//!   appear. A time that cannot be true is replaced by that of arrival.
//! * **Everything is bounded**: lines by length, sandboxes by bytes, the file as a whole, lines by age, answers by lines
//!   and bytes. The oldest go first.
//! * **Losing lines is allowed, lying about them is not.** An append that failed says so; a power cut may take what was
//!   appended in the last moments, never what makes the rest readable.
//!
//! Backends are behind the port [`Logs`]; [`Embedded`] is the only one so far.

#![forbid(unsafe_code)]

mod embedded;
mod error;
mod intake;
mod line;
mod query;

use async_trait::async_trait;
use hearth_types::{SandboxId, TeamId};

pub use embedded::{BYTES_MIN, Config, Embedded, RETENTION, SANDBOX_BYTES_MIN};
pub use error::{Cause, Error, OpenError};
pub use line::{
    CUT_MARK, FIELD_NAME_BYTES_MAX, FIELDS_BYTES_MAX, FIELDS_MAX, LINE_BYTES_MAX, LOGGER_BYTES_MAX, Level, LogLine,
    MESSAGE_BYTES_MAX, Source, Stored, UnknownLevel,
};
pub use query::{Direction, QUERY_BYTES_MAX, QUERY_LINES_MAX, Query};

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
