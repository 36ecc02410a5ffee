//! The commands of the soak, and the checks of each.
//!
//! All of them are harmless and end by themselves or are killed by the daemon. The output that a client receives after
//! it has reconnected is checked too.

use std::panic::AssertUnwindSafe;
use std::task::Poll;

use futures::FutureExt;
use hearth_envd_api::process::__buffa::oneof::stream_input_request::Event;
use hearth_envd_api::process::stream_input_request::{DataEvent, StartEvent};
use hearth_envd_api::process::{
    ConnectRequest, PTY, ProcessSelector, Signal, StartRequest, StreamInputRequest, StreamInputResponse, UpdateRequest,
    UpdateResponse, pty,
};
use http::Method;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::random::Random;
use crate::connect::{Events, Messages, StreamEvent, by_pid, by_tag, envelope, unary_with};
use crate::daemon::{Daemon, is_alive, until, within};
use crate::http::{open, whole};
use crate::input::{pty as typed, stdin};
use crate::process::{START, command, shell};

const CONNECT: &str = "/process.Process/Connect";
const STREAM_INPUT: &str = "/process.Process/StreamInput";
/// Polls of a request before its client disconnects: enough that some have a reply by then.
const POLLS_MAX: u32 = 40;

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// `true` and other exit codes.
    Exit,
    /// Some kilobytes of output, complete.
    Output,
    /// Input is echoed.
    Echo,
    /// Input as a stream of messages is echoed.
    Stream,
    /// A terminal that changes its size.
    Terminal,
    /// Ended by SIGTERM or SIGKILL.
    Signalled,
    /// Killed by the call's deadline.
    Deadline,
    /// Several clients receive the same output.
    Followers,
    /// Keepalives during silence.
    Keepalive,
    /// A client that disconnects before it has a reply.
    DisconnectsBefore,
    /// A client that disconnects in the middle of the output.
    DisconnectsDuring,
    /// A client that disconnects and reconnects after the end.
    DisconnectsAfter,
    /// A process that cannot be started.
    Rejected,
}

/// Percentage of each kind of command.
const MIX: [(u32, Kind); 13] = [
    (35, Kind::Exit),
    (9, Kind::Output),
    (7, Kind::Echo),
    (4, Kind::Stream),
    (7, Kind::Terminal),
    (10, Kind::Signalled),
    (5, Kind::Deadline),
    (4, Kind::Followers),
    (1, Kind::Keepalive),
    (6, Kind::DisconnectsBefore),
    (3, Kind::DisconnectsDuring),
    (6, Kind::DisconnectsAfter),
    (3, Kind::Rejected),
];

/// One command with its tag and its random numbers.
struct Run<'a> {
    daemon: &'a Daemon,
    tag: String,
    random: Random,
}

/// Runs the command with this number and checks its result. A failure prints how to reproduce it.
pub(super) async fn run(daemon: &Daemon, seed: u64, number: u64) {
    let mut random = Random::of(seed, number);
    let mut point = random.below(MIX.iter().map(|(weight, _)| weight).sum());
    let chosen = MIX.iter().find(|(weight, _)| match point.checked_sub(*weight) {
        Some(rest) => {
            point = rest;
            false
        }
        None => true,
    });
    let kind = chosen.expect("the point is below the sum of the weights").1;
    let run = Run { daemon, tag: format!("soak-{number}"), random };
    if let Err(panic) = AssertUnwindSafe(Box::pin(run.execute(kind))).catch_unwind().await {
        eprintln!("command {number} ({kind:?}) of seed {seed} failed");
        std::panic::resume_unwind(panic);
    }
}

impl Run<'_> {
    async fn execute(mut self, kind: Kind) {
        match kind {
            Kind::Exit => self.exit().await,
            Kind::Output => self.output().await,
            Kind::Echo => self.echo().await,
            Kind::Stream => self.stream().await,
            Kind::Terminal => self.terminal().await,
            Kind::Signalled => self.signalled().await,
            Kind::Deadline => self.deadline().await,
            Kind::Followers => self.followers().await,
            Kind::Keepalive => self.keepalive().await,
            Kind::DisconnectsBefore => self.disconnects_before().await,
            Kind::DisconnectsDuring => self.disconnects_during().await,
            Kind::DisconnectsAfter => self.disconnects_after().await,
            Kind::Rejected => self.rejected().await,
        }
    }

    async fn start_with(&mut self, headers: &[(&str, &str)], mut request: StartRequest) -> Events {
        request.tag = Some(self.tag.clone());
        self.daemon.launch_with(self.random.codec(), headers, &request).await
    }

    /// Starts a command; returns its pid and the events after the first.
    async fn start(&mut self, request: StartRequest) -> (u32, Events) {
        let mut events = self.start_with(&[], request).await;
        (events.pid().await, events)
    }

    /// Follows the same process as another client.
    async fn follow(&mut self, pid: u32) -> Events {
        let process = self.selector(pid);
        let request = ConnectRequest { process: process.into(), ..Default::default() };
        let mut events = Events::of(Messages::open(self.daemon, self.random.codec(), CONNECT, &[], &request).await);
        assert_eq!(events.pid().await, pid);
        events
    }

    fn selector(&mut self, pid: u32) -> ProcessSelector {
        if self.random.one_in(2) { by_pid(pid) } else { by_tag(&self.tag) }
    }

    /// Replaces one client in three by another.
    async fn maybe_reconnect(&mut self, pid: u32, events: Events) -> Events {
        if !self.random.one_in(3) {
            return events;
        }
        // In both orders: with and without a time without a client.
        if self.random.one_in(2) {
            drop(events);
            return self.follow(pid).await;
        }
        self.follow(pid).await
    }

    async fn exit(&mut self) {
        let code = if self.random.one_in(2) { 0 } else { self.random.below(256) };
        let request = match code {
            0 => command("true", &[]),
            code => shell(&format!("exit {code}")),
        };
        let (_, mut events) = self.start(request).await;
        let outcome = events.rest().await;
        assert_eq!(i64::from(outcome.code()), i64::from(code));
        assert!(outcome.stdout.is_empty() && outcome.stderr.is_empty() && outcome.pty.is_empty());
    }

    async fn output(&mut self) {
        let lines = self.random.below(2_000);
        let (_, mut events) = self.start(shell(&format!("seq 1 {lines}; echo problem >&2; exit 3"))).await;
        let outcome = events.rest().await;
        assert!(outcome.stdout() == numbers(lines), "{} bytes of {lines} lines", outcome.stdout.len());
        assert_eq!((outcome.stderr().as_str(), outcome.code()), ("problem\n", 3));
    }

    fn pieces(&mut self) -> Vec<Vec<u8>> {
        (0..1 + self.random.below(4))
            .map(|_| {
                let byte = u8::try_from(self.random.below(256)).expect("less than 256");
                vec![byte; self.random.below(5_000) as usize]
            })
            .collect()
    }

    async fn cat(&mut self) -> (u32, Events) {
        let mut request = command("cat", &[]);
        request.stdin = Some(true);
        let (pid, events) = self.start(request).await;
        (pid, self.maybe_reconnect(pid, events).await)
    }

    async fn echo(&mut self) {
        let (pid, mut events) = self.cat().await;
        let pieces = self.pieces();
        for piece in &pieces {
            let process = self.selector(pid);
            self.daemon.send(process, stdin(piece)).await.expect("send input");
        }
        self.daemon.close_stdin(pid).await.expect("close input");
        let outcome = events.rest().await;
        assert!(outcome.stdout == pieces.concat(), "{} bytes were echoed", outcome.stdout.len());
        assert_eq!(outcome.code(), 0);
    }

    async fn stream(&mut self) {
        let (pid, mut events) = self.cat().await;
        let pieces = self.pieces();
        let start = StartEvent { process: self.selector(pid).into(), ..Default::default() };
        let data = |piece: &Vec<u8>| DataEvent { input: stdin(piece).into(), ..Default::default() };
        let inputs = std::iter::once(Event::from(start)).chain(pieces.iter().map(|piece| Event::from(data(piece))));
        let codec = self.random.codec();
        let body: Vec<u8> = inputs
            .flat_map(|event| {
                envelope(0, &codec.encode(&StreamInputRequest { event: Some(event), ..Default::default() }))
            })
            .collect();
        let headers = [("content-type", codec.streaming())];
        let reply = open(self.daemon, Method::POST, STREAM_INPUT, &headers, whole(body));
        let mut reply = Messages::of(codec, within("a reply", reply).await);
        assert!(reply.next::<StreamInputResponse>().await.expect("send input").is_some());
        assert_eq!(reply.next::<StreamInputResponse>().await, Ok(None));
        self.daemon.close_stdin(pid).await.expect("close input");
        let outcome = events.rest().await;
        assert!(outcome.stdout == pieces.concat(), "{} bytes were echoed", outcome.stdout.len());
        assert_eq!(outcome.code(), 0);
    }

    fn size(&mut self) -> pty::Size {
        pty::Size { cols: 1 + self.random.below(400), rows: 1 + self.random.below(200), ..Default::default() }
    }

    /// Checks that the program sees the last size, with any follower.
    async fn terminal(&mut self) {
        let mut size = self.size();
        let mut request = shell("read line; exec stty size");
        request.stdin = None;
        request.pty = PTY { size: size.clone().into(), ..Default::default() }.into();
        let (pid, events) = self.start(request).await;
        for _ in 0..self.random.below(5) {
            size = self.size();
            let request = UpdateRequest {
                process: self.selector(pid).into(),
                pty: PTY { size: size.clone().into(), ..Default::default() }.into(),
                ..Default::default()
            };
            let codec = self.random.codec();
            let resized: Result<UpdateResponse, _> =
                unary_with(self.daemon, codec, "/process.Process/Update", &[], &request).await;
            resized.expect("resize");
        }
        let mut events = self.maybe_reconnect(pid, events).await;
        self.daemon.send(by_pid(pid), typed(b"\n")).await.expect("send input");
        let outcome = events.rest().await;
        let screen = String::from_utf8_lossy(&outcome.pty);
        assert!(screen.ends_with(&format!("\n{} {}\r\n", size.rows, size.cols)), "{size:?} in {screen:?}");
        assert!(outcome.stdout.is_empty() && outcome.stderr.is_empty());
        assert_eq!(outcome.code(), 0);
    }

    async fn kill(&mut self, pid: u32) -> &'static str {
        if self.random.one_in(2) {
            self.daemon.signal(pid, Signal::SIGNAL_SIGTERM).await.expect("send");
            return "signal: terminated";
        }
        self.daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
        // Usually reaped before the reply, on a busy machine soon after.
        until("the process to be reaped", || async { (!is_alive(pid)).then_some(()) }).await;
        "signal: killed"
    }

    async fn signalled(&mut self) {
        let mut request = command("sleep", &["1000"]);
        request.stdin = Some(self.random.one_in(2));
        if self.random.one_in(3) {
            request.stdin = None;
            request.pty = PTY { size: self.size().into(), ..Default::default() }.into();
        }
        let (pid, events) = self.start(request).await;
        // Some processes exit without a follower.
        let events = if self.random.one_in(3) { None } else { Some(self.maybe_reconnect(pid, events).await) };
        let status = self.kill(pid).await;
        let mut events = match events {
            Some(events) => events,
            None => self.follow(pid).await,
        };
        let end = events.rest().await.end.expect("an end event");
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, status));
    }

    /// Checks that a deadline kills the process.
    ///
    /// It may pass before the start; then the process is killed without a follower, which the end of the soak checks.
    async fn deadline(&mut self) {
        let milliseconds = (10 + self.random.below(200)).to_string();
        let headers = [("connect-timeout-ms", milliseconds.as_str())];
        let mut events = self.start_with(&headers, command("sleep", &["1000"])).await;
        let mut pid = None;
        let error = loop {
            match events.next().await {
                Ok(Some(StreamEvent::Start(started))) => {
                    assert_eq!(pid.replace(started), None, "a second start");
                    if self.random.one_in(3) {
                        // The deadline applies without a follower too.
                        drop(events);
                        break None;
                    }
                }
                Err(error) => break Some(error.code),
                other => panic!("{other:?}"),
            }
        };
        assert!(error.is_none_or(|code| code == "deadline_exceeded"));
        if let Some(pid) = pid {
            until("the process to die", || async { (!is_alive(pid)).then_some(()) }).await;
        }
    }

    async fn followers(&mut self) {
        let lines = self.random.below(3_000);
        let mut request = shell(&format!("read line; seq 1 {lines}; exit 9"));
        request.stdin = Some(true);
        let (pid, first) = self.start(request).await;
        let mut following = vec![first];
        for _ in 0..1 + self.random.below(4) {
            following.push(self.follow(pid).await);
        }
        let gone = self.random.below(u32::try_from(following.len()).expect("fits")) as usize;
        drop(following.swap_remove(gone));
        self.daemon.feed(pid, b"\n").await;
        // Concurrently, because a process waits for its slowest follower.
        let outcomes = futures::future::join_all(following.iter_mut().map(Events::rest)).await;
        for outcome in outcomes {
            assert!(outcome.stdout() == numbers(lines), "{} bytes of {lines} lines", outcome.stdout.len());
            assert_eq!(outcome.code(), 9);
        }
    }

    async fn keepalive(&mut self) {
        let mut events = self.start_with(&[("keepalive-ping-interval", "1")], command("sleep", &["1000"])).await;
        let pid = events.pid().await;
        assert_eq!(events.next().await, Ok(Some(StreamEvent::Keepalive)));
        let status = self.kill(pid).await;
        assert_eq!(events.rest().await.end.expect("an end event").status, status);
    }

    /// Disconnects during the request, or before its reply. If the process was started, it exits by itself.
    async fn disconnects_before(&mut self) {
        let mut request = command("seq", &["1", "1000"]);
        request.tag = Some(self.tag.clone());
        let codec = self.random.codec();
        if self.random.one_in(2) {
            let message = envelope(0, &codec.encode(&request));
            let head = format!(
                "POST {START} HTTP/1.1\r\nhost: guest\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
                codec.streaming(),
                message.len()
            );
            let text = [head.as_bytes(), &message].concat();
            let cut = 1 + self.random.below(u32::try_from(text.len()).expect("fits")) as usize;
            let mut stream = TcpStream::connect(("127.0.0.1", self.daemon.port)).await.expect("the daemon listens");
            stream.write_all(&text[..cut]).await.expect("send");
            return;
        }
        let mut polls = self.random.below(POLLS_MAX);
        let mut started = Box::pin(self.daemon.launch_with(codec, &[], &request));
        std::future::poll_fn(|context| {
            if polls == 0 || started.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            polls -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    async fn disconnects_during(&mut self) {
        let (pid, mut events) = self.start(shell("head -c 300000 /dev/zero; exit 4")).await;
        for _ in 0..self.random.below(4) {
            assert!(matches!(events.next().await, Ok(Some(StreamEvent::Stdout(_)))));
        }
        drop(events);
        let mut events = self.follow(pid).await;
        assert_eq!(events.rest().await.code(), 4);
    }

    async fn disconnects_after(&mut self) {
        let code = self.random.below(256);
        let (pid, mut events) = self.start(shell(&format!("echo out; exit {code}"))).await;
        events.rest().await;
        let outcome = self.follow(pid).await.rest().await;
        assert!(outcome.stdout.is_empty(), "earlier output is not repeated");
        assert_eq!(i64::from(outcome.code()), i64::from(code));
    }

    async fn rejected(&mut self) {
        if self.random.one_in(2) {
            let (_, mut events) = self.start(command("/nonexistent/program", &[])).await;
            assert_eq!(events.rest().await.code(), 127);
            return;
        }
        let mut request = command("true", &[]);
        request.process.get_or_insert_default().cwd = Some("/nonexistent/folder".to_owned());
        let error = self.start_with(&[], request).await.next().await.expect_err("missing directory");
        assert_eq!(error.code, "invalid_argument");
    }
}

/// Returns the output of `seq 1 COUNT`.
fn numbers(count: u32) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}
