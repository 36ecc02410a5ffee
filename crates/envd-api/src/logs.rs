//! The guest's log as a stream of lines. All of it is untrusted: a guest may send anything.

use std::collections::BTreeMap;
use std::fmt;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::bounded::GuestBody;
use crate::client::{Client, Error, expect, hyper_error};

/// Longest line that is read, in bytes. The daemon's messages have up to 8 KiB, in JSON up to six times as long.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Limit of a line's fields. The daemon sends at most ten.
///
/// A line of the maximum length could have ten thousand, each of which takes many times its text in memory.
const FIELDS_MAX: usize = 64;
/// Cost of a line in addition to its bytes: parsing, a row, and its place in an index.
pub const LINE_COST: usize = 512;
/// Approximate memory of a line and of a field, in bytes, in addition to their texts.
const LINE_MEMORY: usize = 128;
const FIELD_MEMORY: usize = 96;
/// Cost of each received piece in addition to its bytes.
const PIECE_COST: usize = 64;

/// A line of a guest's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestLine {
    /// Number of the line. Numbers have no gaps, unless lines were lost.
    pub seq: u64,
    /// Time by the guest's clock; `None` if the line has none.
    pub at: Option<jiff::Timestamp>,
    /// `debug`, `info`, `warn`, `error`, or any other text that the guest sends.
    pub level: String,
    /// Component of the guest that logged the line.
    pub logger: String,
    /// Text of the line.
    pub message: String,
    /// Further members of the line: texts unchanged, other values as JSON.
    pub fields: BTreeMap<String, String>,
}

/// Size of a batch, or its limit. Lines beyond the limit remain unparsed, which takes less memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    /// Lines, including invalid ones.
    pub lines: usize,
    /// Approximate memory of the lines in bytes; the last line may exceed the limit.
    pub bytes: usize,
}

impl BatchSize {
    /// Subtracts a used size from a limit; the result is at least zero.
    #[must_use]
    pub fn saturating_sub(self, used: Self) -> Self {
        Self { lines: self.lines.saturating_sub(used.lines), bytes: self.bytes.saturating_sub(used.bytes) }
    }

    /// Returns true if the limit permits no further line.
    #[must_use]
    pub fn is_exhausted(self) -> bool {
        self.lines == 0 || self.bytes == 0
    }
}

/// Lines that were parsed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The valid lines.
    pub lines: Vec<GuestLine>,
    /// Size of all parsed lines, including invalid ones.
    pub used: BatchSize,
}

/// A guest's log, streamed as lines are written.
#[derive(Debug)]
pub struct LogStream {
    body: GuestBody,
    unread: Unread,
    cost: usize,
}

/// Unparsed text: at most one piece of the body and an incomplete line.
#[derive(Debug, Default)]
struct Unread {
    text: BytesMut,
    /// Length of the prefix that is known to contain no line break.
    scanned: usize,
}

impl Client {
    /// Streams the lines after number `after`, including future ones. The guest may drop earlier lines.
    ///
    /// # Errors
    /// Those of every call; status 401 from a restarted daemon that has no identity.
    pub async fn logs(&self, after: u64) -> Result<LogStream, Error> {
        let path = format!("/logs?after={after}");
        let response = self.send(Method::GET, &path, "application/json", Bytes::new()).await?;
        let response = expect(response, StatusCode::OK).await?;
        Ok(LogStream { body: response.into_body(), unread: Unread::default(), cost: 0 })
    }
}

impl LogStream {
    /// Waits for more text and returns the complete lines, possibly none valid. Cancel safe.
    ///
    /// Returns `None` once the guest has closed the stream. Invalid lines are skipped, and count like valid ones.
    ///
    /// # Errors
    /// [`Error::Transport`] if the connection breaks, [`Error::Command`] for a line beyond the limit.
    pub async fn next(&mut self, limit: BatchSize) -> Result<Option<Batch>, Error> {
        loop {
            let batch = self.unread.read(limit);
            self.cost = self.cost.saturating_add(batch.used.lines.saturating_mul(LINE_COST));
            if batch.used.lines > 0 {
                return Ok(Some(batch));
            }
            if self.unread.text.len() > LINE_BYTES_MAX {
                return Err(Error::Command("the guest's log has a line that is too long".to_owned()));
            }
            // One read from the socket may return thousands of pieces, and processing them never waits.
            tokio::task::coop::consume_budget().await;
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            self.cost = self.cost.saturating_add(PIECE_COST);
            let Ok(data) = frame.map_err(hyper_error)?.into_data() else { continue };
            self.cost = self.cost.saturating_add(data.len());
            self.unread.text.extend_from_slice(&data);
        }
    }

    /// Returns and resets the cost of the text read: its bytes, and a fixed cost per line and per piece.
    pub fn take_cost(&mut self) -> usize {
        std::mem::take(&mut self.cost)
    }
}

impl Unread {
    fn read(&mut self, limit: BatchSize) -> Batch {
        let mut batch = Batch { lines: Vec::new(), used: BatchSize { lines: 0, bytes: 0 } };
        while !limit.saturating_sub(batch.used).is_exhausted() {
            let Some(text) = self.take_line() else { break };
            batch.used.lines += 1;
            batch.used.bytes += text.len();
            let parsed = Some(&text).filter(|text| text.len() <= LINE_BYTES_MAX);
            if let Some(Parsed(Some(line))) = parsed.and_then(|text| serde_json::from_slice(text).ok()) {
                batch.used.bytes += LINE_MEMORY + line.fields.len() * FIELD_MEMORY;
                batch.lines.push(line);
            }
        }
        batch
    }

    /// Takes the next complete line, with its line break.
    fn take_line(&mut self) -> Option<BytesMut> {
        match self.text.iter().skip(self.scanned).position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = self.text.split_to(self.scanned + at + 1);
                self.scanned = 0;
                Some(line)
            }
            None => {
                self.scanned = self.text.len();
                None
            }
        }
    }
}

/// A line, if it has a number.
struct Parsed(Option<GuestLine>);

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LineVisitor)
    }
}

struct LineVisitor;

impl<'de> Visitor<'de> for LineVisitor {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a log line")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Parsed, A::Error> {
        let mut seq = None;
        let mut line = GuestLine {
            seq: 0,
            at: None,
            level: String::new(),
            logger: String::new(),
            message: String::new(),
            fields: BTreeMap::new(),
        };
        while let Some(name) = members.next_key::<String>()? {
            match name.as_str() {
                "seq" => seq = members.next_value::<Value>()?.as_u64(),
                "level" => line.level = as_text(members.next_value()?),
                "logger" => line.logger = as_text(members.next_value()?),
                "message" => line.message = as_text(members.next_value()?),
                "timestamp" => line.at = as_text(members.next_value()?).parse().ok(),
                _ if line.fields.len() < FIELDS_MAX => {
                    line.fields.insert(name, as_text(members.next_value()?));
                }
                _ => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Parsed(seq.map(|seq| GuestLine { seq, ..line })))
    }
}

fn as_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_lines_are_returned_and_invalid_ones_skipped() {
        let text = "{\"seq\":1,\"level\":\"info\",\"logger\":\"process\",\"message\":\"started\",\"pid\":7,\
                    \"timestamp\":\"2026-01-01T00:00:00.5Z\",\"event_type\":\"process_start\"}\nnonsense\n[1]\n\
                    {\"message\":\"no number\"}\n{\"seq\":2,\"message\":{\"a\":1},\"timestamp\":\"never\"}\n{\"seq\":3";
        let mut unread = Unread::default();
        let (mut found, mut count) = (Vec::new(), 0);
        for byte in text.bytes() {
            unread.text.extend_from_slice(&[byte]);
            let read = unread.read(BatchSize { lines: 10, bytes: 1000 });
            count += read.used.lines;
            found.extend(read.lines);
        }
        assert_eq!(count, 5, "invalid lines count too");
        let [first, second] = found.as_slice() else { panic!("two lines: {found:?}") };
        assert_eq!((first.seq, first.level.as_str(), first.message.as_str()), (1, "info", "started"));
        assert_eq!(first.at, Some("2026-01-01T00:00:00.5Z".parse().expect("a time")));
        let fields =
            [("event_type", "process_start"), ("pid", "7")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(first.fields, fields.into());
        assert_eq!((second.seq, second.at, second.message.as_str()), (2, None, "{\"a\":1}"));
        assert_eq!(&unread.text[..], b"{\"seq\":3");
    }

    #[test]
    fn parsing_stops_at_the_limit() {
        let mut unread = Unread::default();
        unread.text.extend_from_slice("{\"seq\":1}\n".repeat(100).as_bytes());
        let mut lengths = Vec::new();
        for limit in [
            BatchSize { lines: 30, bytes: 10_000 },
            BatchSize { lines: 1000, bytes: 2000 },
            BatchSize { lines: 0, bytes: 1 },
        ] {
            lengths.push(unread.read(limit).lines.len());
        }
        assert_eq!(lengths, [30, 15, 0]);
        assert_eq!(unread.read(BatchSize { lines: 1000, bytes: 100_000 }).lines.len(), 55);

        let many: String = (0..5000).map(|number| format!(",\"{number}\":1")).collect();
        unread.text.extend_from_slice(format!("{{\"seq\":1{many}}}\n").as_bytes());
        let read = unread.read(BatchSize { lines: 1000, bytes: 10_000 });
        assert_eq!(read.lines.iter().map(|line| line.fields.len()).collect::<Vec<_>>(), [FIELDS_MAX]);
    }
}
