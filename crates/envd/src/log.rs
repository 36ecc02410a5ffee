//! Log of the guest's events, stored in memory until the host fetches it.
//!
//! ```text
//! processes, errors ──> ring (bounded, oldest lost first) ──GET /logs, streamed──> host ──> tagged there, stored there
//! ```
//!
//! A line has an event and its time by the guest's clock. The host knows the sandbox, because it connected to this
//! guest. Lines are numbered without gaps, so that a reader detects lost ones. Nothing is written to a disk, and no
//! writer waits for a reader. Input, file contents and tokens are never logged; output of processes is, if the host
//! enables it ([`Log::set_logs_output`]).

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Extract};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use crate::failure::Failure;
use crate::state::State;

/// Limit of stored lines in bytes. Beyond it the oldest are dropped.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Limit of lines already sent, in bytes; they are retained for a host that lost its connection.
const SENT_BYTES_MAX: usize = 64 << 10;
/// Limit of a message in bytes; a truncated one ends in an ellipsis.
const MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Bytes per chunk of the stream.
const CHUNK_BYTES: usize = 32 << 10;

/// Severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// The log of the daemon and its processes.
#[derive(Debug, Default)]
pub(crate) struct Log {
    ring: Mutex<Ring>,
    added: Notify,
    logs_output: AtomicBool,
    is_verbose: bool,
}

/// Stored lines in a single buffer.
///
/// Thousands of small allocations between others would prevent their pages from ever being released.
#[derive(Debug, Default)]
struct Ring {
    text: VecDeque<u8>,
    /// Length of each line in bytes, oldest first.
    lengths: VecDeque<u32>,
    /// Number of the last line, starting with 1. The stored lines have the numbers up to it.
    last: u64,
    /// Number of the last line sent to the host.
    sent: u64,
}

impl Ring {
    /// Returns the number of the oldest stored line; one more than the last number if there is none.
    fn first(&self) -> u64 {
        self.last + 1 - self.lengths.len() as u64
    }

    /// Appends the line with the number [`last`](Self::last).
    fn push(&mut self, line: &[u8]) {
        self.text.extend(line);
        // A line cannot be longer, because messages are bounded.
        self.lengths.push_back(u32::try_from(line.len()).unwrap_or(u32::MAX));
        while self.text.len() > WAITING_BYTES_MAX {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(length) = self.lengths.pop_front() {
            self.text.drain(..(length as usize).min(self.text.len()));
        }
    }

    /// Records that the host received everything up to `number`, and drops lines beyond the limit for sent ones.
    fn mark_sent(&mut self, number: u64) {
        self.sent = self.sent.max(number.min(self.last));
        while self.text.len() > SENT_BYTES_MAX && self.first() <= self.sent {
            self.drop_first();
        }
    }

    /// Returns one chunk of lines after `number`, and the number of the last of them.
    fn after(&self, number: u64) -> Option<(Bytes, u64)> {
        let first = self.first().max(number + 1);
        let known = usize::try_from(first - self.first()).unwrap_or(usize::MAX);
        let mut lengths = self.lengths.iter().map(|length| *length as usize);
        let start: usize = lengths.by_ref().take(known).sum();
        let (mut end, mut last) = (start, first - 1);
        for length in lengths {
            if end > start && end + length - start > CHUNK_BYTES {
                break;
            }
            end += length;
            last += 1;
        }
        (end > start).then(|| (self.text.range(start..end).copied().collect(), last))
    }

    fn clear(&mut self) {
        self.text = VecDeque::new();
        self.lengths = VecDeque::new();
    }
}

impl Log {
    pub(crate) fn new(is_verbose: bool) -> Self {
        Self { is_verbose, ..Self::default() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Every section leaves a valid ring.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a line with additional fields.
    pub(crate) fn write<const N: usize>(
        &self,
        level: Level,
        logger: &'static str,
        message: &str,
        fields: [(&'static str, Value); N],
    ) {
        let mut line: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        line.insert("level".to_owned(), level.name().into());
        line.insert("logger".to_owned(), logger.into());
        line.insert("message".to_owned(), truncate(message).into());
        line.insert("timestamp".to_owned(), format!("{:.9}", jiff::Timestamp::now()).into());
        let mut ring = self.ring();
        ring.last += 1;
        line.insert("seq".to_owned(), ring.last.into());
        let text = format!("{}\n", Value::Object(line));
        ring.push(text.as_bytes());
        drop(ring);
        if self.is_verbose {
            // A closed standard output is no reason to fail.
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
        self.added.notify_waiters();
    }

    pub(crate) fn warn(&self, logger: &'static str, message: impl AsRef<str>) {
        self.write(Level::Warn, logger, message.as_ref(), []);
    }

    pub(crate) fn error(&self, logger: &'static str, message: impl AsRef<str>) {
        self.write(Level::Error, logger, message.as_ref(), []);
    }

    /// Returns true if lines of processes' output are logged.
    pub(crate) fn logs_output(&self) -> bool {
        self.logs_output.load(Ordering::Relaxed)
    }

    pub(crate) fn set_logs_output(&self, enabled: bool) {
        self.logs_output.store(enabled, Ordering::Relaxed);
    }

    /// Drops all lines: their events belong to the sandbox that this one was restored from. Numbering continues.
    pub(crate) fn clear(&self) {
        self.ring().clear();
    }

    /// Waits for lines after a number and returns the next chunk. Cancel safe.
    async fn follow(&self, after: u64) -> (Bytes, u64) {
        loop {
            // Registered before the check, so that a line added in between is not missed.
            let added = self.added.notified();
            let found = self.ring().after(after);
            if let Some(found) = found {
                return found;
            }
            added.await;
        }
    }
}

/// Truncates a message to the limit.
fn truncate(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
    format!("{}…", &message[..end])
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Parameters {
    after: Option<String>,
}

/// `GET /logs?after=N`: an endless stream of the lines after number `N`, one JSON object each.
///
/// The request acknowledges the lines up to `N`. A number that was never assigned belongs to an earlier daemon and
/// counts as 0.
pub(crate) async fn logs(
    Extract(state): Extract<Arc<State>>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(parameters) = query.map_err(|error| Failure::parameter("after", error.body_text()))?;
    let after: u64 = match parameters.after.as_deref() {
        Some(text) => text.parse().map_err(|_| Failure::parameter("after", "not a number"))?,
        None => 0,
    };
    let after = if after > state.log().ring().last { 0 } else { after };
    let lines = futures::stream::unfold((state, after), |(state, after)| async move {
        state.log().ring().mark_sent(after);
        let (chunk, last) = state.log().follow(after).await;
        Some((Ok::<_, std::convert::Infallible>(chunk), (state, last)))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Output of one stream of a process, split into lines of the log.
#[derive(Debug)]
pub(crate) struct OutputLines {
    pid: u32,
    stream: &'static str,
    /// An incomplete line.
    partial: Vec<u8>,
}

impl OutputLines {
    pub(crate) fn new(pid: u32, stream: &'static str) -> Self {
        Self { pid, stream, partial: Vec::new() }
    }

    pub(crate) fn push(&mut self, log: &Log, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MESSAGE_BYTES_MAX.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.flush(log);
            }
        }
    }

    /// Logs the incomplete line, unless it is empty.
    pub(crate) fn flush(&mut self, log: &Log) {
        let line = std::mem::take(&mut self.partial);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        if !text.is_empty() {
            let fields =
                [("event_type", json!("process_output")), ("pid", self.pid.into()), ("stream", self.stream.into())];
            log.write(Level::Info, "process", text, fields);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn numbers(chunk: &Bytes) -> Vec<u64> {
        let lines = std::str::from_utf8(chunk).expect("UTF-8").lines();
        lines
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["seq"].as_u64().expect("a number"))
            .collect()
    }

    #[tokio::test]
    async fn lines_are_returned_in_order_and_once() {
        let log = Log::default();
        assert!(log.follow(0).now_or_never().is_none(), "no line yet");
        log.warn("test", "one");
        log.error("test", "two");
        let (chunk, last) = log.follow(0).await;
        assert_eq!((numbers(&chunk), last), (vec![1, 2], 2));
        let mut waiting = Box::pin(log.follow(last));
        assert!(waiting.as_mut().now_or_never().is_none());
        log.warn("test", "three");
        assert_eq!(numbers(&waiting.await.0), [3]);
    }

    #[tokio::test]
    async fn the_ring_is_bounded_and_drops_the_oldest() {
        let log = Log::default();
        let long = "x".repeat(MESSAGE_BYTES_MAX * 2);
        for _ in 0..WAITING_BYTES_MAX / MESSAGE_BYTES_MAX * 2 {
            log.warn("test", &long);
        }
        assert!(log.ring().text.len() <= WAITING_BYTES_MAX);
        let (chunk, last) = log.follow(0).await;
        assert!(numbers(&chunk)[0] > 1 && chunk.len() <= CHUNK_BYTES, "the first number shows the loss");
        log.ring().mark_sent(last);
        assert_eq!(log.ring().first(), last + 1, "sent lines are dropped");
        log.clear();
        assert!(log.follow(0).now_or_never().is_none());
    }

    #[test]
    fn output_becomes_lines() {
        let log = Log::default();
        let mut output = OutputLines::new(7, "stdout");
        for piece in [&b"hel"[..], b"lo\r\n\nwor", b"ld", b"\xff\n", &[b'y'; MESSAGE_BYTES_MAX * 2], b"\nrest"] {
            output.push(&log, piece);
        }
        output.flush(&log);
        let chunk = log.ring().after(0).expect("lines").0;
        let lines: Vec<Value> =
            chunk.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let messages: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
        assert_eq!((messages[0], messages[1], messages[3]), ("hello", "world\u{fffd}", "rest"));
        assert_eq!(messages[2].len(), MESSAGE_BYTES_MAX);
        assert_eq!((&lines[0]["pid"], &lines[0]["stream"]), (&json!(7), &json!("stdout")));
    }
}
