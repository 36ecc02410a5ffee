//! Which lines to read.

use jiff::Timestamp;

use crate::line::{Level, LogLine};

/// Most lines of an answer: what the public interface allows.
pub const QUERY_LINES_MAX: u32 = 1000;
/// An answer ends with the line that brings its texts to so many bytes, however many lines were asked for. Hostile text
/// grows more than tenfold when it is escaped, twice, for JSON in JSON.
pub const QUERY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// From which end of a window lines are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Forward,
    /// Newest first.
    Backward,
}

/// A window of time and which lines of it. Lines of the same microsecond follow each other as they were appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Said at this time or later.
    pub from: Option<Timestamp>,
    /// Said before this time.
    pub until: Option<Timestamp>,
    /// From which end.
    pub direction: Direction,
    /// At most so many, and at most [`QUERY_LINES_MAX`].
    pub limit: u32,
    /// Of this level or a greater one.
    pub level_min: Option<Level>,
    /// With this text in the message or the value of a field, upper and lower case alike.
    pub search: Option<String>,
}

/// A text to look for.
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
