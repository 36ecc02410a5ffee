//! What happened in the guest, kept until the host fetches it.
//!
//! ```text
//! processes, errors ──> ring (bounded, oldest lost first) ──GET /logs, streamed──> host ──> tagged there, stored there
//! ```
//!
//! A line says what happened and when by the guest's clock. Whose it is, the host knows: it asked this guest. Lines are numbered
//! without gaps, so whoever follows sees what was lost. Nothing is written to a disk, and nobody waits for a reader. Input,
//! file contents and tokens are never logged; output of processes is when the host wants it ([`Log::take_output`]).

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

/// Lines that wait for the host, in bytes. Beyond that the oldest go.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Lines that the host has, kept for one that lost its connection.
const SENT_BYTES_MAX: usize = 64 << 10;
/// Longest message; what is cut ends in an ellipsis.
const MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Sent at once.
const CHUNK_BYTES: usize = 32 << 10;

/// How much a line matters.
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

/// The log. Shared by all.
#[derive(Debug, Default)]
pub(crate) struct Log {
    ring: Mutex<Ring>,
    news: Notify,
    takes_output: AtomicBool,
    is_verbose: bool,
}

/// One buffer for all lines: thousands of small allocations between those of others would keep their pages from ever being
/// given back.
#[derive(Debug, Default)]
struct Ring {
    text: VecDeque<u8>,
    /// Bytes of each line, oldest first.
    lengths: VecDeque<u32>,
    /// The number of the last line, from 1. Lines that are there have the numbers up to it.
    last: u64,
    /// The number of the last line that the host was sent.
    sent: u64,
}

impl Ring {
    /// The number of the oldest line that is there, if one is.
    fn first(&self) -> u64 {
        self.last + 1 - self.lengths.len() as u64
    }

    /// Adds the line with the number [`last`](Self::last).
    fn push(&mut self, line: &[u8]) {
        self.text.extend(line);
        // Longer than a message can be made.
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

    /// The host has everything up to `number`.
    fn sent(&mut self, number: u64) {
        self.sent = self.sent.max(number.min(self.last));
        while self.text.len() > SENT_BYTES_MAX && self.first() <= self.sent {
            self.drop_first();
        }
    }

    /// Lines after a number, as many as go at once, and the number of the last of them.
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

    /// Adds a line with fields of its own.
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
        line.insert("message".to_owned(), cut(message).into());
        line.insert("timestamp".to_owned(), format!("{:.9}", jiff::Timestamp::now()).into());
        let mut ring = self.ring();
        ring.last += 1;
        line.insert("seq".to_owned(), ring.last.into());
        let text = format!("{}\n", Value::Object(line));
        ring.push(text.as_bytes());
        drop(ring);
        if self.is_verbose {
            // A closed standard output is not worth failing for.
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
        self.news.notify_waiters();
    }

    pub(crate) fn warn(&self, logger: &'static str, message: impl AsRef<str>) {
        self.write(Level::Warn, logger, message.as_ref(), []);
    }

    pub(crate) fn error(&self, logger: &'static str, message: impl AsRef<str>) {
        self.write(Level::Error, logger, message.as_ref(), []);
    }

    /// Whether lines of processes' output are wanted.
    pub(crate) fn takes_output(&self) -> bool {
        self.takes_output.load(Ordering::Relaxed)
    }

    pub(crate) fn take_output(&self, wanted: bool) {
        self.takes_output.store(wanted, Ordering::Relaxed);
    }

    /// Forgets everything: it happened in the sandbox that this one was copied from. Numbers go on.
    pub(crate) fn clear(&self) {
        self.ring().clear();
    }

    /// The next lines after a number, as soon as there are some. Cancel safe.
    async fn follow(&self, after: u64) -> (Bytes, u64) {
        loop {
            // Before the look, so that a line in between is not missed.
            let news = self.news.notified();
            let found = self.ring().after(after);
            if let Some(found) = found {
                return found;
            }
            news.await;
        }
    }
}

/// A message of bounded length.
fn cut(message: &str) -> String {
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

/// `GET /logs?after=N`: lines after number `N`, one JSON object each, without end. Asking for them tells that those up to `N`
/// have arrived. A number that was never reached is one of an earlier daemon's.
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
        state.log().ring().sent(after);
        let (chunk, last) = state.log().follow(after).await;
        Some((Ok::<_, std::convert::Infallible>(chunk), (state, last)))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Output of one stream of a process, as lines of the log.
#[derive(Debug)]
pub(crate) struct OutputLines {
    pid: u32,
    stream: &'static str,
    /// A line that has not ended yet.
    begun: Vec<u8>,
}

impl OutputLines {
    pub(crate) fn new(pid: u32, stream: &'static str) -> Self {
        Self { pid, stream, begun: Vec::new() }
    }

    pub(crate) fn take(&mut self, log: &Log, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MESSAGE_BYTES_MAX.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.end(log);
            }
        }
    }

    /// What was begun is a line, if it is anything.
    pub(crate) fn end(&mut self, log: &Log) {
        let line = std::mem::take(&mut self.begun);
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
        let lines = std::str::from_utf8(chunk).expect("text").lines();
        lines
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["seq"].as_u64().expect("numbered"))
            .collect()
    }

    #[tokio::test]
    async fn lines_come_in_order_and_once() {
        let log = Log::default();
        assert!(log.follow(0).now_or_never().is_none(), "nothing yet");
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
    async fn the_ring_is_bounded_and_loses_the_oldest() {
        let log = Log::default();
        let long = "x".repeat(MESSAGE_BYTES_MAX * 2);
        for _ in 0..WAITING_BYTES_MAX / MESSAGE_BYTES_MAX * 2 {
            log.warn("test", &long);
        }
        assert!(log.ring().text.len() <= WAITING_BYTES_MAX);
        let (chunk, last) = log.follow(0).await;
        assert!(numbers(&chunk)[0] > 1 && chunk.len() <= CHUNK_BYTES, "a gap tells what was lost");
        log.ring().sent(last);
        assert_eq!(log.ring().first(), last + 1, "what was sent is not kept");
        log.clear();
        assert!(log.follow(0).now_or_never().is_none());
    }

    #[test]
    fn output_becomes_lines() {
        let log = Log::default();
        let mut output = OutputLines::new(7, "stdout");
        for piece in [&b"hel"[..], b"lo\r\n\nwor", b"ld", b"\xff\n", &[b'y'; MESSAGE_BYTES_MAX * 2], b"\nrest"] {
            output.take(&log, piece);
        }
        output.end(&log);
        let chunk = log.ring().after(0).expect("lines").0;
        let lines: Vec<Value> =
            chunk.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let messages: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
        assert_eq!((messages[0], messages[1], messages[3]), ("hello", "world\u{fffd}", "rest"));
        assert_eq!(messages[2].len(), MESSAGE_BYTES_MAX);
        assert_eq!((&lines[0]["pid"], &lines[0]["stream"]), (&json!(7), &json!("stdout")));
    }
}
