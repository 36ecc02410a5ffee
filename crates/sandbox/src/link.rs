//! The host's standing connection to the guest's daemon, for as long as the sandbox runs.
//!
//! ```text
//!   connecting ──> following the log ──broken──> connecting (after a pause that grows)
//!        └──the daemon knows nobody──> identified anew ──> connecting
//! ```
//!
//! What the guest says goes to `analytics`, with the sandbox as its source: the guest has no say in that. A guest that says too
//! much is read more slowly, and its own daemon drops the oldest lines then; how many were lost is a line of ours.
//!
//! A daemon that was started again, because it crashed or was killed by root in the guest, has lost its identity and lets
//! nobody in. It gets the same one again.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_analytics::{Level, LogLine, Logs, Source};
use hearth_envd_api::{Client, Error, GuestLine, Init, LogStream};
use http::StatusCode;
use jiff::Timestamp;

use crate::Config;
use crate::assemble::random_seed;

/// Lines are collected for this long before they are kept: every append is a write.
const COLLECT: Duration = Duration::from_millis(200);
/// Most lines in one append.
const BATCH_LINES_MAX: usize = 1000;
/// What a guest may say in one [`WINDOW`], in bytes of the wire and a cost for each line.
const WINDOW_BYTES_MAX: usize = 1 << 20;
const WINDOW: Duration = Duration::from_secs(8);
/// Between two tries to connect.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The logger of lines that the node adds.
const LOGGER: &str = "node";

/// Where guests' logs go.
#[derive(Clone)]
pub struct GuestLogs {
    /// Who keeps them.
    pub keeper: Arc<dyn Logs>,
    /// Whether they have what processes print.
    pub with_output: bool,
}

impl fmt::Debug for GuestLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestLogs").field("with_output", &self.with_output).finish_non_exhaustive()
    }
}

/// The connection and what came over it and is not kept yet.
pub(crate) struct Link {
    client: Arc<Client>,
    init: Init,
    config: Arc<Config>,
    source: Source,
    /// Number of the last line; `None` before the first.
    last: Option<u64>,
    pending: Vec<LogLine>,
    window: Window,
    /// Appends that failed since one did not.
    failures: u64,
}

/// What was said in the current window, with what was too much in those before it.
#[derive(Debug)]
struct Window {
    since: Instant,
    bytes: usize,
}

impl Window {
    /// Returns how long to wait before more is read: as many windows as it takes for all of it.
    fn take(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(self.since);
        let passed = u32::try_from(age.as_millis() / WINDOW.as_millis()).unwrap_or(u32::MAX);
        if passed > 0 {
            self.bytes = self.bytes.saturating_sub(WINDOW_BYTES_MAX.saturating_mul(passed as usize));
            self.since = now.checked_sub(age.saturating_sub(WINDOW.saturating_mul(passed))).unwrap_or(now);
        }
        self.bytes = self.bytes.saturating_add(bytes);
        let over = self.bytes.saturating_sub(WINDOW_BYTES_MAX).div_ceil(WINDOW_BYTES_MAX);
        let over = WINDOW.saturating_mul(u32::try_from(over).unwrap_or(u32::MAX));
        (!over.is_zero()).then(|| over.saturating_sub(now.saturating_duration_since(self.since)))
    }
}

impl Link {
    pub(crate) fn new(client: Arc<Client>, init: Init, config: Arc<Config>, source: Source) -> Self {
        let window = Window { since: Instant::now(), bytes: 0 };
        Self { client, init, config, source, last: None, pending: Vec::new(), window, failures: 0 }
    }

    /// Follows the guest for ever. Cancel safe: what came and is not kept yet is for [`flush`](Self::flush).
    pub(crate) async fn run(&mut self) {
        let mut pause = PAUSE_FIRST;
        loop {
            match self.client.logs(self.last.unwrap_or_default()).await {
                Ok(stream) => {
                    pause = PAUSE_FIRST;
                    if let Err(error) = self.follow(stream).await {
                        tracing::debug!(%error, "the guest's log broke off");
                    }
                }
                Err(Error::Status { status: StatusCode::UNAUTHORIZED, .. }) => self.identify_anew().await,
                Err(error) => tracing::debug!(%error, "the guest's log cannot be followed"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn follow(&mut self, mut stream: LogStream) -> Result<(), Error> {
        while let Some(lines) = stream.next().await? {
            self.take(lines);
            let mut wait = self.window.take(stream.take_cost(), Instant::now());
            // What comes in the next moment is kept together with it. The wait is cancel safe, and so is reading.
            let collected = Instant::now() + COLLECT;
            let mut ended = false;
            while self.pending.len() < BATCH_LINES_MAX && wait.is_none() && !ended {
                match tokio::time::timeout_at(collected.into(), stream.next()).await {
                    Ok(Ok(Some(lines))) => self.take(lines),
                    Ok(Ok(None) | Err(_)) => ended = true,
                    Err(_elapsed) => break,
                }
                wait = self.window.take(stream.take_cost(), Instant::now());
            }
            self.flush().await;
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            if ended {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Adds lines to those that wait, with a word about those that are missing.
    fn take(&mut self, lines: Vec<GuestLine>) {
        for line in lines {
            let lost = self.last.map_or(0, |last| line.seq.saturating_sub(last.saturating_add(1)));
            if lost > 0 {
                self.say(
                    Level::Warn,
                    format!("{lost} lines of this sandbox's log were lost: it said more than is read"),
                );
            }
            self.last = Some(line.seq);
            self.pending.push(LogLine {
                at: line.at.unwrap_or_else(Timestamp::now),
                level: line.level.parse().unwrap_or(Level::Info),
                logger: line.logger,
                message: line.message,
                fields: line.fields,
            });
        }
    }

    /// Adds a line of ours.
    fn say(&mut self, level: Level, message: String) {
        let fields = std::collections::BTreeMap::new();
        self.pending.push(LogLine { at: Timestamp::now(), level, logger: LOGGER.to_owned(), message, fields });
    }

    /// Has what waits kept. What cannot be kept is gone: logs must not fail a sandbox. Cancel safe: what was handed over may
    /// be kept or not.
    pub(crate) async fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.pending);
        let count = lines.len();
        match self.config.logs.keeper.append(&self.source, lines).await {
            Ok(()) => self.failures = 0,
            Err(error) => {
                self.failures += 1;
                // Once for each time it stops working.
                if self.failures == 1 {
                    tracing::warn!(error = &error as &dyn std::error::Error, lines = count, "log lines were not kept");
                }
            }
        }
    }

    /// Tells the daemon who it is, as at the start, with fresh random bytes.
    async fn identify_anew(&mut self) {
        self.init.random_seed = Some(random_seed());
        let given = self.client.init(&self.init, self.config.init_attempt, self.config.init_budget).await;
        match given {
            Ok(_) => {
                tracing::info!("the guest's daemon was started again and has its identity back");
                self.say(
                    Level::Warn,
                    "the daemon in this sandbox was started again: its processes' streams were lost".to_owned(),
                );
                self.last = None;
                self.flush().await;
            }
            Err(error) => tracing::debug!(%error, "the guest's daemon does not take its identity back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_too_much_waits_for_the_next_window() {
        let start = Instant::now();
        let mut window = Window { since: start, bytes: 0 };
        assert_eq!(window.take(WINDOW_BYTES_MAX, start), None);
        assert_eq!(window.take(1, start + Duration::from_secs(2)), Some(WINDOW - Duration::from_secs(2)));
        assert_eq!(window.take(1, start + WINDOW), None, "a new one");
        assert_eq!(window.take(WINDOW_BYTES_MAX * 2, start + 3 * WINDOW), Some(WINDOW));
        assert_eq!(
            window.take(WINDOW_BYTES_MAX, start + 4 * WINDOW),
            Some(WINDOW),
            "what was too much is not forgiven"
        );
        assert_eq!(window.take(0, start + 6 * WINDOW), None);
    }
}
