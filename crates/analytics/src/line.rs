//! Log lines and their sources.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use hearth_types::{ExecutionId, SandboxId, TeamId, TemplateId};
use jiff::Timestamp;

/// Maximum stored bytes of a message.
///
/// Lines of ordinary programs are shorter, and a reply can contain 256 messages of this length.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Maximum stored bytes of a logger's name.
pub const LOGGER_BYTES_MAX: usize = 128;
/// Maximum stored fields of a line. The guest daemon has ten at most.
pub const FIELDS_MAX: usize = 32;
/// Maximum bytes of a field's name. A field with a longer one is dropped: a truncated name would be another field.
pub const FIELD_NAME_BYTES_MAX: usize = 128;
/// Maximum stored bytes of all names and values of a line's fields together.
pub const FIELDS_BYTES_MAX: usize = 8 * 1024;
/// Maximum stored bytes of a line: the sum of the above.
pub const LINE_BYTES_MAX: usize = MESSAGE_BYTES_MAX + LOGGER_BYTES_MAX + FIELDS_BYTES_MAX;
/// Mark at the end of every truncated text. It counts towards the text's bound.
pub const CUT_MARK: &str = "…";

/// Severity of a line. Ordered from least to most severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Details for debugging.
    Debug,
    /// A change of state.
    Info,
    /// Unexpected, but the program continues.
    Warn,
    /// A person should check.
    Error,
}

impl Level {
    /// All levels, from least to most severe.
    pub const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// Returns the level's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a level is one of `debug`, `info`, `warn` and `error`")]
pub struct UnknownLevel;

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        Self::ALL.into_iter().find(|level| level.as_str() == text).ok_or(UnknownLevel)
    }
}

/// A line of output. All values are the guest's and untrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Time by the guest's clock; stored in microseconds.
    pub at: Timestamp,
    pub level: Level,
    /// The part of the guest that wrote the line, such as `process`.
    pub logger: String,
    pub message: String,
    /// Structured details.
    pub fields: BTreeMap<String, String>,
}

impl LogLine {
    /// Returns the bytes of all texts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let fields: usize = self.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.message.len() + self.logger.len() + fields
    }
}

/// Origin of a line. Set by the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The sandbox's owner.
    pub team_id: TeamId,
    pub sandbox_id: SandboxId,
    /// The sandbox's template, if the node knows it.
    pub template_id: Option<TemplateId>,
    /// The run of the sandbox.
    pub execution_id: ExecutionId,
}

/// A line as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLine {
    pub source: Source,
    /// The line, truncated to the bounds.
    pub line: LogLine,
    /// `true` if texts were truncated or fields dropped.
    pub is_cut: bool,
}
