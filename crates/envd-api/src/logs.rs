//! What a guest says of itself, as a stream of lines. All of it is the guest's word: anything may come.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use crate::bounded::GuestBody;
use crate::client::{Client, Error, expect, hyper_error};

/// Longest line that is read. The daemon's have a message of 8 KiB, in JSON at most six times as long, and little else.
const LINE_BYTES_MAX: usize = 64 * 1024;

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

/// Lines as they come.
#[derive(Debug)]
pub struct LogStream {
    body: GuestBody,
    buffer: BytesMut,
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
        Ok(LogStream { body: response.into_body(), buffer: BytesMut::new() })
    }
}

impl LogStream {
    /// Waits for more and returns the lines that are whole by then; `None` once the guest has closed the stream. What is not a
    /// line is passed over. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection breaks, [`Error::Command`] for a line without end.
    pub async fn next(&mut self) -> Result<Option<Vec<GuestLine>>, Error> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let Ok(data) = frame.map_err(hyper_error)?.into_data() else { continue };
            self.buffer.extend_from_slice(&data);
            let lines = whole_lines(&mut self.buffer);
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(Error::Command("the guest's log has a line that is too long".to_owned()));
            }
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }
}

/// Takes the lines that have ended out of the buffer.
fn whole_lines(buffer: &mut BytesMut) -> Vec<GuestLine> {
    let Some(end) = buffer.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
    let whole = buffer.split_to(end + 1);
    let lines = whole[..].split(|byte| *byte == b'\n').filter(|line| line.len() <= LINE_BYTES_MAX);
    lines.filter_map(|line| parse(serde_json::from_slice(line).ok()?)).collect()
}

/// A line, if it has a number.
fn parse(mut line: Map<String, Value>) -> Option<GuestLine> {
    let mut text = |name: &str| line.remove(name).map(as_text).unwrap_or_default();
    let (level, logger, message) = (text("level"), text("logger"), text("message"));
    let at = text("timestamp").parse().ok();
    let seq = line.remove("seq")?.as_u64()?;
    let fields = line.into_iter().map(|(name, value)| (name, as_text(value))).collect();
    Some(GuestLine { seq, at, level, logger, message, fields })
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
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in text.bytes() {
            buffer.extend_from_slice(&[byte]);
            found.extend(whole_lines(&mut buffer));
        }
        let [first, second] = found.as_slice() else { panic!("two lines: {found:?}") };
        assert_eq!((first.seq, first.level.as_str(), first.message.as_str()), (1, "info", "started"));
        assert_eq!(first.at, Some("2026-01-01T00:00:00.5Z".parse().expect("a time")));
        let fields =
            [("event_type", "process_start"), ("pid", "7")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(first.fields, fields.into());
        assert_eq!((second.seq, second.at, second.message.as_str()), (2, None, "{\"a\":1}"));
        assert_eq!(&buffer[..], b"{\"seq\":3");
    }
}
