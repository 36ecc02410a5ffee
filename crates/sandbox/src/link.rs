//! The host's standing connection to the guest's daemon, for as long as the sandbox runs.
//!
//! ```text
//!   connecting ──> following the log ──broken──> connecting (after a pause that grows)
//!        └──the daemon knows nobody──> identified anew ──> connecting
//! ```
//!
//! What the guest says goes to `analytics`, with the sandbox as its source: the guest has no say in that. A guest that says too
//! much is read more slowly, and its own daemon drops the oldest lines then; that lines were lost is a line of ours. The name of
//! our logger is reserved: a guest that uses it is marked.
//!
//! A daemon that was started again, because it crashed or was killed by root in the guest, has lost its identity and lets
//! nobody in. It gets the same one again.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_analytics::{Level, LogLine, Logs, Source};
use hearth_envd_api::{Client, Error, GuestLine, Init, LogStream, Room};
use http::StatusCode;
use jiff::Timestamp;

use crate::Config;
use crate::assemble::random_seed;

/// Lines are collected for this long before they are kept: every append is a write.
const COLLECT: Duration = Duration::from_millis(200);
/// Most lines in one append, and most of what is parsed before it: a line in memory takes a few times its text.
const BATCH: Room = Room { lines: 1000, bytes: 256 * 1024 };
/// What a guest may say in one [`WINDOW`]: its bytes as they came, and a part for each line ([`LogStream::take_cost`]). So it
/// is at most 256 lines a second, however short they are.
const WINDOW_COST_MAX: usize = 1 << 20;
const WINDOW: Duration = Duration::from_secs(8);
/// Lines that can have been lost: more than a guest can say in a day. A guest that counts further counts wrong.
const LOST_MAX: u64 = 1_000_000_000;
/// Between two tries to connect.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The logger of lines that the node adds.
const LOGGER: &str = "node";
/// Stands before the name of a logger of a guest that could be taken for ours.
const GUEST_MARK: &str = "guest:";

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
    /// Highest number of a line; `None` before the first.
    last: Option<u64>,
    /// Lines that are missing and were not told yet.
    lost: u64,
    pending: Vec<LogLine>,
    window: Window,
    /// Appends that failed since one did not.
    failures: u64,
}

/// What was said in the current window.
#[derive(Debug)]
struct Window {
    since: Instant,
    cost: usize,
}

impl Window {
    /// Returns how long to wait before more is read: as many windows as it takes for all of it.
    fn take(&mut self, cost: usize, now: Instant) -> Option<Duration> {
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

impl Link {
    pub(crate) fn new(client: Arc<Client>, init: Init, config: Arc<Config>, source: Source) -> Self {
        let window = Window { since: Instant::now(), cost: 0 };
        Self { client, init, config, source, last: None, lost: 0, pending: Vec::new(), window, failures: 0 }
    }

    /// Follows the guest for ever. Cancel safe: what came and is not kept yet is for [`flush`](Self::flush).
    pub(crate) async fn run(&mut self) {
        let mut pause = PAUSE_FIRST;
        loop {
            match self.client.logs(self.last.unwrap_or_default()).await {
                Ok(mut stream) => {
                    pause = PAUSE_FIRST;
                    if let Err(error) = self.follow(&mut stream).await {
                        tracing::debug!(%error, "the guest's log broke off");
                    }
                    // Also what led to no line, or to an error.
                    self.pay(&mut stream).await;
                }
                Err(Error::Status { status: StatusCode::UNAUTHORIZED, .. }) => self.identify_anew().await,
                Err(error) => tracing::debug!(%error, "the guest's log cannot be followed"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn follow(&mut self, stream: &mut LogStream) -> Result<(), Error> {
        while let Some(batch) = stream.next(BATCH).await? {
            let mut room = BATCH.without(batch.used);
            self.take(batch.lines);
            // What comes in the next moment is kept together with it. The wait is cancel safe, and so is reading.
            let collected = Instant::now() + COLLECT;
            let mut ended = false;
            while !room.is_used_up() && !ended {
                match tokio::time::timeout_at(collected.into(), stream.next(room)).await {
                    Ok(Ok(Some(batch))) => {
                        room = room.without(batch.used);
                        self.take(batch.lines);
                    }
                    Ok(Ok(None) | Err(_)) => ended = true,
                    Err(_elapsed) => break,
                }
            }
            self.flush().await;
            self.pay(stream).await;
            if ended {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits if the guest has said too much. Cancel safe.
    async fn pay(&mut self, stream: &mut LogStream) {
        if let Some(wait) = self.window.take(stream.take_cost(), Instant::now()) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Adds lines to those that wait.
    fn take(&mut self, lines: Vec<GuestLine>) {
        for line in lines {
            self.note_number(line.seq);
            self.pending.push(LogLine {
                at: line.at.unwrap_or_else(Timestamp::now),
                level: line.level.parse().unwrap_or(Level::Info),
                logger: guest_logger(line.logger),
                message: line.message,
                fields: line.fields,
            });
        }
    }

    /// Counts the lines that are missing before one. Numbers only grow: what repeats or goes back tells nothing.
    fn note_number(&mut self, seq: u64) {
        if let Some(last) = self.last {
            self.lost = self.lost.saturating_add(seq.saturating_sub(last).saturating_sub(1));
        }
        self.last = Some(self.last.map_or(seq, |last| last.max(seq)));
    }

    /// Adds a line about those that are missing, once for all of them.
    fn tell_lost(&mut self) {
        let lost = match std::mem::take(&mut self.lost) {
            0 => return,
            lost if lost <= LOST_MAX => lost.to_string(),
            _ => "an unknown number of".to_owned(),
        };
        self.say(Level::Warn, format!("{lost} lines of this sandbox's log were lost: it said more than is read"));
    }

    /// Adds a line of ours.
    fn say(&mut self, level: Level, message: String) {
        let fields = std::collections::BTreeMap::new();
        self.pending.push(LogLine { at: Timestamp::now(), level, logger: LOGGER.to_owned(), message, fields });
    }

    /// Has what waits kept. What cannot be kept is gone: logs must not fail a sandbox. Cancel safe: what was handed over may
    /// be kept or not.
    pub(crate) async fn flush(&mut self) {
        self.tell_lost();
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

/// The name of a guest's logger: marked if it could be taken for ours, also with letters that nobody sees.
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
    use hearth_analytics::{Error as KeepError, Query, Sample, SampleQuery, Samples, Stored};
    use hearth_types::{ExecutionId, SandboxId, TeamId};
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::GuestSamples;

    /// How long a guest writes that is not read: it gives up then.
    const PATIENCE: Duration = Duration::from_millis(500);

    /// What was kept, in memory.
    #[derive(Default)]
    struct Kept(Mutex<Vec<Vec<LogLine>>>);

    #[async_trait]
    impl Logs for Kept {
        async fn append(&self, _: &Source, lines: Vec<LogLine>) -> Result<(), KeepError> {
            self.0.lock().expect("sound").push(lines);
            Ok(())
        }

        async fn query(&self, _: TeamId, _: &SandboxId, _: &Query) -> Result<Vec<Stored>, KeepError> {
            unreachable!("nodes only keep")
        }
    }

    #[async_trait]
    impl Samples for Kept {
        async fn keep(&self, _: TeamId, _: &SandboxId, _: Sample) -> Result<(), KeepError> {
            unreachable!("only lines")
        }

        async fn range(&self, _: TeamId, _: &SandboxId, _: &SampleQuery) -> Result<Vec<Sample>, KeepError> {
            unreachable!("only lines")
        }

        async fn latest(&self, _: TeamId, _: &[SandboxId]) -> Result<BTreeMap<SandboxId, Sample>, KeepError> {
            unreachable!("only lines")
        }
    }

    async fn link(listener: &TcpListener, kept: &Arc<Kept>) -> Link {
        let address = listener.local_addr().expect("an address");
        let client = Client::new(Box::new(move || Box::pin(TcpStream::connect(address))), "guest", HeaderMap::new());
        let config = Config {
            folder: PathBuf::new(),
            init_attempt: PATIENCE,
            init_budget: PATIENCE,
            logs: GuestLogs { keeper: kept.clone(), with_output: false },
            samples: GuestSamples(kept.clone()),
        };
        let source = Source {
            team_id: TeamId::generate(),
            sandbox_id: SandboxId::generate(),
            template_id: None,
            execution_id: ExecutionId::generate(),
        };
        Link::new(Arc::new(client), Init::default(), Arc::new(config), source)
    }

    /// A guest whose log is this text again and again, until nobody reads it for a while or it was `bytes_max`. Returns how
    /// much it was.
    async fn pour(listener: &TcpListener, text: &str, bytes_max: usize) -> usize {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("sent");
        let block = text.repeat(64 * 1024 / text.len());
        let mut poured = 0;
        while poured < bytes_max {
            match tokio::time::timeout(PATIENCE, stream.write_all(block.as_bytes())).await {
                Ok(written) => written.expect("the node reads on"),
                Err(_elapsed) => break,
            }
            poured += block.len();
        }
        poured
    }

    #[tokio::test]
    async fn short_lines_and_nonsense_cost_as_well() {
        let endless = 64 * 1024 * 1024;
        let fields: String = (0..60).map(|number| format!(",\"{number}\":1")).collect();
        for text in ["{\"seq\":1}\n", "\n", "nonsense\n", &format!("{{\"seq\":1{fields}}}\n")] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
            let kept = Arc::new(Kept::default());
            let mut link = link(&listener, &kept).await;
            let poured = tokio::select! {
                () = link.run() => unreachable!("it follows for ever"),
                poured = pour(&listener, text, endless) => poured,
            };
            assert!(poured < endless, "{text}: it is read without an end");
            let batches = kept.0.lock().expect("sound");
            let lines: usize = batches.iter().map(Vec::len).sum();
            assert!(lines <= WINDOW_COST_MAX / hearth_envd_api::LINE_COST + BATCH.lines, "{text}: {lines} lines");
            for batch in batches.iter() {
                let fields: usize = batch.iter().map(|line| line.fields.len()).sum();
                assert!(batch.len() <= BATCH.lines && fields <= BATCH.bytes / 64, "{} {fields}", batch.len());
            }
        }
    }

    #[tokio::test]
    async fn a_guest_s_numbers_are_not_taken_at_their_word() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let told = |seqs: &[u64]| {
            let (seqs, listener) = (seqs.to_vec(), &listener);
            async move {
                let kept = Arc::new(Kept::default());
                let mut link = link(listener, &kept).await;
                let line = |seq| GuestLine {
                    seq,
                    at: None,
                    level: String::new(),
                    logger: "node".to_owned(),
                    message: "0 lines were lost".to_owned(),
                    fields: BTreeMap::new(),
                };
                link.take(seqs.into_iter().map(line).collect());
                link.flush().await;
                let lines = kept.0.lock().expect("sound").concat();
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
            assert_eq!(told(seqs).await, expected, "{seqs:?}");
        }
    }

    #[test]
    fn nobody_speaks_for_the_node() {
        for name in ["node", "Node", " node ", "no\u{200b}de", "node:", "\"node\""] {
            assert_eq!(guest_logger(name.to_owned()), format!("guest:{name}"));
        }
        for name in ["process", "", "nodes", "node-exporter", "my node"] {
            assert_eq!(guest_logger(name.to_owned()), name);
        }
    }

    #[test]
    fn who_says_too_much_waits_for_the_next_window() {
        let start = Instant::now();
        let mut window = Window { since: start, cost: 0 };
        assert_eq!(window.take(WINDOW_COST_MAX, start), None);
        assert_eq!(window.take(1, start + Duration::from_secs(2)), Some(WINDOW - Duration::from_secs(2)));
        assert_eq!(window.take(1, start + WINDOW), None, "a new one");
        assert_eq!(window.take(WINDOW_COST_MAX * 2, start + 3 * WINDOW), Some(WINDOW));
        let unforgiven = window.take(WINDOW_COST_MAX, start + 4 * WINDOW);
        assert_eq!(unforgiven, Some(WINDOW), "what was too much is not forgiven");
        assert_eq!(window.take(0, start + 6 * WINDOW), None);
    }
}
