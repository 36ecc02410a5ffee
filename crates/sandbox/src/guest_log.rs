//! The guest's log, followed over a connection to the guest daemon that stays open while the sandbox runs.
//!
//! ```text
//!   connecting ──> following the log ──broken──> connecting (after a pause that grows)
//!        └──401: no identity──> initialized again ──> connecting
//! ```
//!
//! Lines are stored in `analytics`, with the sandbox as their source, which the guest cannot influence. The log of a
//! guest that writes too much is read more slowly; its daemon then drops the oldest lines, and the node adds a line
//! about the loss. The name of the node's logger is reserved: a guest that uses it gets a prefix.
//!
//! A daemon that was restarted, because it crashed or root in the guest killed it, has lost its identity and rejects
//! all requests. It receives the same identity again.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_analytics::{Level, LogLine, Logs, Source};
use hearth_envd_api::{BatchSize, Client, Error, GuestLine, Init, LogStream};
use http::StatusCode;
use jiff::Timestamp;

use crate::Config;
use crate::assemble::random_seed;

/// Time for which lines are collected before they are stored: every append is a write.
const COLLECT: Duration = Duration::from_millis(200);
/// Limits of one append, and of the text that is parsed for it: a line in memory takes several times its text.
const BATCH: BatchSize = BatchSize { lines: 1000, bytes: 256 * 1024 };
/// Limit of a guest's log in one [`WINDOW`]: the bytes received, plus a constant per line ([`LogStream::take_cost`]).
///
/// This allows at most 256 lines per second, however short they are.
const WINDOW_COST_MAX: usize = 1 << 20;
const WINDOW: Duration = Duration::from_secs(8);
/// Maximum plausible number of lost lines: more than a guest can write in a day. A higher count is the guest's error.
const LOST_MAX: u64 = 1_000_000_000;
/// Bounds of the pause between two attempts to connect.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Logger of lines that the node adds.
const LOGGER: &str = "node";
/// Prefix of a guest's logger whose name could be confused with the node's.
const GUEST_MARK: &str = "guest:";

/// Store for guests' logs.
#[derive(Clone)]
pub struct GuestLogs {
    pub store: Arc<dyn Logs>,
    /// Includes the output of processes.
    pub with_output: bool,
}

impl fmt::Debug for GuestLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestLogs").field("with_output", &self.with_output).finish_non_exhaustive()
    }
}

/// Follower of one guest's log, with the lines not yet stored.
pub(crate) struct LogFollower {
    client: Arc<Client>,
    init: Init,
    config: Arc<Config>,
    source: Source,
    /// Highest line number; `None` before the first line.
    last: Option<u64>,
    /// Missing lines that are not yet reported.
    lost: u64,
    pending: Vec<LogLine>,
    window: Window,
    /// Failures to store lines since the last success.
    failures: u64,
}

/// Cost of the lines read in the current window.
#[derive(Debug)]
struct Window {
    since: Instant,
    cost: usize,
}

impl Window {
    /// Adds a cost. Returns how long to wait before reading more: as many windows as the excess takes.
    fn charge(&mut self, cost: usize, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(self.since);
        let passed = u32::try_from(age.as_millis() / WINDOW.as_millis()).unwrap_or(u32::MAX);
        if passed > 0 {
            self.cost = self.cost.saturating_sub(WINDOW_COST_MAX.saturating_mul(passed as usize));
            self.since = now.checked_sub(age.saturating_sub(WINDOW.saturating_mul(passed))).unwrap_or(now);
        }
        self.cost = self.cost.saturating_add(cost);
        let over = self.cost.saturating_sub(WINDOW_COST_MAX).div_ceil(WINDOW_COST_MAX);
        let over = WINDOW.saturating_mul(u32::try_from(over).unwrap_or(u32::MAX));
        (!over.is_zero()).then(|| over.saturating_sub(now.saturating_duration_since(self.since)))
    }
}

impl LogFollower {
    pub(crate) fn new(client: Arc<Client>, init: Init, config: Arc<Config>, source: Source) -> Self {
        let window = Window { since: Instant::now(), cost: 0 };
        Self { client, init, config, source, last: None, lost: 0, pending: Vec::new(), window, failures: 0 }
    }

    /// Follows the guest's log for ever. Cancel safe: [`flush`](Self::flush) stores lines received but not yet stored.
    pub(crate) async fn run(&mut self) {
        let mut pause = PAUSE_FIRST;
        loop {
            match self.client.logs(self.last.unwrap_or_default()).await {
                Ok(mut stream) => {
                    pause = PAUSE_FIRST;
                    if let Err(error) = self.follow(&mut stream).await {
                        tracing::debug!(%error, "guest log stream broken");
                    }
                    // Includes the cost of data that led to no line, or to an error.
                    self.throttle(&mut stream).await;
                }
                Err(Error::Status { status: StatusCode::UNAUTHORIZED, .. }) => self.initialize_again().await,
                Err(error) => tracing::debug!(%error, "could not follow the guest log"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn follow(&mut self, stream: &mut LogStream) -> Result<(), Error> {
        while let Some(batch) = stream.next(BATCH).await? {
            let mut room = BATCH.saturating_sub(batch.used);
            self.add_lines(batch.lines);
            // Lines that arrive shortly afterwards are stored together. The wait and the reading are cancel safe.
            let collected = Instant::now() + COLLECT;
            let mut ended = false;
            while !room.is_exhausted() && !ended {
                match tokio::time::timeout_at(collected.into(), stream.next(room)).await {
                    Ok(Ok(Some(batch))) => {
                        room = room.saturating_sub(batch.used);
                        self.add_lines(batch.lines);
                    }
                    Ok(Ok(None) | Err(_)) => ended = true,
                    Err(_elapsed) => break,
                }
            }
            self.flush().await;
            self.throttle(stream).await;
            if ended {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits if the guest has exceeded its limit. Cancel safe.
    async fn throttle(&mut self, stream: &mut LogStream) {
        if let Some(wait) = self.window.charge(stream.take_cost(), Instant::now()) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Appends lines to the pending ones.
    fn add_lines(&mut self, lines: Vec<GuestLine>) {
        for line in lines {
            self.count_missing(line.seq);
            self.pending.push(LogLine {
                at: line.at.unwrap_or_else(Timestamp::now),
                level: line.level.parse().unwrap_or(Level::Info),
                logger: guest_logger(line.logger),
                message: line.message,
                fields: line.fields,
            });
        }
    }

    /// Counts the lines missing before this one. Line numbers increase; repeated or lower ones are ignored.
    fn count_missing(&mut self, seq: u64) {
        if let Some(last) = self.last {
            self.lost = self.lost.saturating_add(seq.saturating_sub(last).saturating_sub(1));
        }
        self.last = Some(self.last.map_or(seq, |last| last.max(seq)));
    }

    /// Adds one line about all missing lines.
    fn report_lost(&mut self) {
        let lost = match std::mem::take(&mut self.lost) {
            0 => return,
            lost if lost <= LOST_MAX => lost.to_string(),
            _ => "an unknown number of".to_owned(),
        };
        self.add_node_line(
            Level::Warn,
            format!("{lost} lines of this sandbox's log were lost: it wrote more than the node reads"),
        );
    }

    /// Adds a line of the node's logger.
    fn add_node_line(&mut self, level: Level, message: String) {
        let fields = std::collections::BTreeMap::new();
        self.pending.push(LogLine { at: Timestamp::now(), level, logger: LOGGER.to_owned(), message, fields });
    }

    /// Stores the pending lines. Cancel safe: lines in transfer may be stored or not.
    ///
    /// Lines that cannot be stored are dropped: logs must not fail a sandbox.
    pub(crate) async fn flush(&mut self) {
        self.report_lost();
        if self.pending.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.pending);
        let count = lines.len();
        match self.config.logs.store.append(&self.source, lines).await {
            Ok(()) => self.failures = 0,
            Err(error) => {
                self.failures += 1;
                // Logged once per outage.
                if self.failures == 1 {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        lines = count,
                        "could not store log lines"
                    );
                }
            }
        }
    }

    /// Sends the identity to the daemon again, with new random bytes.
    async fn initialize_again(&mut self) {
        self.init.random_seed = Some(random_seed());
        let given = self.client.init(&self.init, self.config.init_attempt, self.config.init_budget).await;
        match given {
            Ok(_) => {
                tracing::info!("guest daemon restarted and initialized");
                self.add_node_line(
                    Level::Warn,
                    "the daemon in this sandbox was restarted: streams of its processes were lost".to_owned(),
                );
                self.last = None;
                self.flush().await;
            }
            Err(error) => tracing::debug!(%error, "could not initialize the restarted guest daemon"),
        }
    }
}

/// Returns the logger name to store: with a prefix if it could be confused with the node's, also by invisible
/// characters.
fn guest_logger(name: String) -> String {
    let seen = name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase());
    if seen.eq(LOGGER.chars()) { format!("{GUEST_MARK}{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use hearth_analytics::{Error as StoreError, Query, Sample, SampleQuery, Samples, StoredLine};
    use hearth_types::{ExecutionId, SandboxId, TeamId};
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::GuestSamples;

    /// Time after which a guest stops writing if the node does not read.
    const TIMEOUT: Duration = Duration::from_millis(500);

    /// Stored lines, in memory.
    #[derive(Default)]
    struct MemoryStore(Mutex<Vec<Vec<LogLine>>>);

    #[async_trait]
    impl Logs for MemoryStore {
        async fn append(&self, _: &Source, lines: Vec<LogLine>) -> Result<(), StoreError> {
            self.0.lock().expect("sound").push(lines);
            Ok(())
        }

        async fn query(&self, _: TeamId, _: &SandboxId, _: &Query) -> Result<Vec<StoredLine>, StoreError> {
            unreachable!("nodes only store")
        }
    }

    #[async_trait]
    impl Samples for MemoryStore {
        async fn record(&self, _: TeamId, _: &SandboxId, _: Sample) -> Result<(), StoreError> {
            unreachable!("only lines")
        }

        async fn range(&self, _: TeamId, _: &SandboxId, _: &SampleQuery) -> Result<Vec<Sample>, StoreError> {
            unreachable!("only lines")
        }

        async fn latest(&self, _: TeamId, _: &[SandboxId]) -> Result<BTreeMap<SandboxId, Sample>, StoreError> {
            unreachable!("only lines")
        }
    }

    async fn follower(listener: &TcpListener, store: &Arc<MemoryStore>) -> LogFollower {
        let address = listener.local_addr().expect("an address");
        let client = Client::new(Box::new(move || Box::pin(TcpStream::connect(address))), "guest", HeaderMap::new());
        let config = Config {
            folder: PathBuf::new(),
            init_attempt: TIMEOUT,
            init_budget: TIMEOUT,
            logs: GuestLogs { store: store.clone(), with_output: false },
            samples: GuestSamples(store.clone()),
        };
        let source = Source {
            team_id: TeamId::generate(),
            sandbox_id: SandboxId::generate(),
            template_id: None,
            execution_id: ExecutionId::generate(),
        };
        LogFollower::new(Arc::new(client), Init::default(), Arc::new(config), source)
    }

    /// A guest that repeats this text as its log, until the node stops reading or `bytes_max` are sent.
    ///
    /// Returns the number of bytes sent.
    async fn write_repeatedly(listener: &TcpListener, text: &str, bytes_max: usize) -> usize {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("sent");
        let block = text.repeat(64 * 1024 / text.len());
        let mut written = 0;
        while written < bytes_max {
            match tokio::time::timeout(TIMEOUT, stream.write_all(block.as_bytes())).await {
                Ok(written) => written.expect("the node reads"),
                Err(_elapsed) => break,
            }
            written += block.len();
        }
        written
    }

    #[tokio::test]
    async fn short_and_invalid_lines_are_limited_too() {
        let endless = 64 * 1024 * 1024;
        let fields: String = (0..60).map(|number| format!(",\"{number}\":1")).collect();
        for text in ["{\"seq\":1}\n", "\n", "nonsense\n", &format!("{{\"seq\":1{fields}}}\n")] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
            let store = Arc::new(MemoryStore::default());
            let mut follower = follower(&listener, &store).await;
            let written = tokio::select! {
                () = follower.run() => unreachable!("the log is followed for ever"),
                written = write_repeatedly(&listener, text, endless) => written,
            };
            assert!(written < endless, "{text}: it is read without a limit");
            let batches = store.0.lock().expect("sound");
            let lines: usize = batches.iter().map(Vec::len).sum();
            assert!(lines <= WINDOW_COST_MAX / hearth_envd_api::LINE_COST + BATCH.lines, "{text}: {lines} lines");
            for batch in batches.iter() {
                let fields: usize = batch.iter().map(|line| line.fields.len()).sum();
                assert!(batch.len() <= BATCH.lines && fields <= BATCH.bytes / 64, "{} {fields}", batch.len());
            }
        }
    }

    #[tokio::test]
    async fn implausible_line_numbers_are_handled() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let reported = |seqs: &[u64]| {
            let (seqs, listener) = (seqs.to_vec(), &listener);
            async move {
                let store = Arc::new(MemoryStore::default());
                let mut follower = follower(listener, &store).await;
                let line = |seq| GuestLine {
                    seq,
                    at: None,
                    level: String::new(),
                    logger: "node".to_owned(),
                    message: "0 lines were lost".to_owned(),
                    fields: BTreeMap::new(),
                };
                follower.add_lines(seqs.into_iter().map(line).collect());
                follower.flush().await;
                let lines = store.0.lock().expect("sound").concat();
                let ours = lines.iter().filter(|line| line.logger == LOGGER);
                ours.map(|line| line.message.split(" lines").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
            }
        };
        for (seqs, expected) in [
            (&[1, 2, 3][..], vec![]),
            (&[7, 8], vec![]),
            (&[1, 5, 6, 9], vec!["5"]),
            (&[1, 1000, 1, 1000, 1, 1001], vec!["998"]),
            (&[1, u64::MAX], vec!["an unknown number of"]),
            (&[1, u64::MAX, 0, u64::MAX, 7], vec!["an unknown number of"]),
            (&[u64::MAX, u64::MAX, 0], vec![]),
        ] {
            assert_eq!(reported(seqs).await, expected, "{seqs:?}");
        }
    }

    #[test]
    fn a_guest_cannot_use_the_node_s_logger() {
        for name in ["node", "Node", " node ", "no\u{200b}de", "node:", "\"node\""] {
            assert_eq!(guest_logger(name.to_owned()), format!("guest:{name}"));
        }
        for name in ["process", "", "nodes", "node-exporter", "my node"] {
            assert_eq!(guest_logger(name.to_owned()), name);
        }
    }

    #[test]
    fn excess_is_delayed_to_later_windows() {
        let start = Instant::now();
        let mut window = Window { since: start, cost: 0 };
        assert_eq!(window.charge(WINDOW_COST_MAX, start), None);
        assert_eq!(window.charge(1, start + Duration::from_secs(2)), Some(WINDOW - Duration::from_secs(2)));
        assert_eq!(window.charge(1, start + WINDOW), None, "a new window");
        assert_eq!(window.charge(WINDOW_COST_MAX * 2, start + 3 * WINDOW), Some(WINDOW));
        let excess = window.charge(WINDOW_COST_MAX, start + 4 * WINDOW);
        assert_eq!(excess, Some(WINDOW), "excess is carried over");
        assert_eq!(window.charge(0, start + 6 * WINDOW), None);
    }
}
