//! What a guest says of itself, as a stream of lines. All of it is the guest's word: anything may come.

use std::collections::BTreeMap;
use std::fmt;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::bounded::GuestBody;
use crate::client::{Client, Error, expect, hyper_error};

/// Longest line that is read. The daemon's have a message of 8 KiB, in JSON at most six times as long, and little else.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Most fields of a line that are read. The daemon has ten at most; a line of the longest kind could have ten thousand, each of
/// which takes many times its text in memory.
const FIELDS_MAX: usize = 64;
/// What a line costs besides its bytes, whatever is in it: parsing, a row, and its place in an index.
pub const LINE_COST: usize = 512;
/// What a line and a field of it take in memory besides their texts, about.
const LINE_MEMORY: usize = 128;
const FIELD_MEMORY: usize = 96;
/// What each piece costs in which bytes arrive, besides them.
const PIECE_COST: usize = 64;

/// A line of a guest's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestLine {
    /// Its number. Numbers have no gaps, unless lines were lost.
    pub seq: u64,
    /// When, by the guest's clock; `None` if it told no time.
    pub at: Option<jiff::Timestamp>,
    /// `debug`, `info`, `warn`, `error`, or what the guest thinks of.
    pub level: String,
    /// The part of the guest that said it.
    pub logger: String,
    /// What it said.
    pub message: String,
    /// The circumstances: texts as they are, other values as JSON.
    pub fields: BTreeMap<String, String>,
}

/// How much is parsed. Of what is left the text waits, which is smaller than its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Lines, also those that turn out to be none.
    pub lines: usize,
    /// Bytes that they take in memory, about; the last line may exceed them.
    pub bytes: usize,
}

impl Room {
    /// What is left of it.
    #[must_use]
    pub fn without(self, used: Self) -> Self {
        Self { lines: self.lines.saturating_sub(used.lines), bytes: self.bytes.saturating_sub(used.bytes) }
    }

    /// Whether nothing more may be parsed.
    #[must_use]
    pub fn is_used_up(self) -> bool {
        self.lines == 0 || self.bytes == 0
    }
}

/// Lines that were parsed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Those that are lines.
    pub lines: Vec<GuestLine>,
    /// What all of them took.
    pub used: Room,
}

/// Lines as they come.
#[derive(Debug)]
pub struct LogStream {
    body: GuestBody,
    unread: Unread,
    cost: usize,
}

/// Text that is not parsed yet: at most one piece of the body, and the beginning of a line.
#[derive(Debug, Default)]
struct Unread {
    text: BytesMut,
    /// Bytes at its beginning without the end of a line.
    scanned: usize,
}

impl Client {
    /// The lines after number `after`, and those that come. Asking tells the guest that it need not keep the ones before.
    ///
    /// # Errors
    /// Like every call; 401 from a daemon that was started again and knows nobody.
    pub async fn logs(&self, after: u64) -> Result<LogStream, Error> {
        let path = format!("/logs?after={after}");
        let response = self.send(Method::GET, &path, "application/json", Bytes::new()).await?;
        let response = expect(response, StatusCode::OK).await?;
        Ok(LogStream { body: response.into_body(), unread: Unread::default(), cost: 0 })
    }
}

impl LogStream {
    /// Waits for more and returns lines that are whole by then, perhaps none of them; `None` once the guest has closed the
    /// stream. What is not a line is passed over, and costs like one. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection breaks, [`Error::Command`] for a line without end.
    pub async fn next(&mut self, room: Room) -> Result<Option<Batch>, Error> {
        loop {
            let batch = self.unread.read(room);
            self.cost = self.cost.saturating_add(batch.used.lines.saturating_mul(LINE_COST));
            if batch.used.lines > 0 {
                return Ok(Some(batch));
            }
            if self.unread.text.len() > LINE_BYTES_MAX {
                return Err(Error::Command("the guest's log has a line that is too long".to_owned()));
            }
            // One read from the socket may bring thousands of pieces, and none of them waits for anything.
            tokio::task::coop::consume_budget().await;
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            self.cost = self.cost.saturating_add(PIECE_COST);
            let Ok(data) = frame.map_err(hyper_error)?.into_data() else { continue };
            self.cost = self.cost.saturating_add(data.len());
            self.unread.text.extend_from_slice(&data);
        }
    }

    /// What was read since the last call costs: its bytes as they came, and a fixed part for each line and each piece.
    pub fn take_cost(&mut self) -> usize {
        std::mem::take(&mut self.cost)
    }
}

impl Unread {
    fn read(&mut self, room: Room) -> Batch {
        let mut batch = Batch { lines: Vec::new(), used: Room { lines: 0, bytes: 0 } };
        while !room.without(batch.used).is_used_up() {
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

    /// The next line that has ended, with its end.
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
    fn lines_come_when_they_have_ended_and_nonsense_never() {
        let text = "{\"seq\":1,\"level\":\"info\",\"logger\":\"process\",\"message\":\"started\",\"pid\":7,\
                    \"timestamp\":\"2026-01-01T00:00:00.5Z\",\"event_type\":\"process_start\"}\nnonsense\n[1]\n\
                    {\"message\":\"no number\"}\n{\"seq\":2,\"message\":{\"a\":1},\"timestamp\":\"never\"}\n{\"seq\":3";
        let mut unread = Unread::default();
        let (mut found, mut count) = (Vec::new(), 0);
        for byte in text.bytes() {
            unread.text.extend_from_slice(&[byte]);
            let read = unread.read(Room { lines: 10, bytes: 1000 });
            count += read.used.lines;
            found.extend(read.lines);
        }
        assert_eq!(count, 5, "what is no line counts as well");
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
    fn as_much_is_parsed_as_there_is_room_for() {
        let mut unread = Unread::default();
        unread.text.extend_from_slice("{\"seq\":1}\n".repeat(100).as_bytes());
        let mut lengths = Vec::new();
        for room in [Room { lines: 30, bytes: 10_000 }, Room { lines: 1000, bytes: 2000 }, Room { lines: 0, bytes: 1 }]
        {
            lengths.push(unread.read(room).lines.len());
        }
        assert_eq!(lengths, [30, 15, 0]);
        assert_eq!(unread.read(Room { lines: 1000, bytes: 100_000 }).lines.len(), 55);

        let many: String = (0..5000).map(|number| format!(",\"{number}\":1")).collect();
        unread.text.extend_from_slice(format!("{{\"seq\":1{many}}}\n").as_bytes());
        let read = unread.read(Room { lines: 1000, bytes: 10_000 });
        assert_eq!(read.lines.iter().map(|line| line.fields.len()).collect::<Vec<_>>(), [FIELDS_MAX]);
    }
}
