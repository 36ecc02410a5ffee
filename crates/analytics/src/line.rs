//! A log line, and who said it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use hearth_types::{ExecutionId, SandboxId, TeamId, TemplateId};
use jiff::Timestamp;

/// Most bytes of a message that are kept. Longer than any line of a well-behaved program; a thousand of them still fit
/// into one answer.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of a logger's name that are kept.
pub const LOGGER_BYTES_MAX: usize = 128;
/// Most fields of a line that are kept. The guest daemon has ten at most.
pub const FIELDS_MAX: usize = 32;
/// A field with a longer name is left out: half a name would be another field.
pub const FIELD_NAME_BYTES_MAX: usize = 128;
/// Most bytes of all names and values of a line's fields together that are kept.
pub const FIELDS_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of a line that are kept: the sum of the above.
pub const LINE_BYTES_MAX: usize = MESSAGE_BYTES_MAX + LOGGER_BYTES_MAX + FIELDS_BYTES_MAX;
/// Ends every text that was cut. It is within the bounds.
pub const CUT_MARK: &str = "…";

/// How much a line matters. Ordered: the more, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// For those who look for a mistake.
    Debug,
    /// A change of state.
    Info,
    /// Odd, but it went on.
    Warn,
    /// Somebody has to look.
    Error,
}

impl Level {
    /// All, by how much they matter.
    pub const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// The word.
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

/// A text is no level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a level is one of `debug`, `info`, `warn` and `error`")]
pub struct UnknownLevel;

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        Self::ALL.into_iter().find(|level| level.as_str() == text).ok_or(UnknownLevel)
    }
}

/// What a guest said. All of it is the guest's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When, by the guest's clock; kept in microseconds.
    pub at: Timestamp,
    /// How much it matters.
    pub level: Level,
    /// Which part of the guest said it, such as `process`.
    pub logger: String,
    /// What it said.
    pub message: String,
    /// The circumstances.
    pub fields: BTreeMap<String, String>,
}

impl LogLine {
    /// Bytes of its texts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let fields: usize = self.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.message.len() + self.logger.len() + fields
    }
}

/// Who said a line. Set by the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Whose sandbox.
    pub team_id: TeamId,
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// What it was made from, if the node knows.
    pub template_id: Option<TemplateId>,
    /// Which of its runs.
    pub execution_id: ExecutionId,
}

/// A line as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Who said it.
    pub source: Source,
    /// What was said, within the bounds.
    pub line: LogLine,
    /// Whether something of it is missing because of them.
    pub is_cut: bool,
}
