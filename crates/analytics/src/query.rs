//! Queries for lines.

use jiff::Timestamp;

use crate::line::{Level, LogLine};

/// Maximum lines of a reply: the API's limit.
pub const QUERY_LINES_MAX: u32 = 1000;
/// Bytes of texts after which a reply ends, whatever the requested number of lines.
///
/// The line that reaches them is included. Escaped hostile text, twice for JSON in JSON, grows more than tenfold.
pub const QUERY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Order of reading, and end of the window at which it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Forward,
    /// Newest first.
    Backward,
}

/// Window of time, with filters. Lines of the same microsecond are in the order in which they were appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Only lines at this time or later.
    pub from: Option<Timestamp>,
    /// Only lines before this time.
    pub until: Option<Timestamp>,
    pub direction: Direction,
    /// Maximum number of lines; values above [`QUERY_LINES_MAX`] mean [`QUERY_LINES_MAX`].
    pub limit: u32,
    /// Only lines of this level or a more severe one.
    pub level_min: Option<Level>,
    /// Only lines with this text in the message or the value of a field, ignoring case.
    pub search: Option<String>,
}

/// Lower-case text to search for.
#[derive(Debug)]
pub(crate) struct Needle(String);

impl Needle {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_lowercase())
    }

    pub(crate) fn is_in(&self, line: &LogLine) -> bool {
        let Self(needle) = self;
        [&line.message].into_iter().chain(line.fields.values()).any(|text| text.to_lowercase().contains(needle))
    }
}
