//! One request to a kernel, from sending the code to the end of its output.
//!
//! A request is finished when the kernel has replied and reported that it is idle. Either message can be lost by a kernel
//! under load, so the other one starts a deadline.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{Command, Owner};
use crate::content::{self, Activity, Reply, ReplyStatus};
use crate::event::{self, StreamName};
use crate::kernel::{Kernel, KernelEvent};
use crate::message::{Kind, Message};
use crate::stream::Sender;
use crate::zmtp::MESSAGE_BYTES_MAX;

/// Time without output after a reply until the report of idleness counts as lost.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Time after a report of idleness until the reply counts as lost.
const REPLY_MAX: Duration = Duration::from_secs(2);
/// Time without any event being taken after which a client counts as gone, although its connection is open.
pub(super) const CLIENT_STALLED_MAX: Duration = Duration::from_secs(600);
/// Time between the report that a kernel is busy and an interrupt, if it does not confirm the code.
///
/// Kernels ignore an interrupt before they run the code.
const CONFIRM_MAX: Duration = Duration::from_millis(300);
/// Times of repeated interrupts after the first one: code may catch it, or run in a library that ignores it.
const INTERRUPTS: [Duration; 2] = [Duration::from_millis(1000), Duration::from_millis(2500)];
/// Time after the client left until the kernel is replaced. A client's next execution waits for it.
const INTERRUPT_MAX: Duration = Duration::from_secs(4);
/// Time in which a kernel that closed its sockets must have exited.
const EXIT_MAX: Duration = Duration::from_millis(500);
/// Time for the output of a kernel that exited, with a client that receives slowly.
const LAST_OUTPUT_MAX: Duration = Duration::from_secs(2);

/// Error that the server makes up, with the contract's texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct MadeUp {
    pub(super) name: &'static str,
    pub(super) value: &'static str,
}

pub(super) const RESTARTING: MadeUp = MadeUp { name: "ContextRestarting", value: "Context was restarted" };
pub(super) const CONNECTION_LOST: MadeUp =
    MadeUp { name: "WebSocketError", value: "The connections was lost, rerun the code to get the results" };
pub(super) const NOT_SENT: MadeUp = MadeUp { name: "WebSocketError", value: "Failed to send execution request" };
pub(super) const UNEXPECTED_END: MadeUp = MadeUp {
    name: "UnexpectedEndOfExecution",
    value: "Connection to the execution was closed before the execution was finished",
};

/// Code to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Code<'a> {
    text: &'a str,
    is_silent: bool,
}

impl<'a> Code<'a> {
    /// Code of a client.
    pub(super) fn visible(text: &'a str) -> Self {
        Self { text, is_silent: false }
    }

    /// Code that is not counted and has no output.
    pub(super) fn silent(text: &'a str) -> Self {
        Self { text, is_silent: true }
    }
}

/// End of a request.
pub(super) enum Ended {
    /// The stream of a client has its last line.
    Finished {
        failed: bool,
        asks_exit: bool,
    },
    /// The kernel did not run the code.
    Aborted,
    /// The kernel exited.
    Exited,
    /// A connection to the kernel broke.
    Lost,
    /// The kernel did not take the request.
    NotSent,
    /// The kernel did not finish in time.
    Late,
    Commanded(Command),
}

impl Ended {
    /// Returns true if the kernel can run the next code.
    pub(super) fn keeps_kernel(&self) -> bool {
        matches!(self, Self::Finished { asks_exit: false, .. } | Self::Aborted)
    }
}

/// State of a request.
struct Turn<'a> {
    id: String,
    stream: Option<&'a Sender>,
    /// Lines that the client has not taken yet.
    lines: VecDeque<Bytes>,
    /// Start of waiting for the client.
    stalled_since: Option<Instant>,
    limit: Option<Instant>,
    uncounted: i64,
    separates_line_ends: bool,
    busy_at: Option<Instant>,
    is_confirmed: bool,
    has_error: bool,
    reply: Option<(Reply, Instant)>,
    idle_at: Option<Instant>,
    last_output: Instant,
    leave: Option<Leave>,
    is_closed: bool,
}

/// Progress of an interrupt after the client left.
struct Leave {
    since: Instant,
    first: Option<Instant>,
    repeated: usize,
}

/// Event of a request.
enum Event {
    Command(Option<Command>),
    ClientGone,
    LineSent(bool),
    Kernel(KernelEvent),
    Deadline,
}

impl Owner {
    /// Sends code to the kernel and follows the request to its end.
    ///
    /// `limit` bounds the run time; the code of a client has none, and is interrupted when the client leaves.
    pub(super) async fn drive(&mut self, code: Code<'_>, stream: Option<&Sender>, limit: Option<Duration>) -> Ended {
        let Some(kernel) = &mut self.kernel else { return Ended::NotSent };
        if stream.is_some_and(Sender::is_gone) {
            return Ended::Finished { failed: true, asks_exit: false };
        }
        let content = json!({
            "code": code.text,
            "silent": code.is_silent,
            "store_history": !code.is_silent,
            "user_expressions": {},
            "allow_stdin": false,
            // Only one request is sent at a time, so there is none to stop.
            "stop_on_error": false,
        });
        let Ok(id) = kernel.request("execute_request", &content).await else { return Ended::NotSent };
        let mut turn = Turn::new(id, stream, limit.map(|limit| Instant::now() + limit));
        turn.uncounted = self.uncounted;
        turn.separates_line_ends = self.plan.dialect.separates_line_ends();
        loop {
            if let Some(ended) = turn.ended() {
                return ended;
            }
            match turn.next_event(kernel, &mut self.commands).await {
                Event::Command(Some(command)) => return Ended::Commanded(command),
                // The context is gone with its handles.
                Event::Command(None) => return Ended::Lost,
                Event::ClientGone | Event::LineSent(false) => turn.leave(),
                Event::LineSent(true) => {
                    turn.lines.pop_front();
                    turn.stalled_since = None;
                    // No output was received meanwhile.
                    turn.last_output = Instant::now();
                }
                Event::Kernel(KernelEvent::Exited) => {
                    turn.take_last_output(kernel).await;
                    return Ended::Exited;
                }
                Event::Kernel(KernelEvent::Lost) => {
                    // A kernel that exits closes its sockets first.
                    let exited = timeout(EXIT_MAX, kernel.exited()).await;
                    turn.take_last_output(kernel).await;
                    return if exited.is_ok() { Ended::Exited } else { Ended::Lost };
                }
                Event::Kernel(received) => turn.take(kernel, received),
                Event::Deadline => {
                    if turn.deadline_passed(kernel).await {
                        return Ended::Late;
                    }
                }
            }
        }
    }
}

impl<'a> Turn<'a> {
    fn new(id: String, stream: Option<&'a Sender>, limit: Option<Instant>) -> Self {
        Self {
            id,
            stream,
            lines: VecDeque::new(),
            stalled_since: None,
            limit,
            uncounted: 0,
            separates_line_ends: false,
            busy_at: None,
            is_confirmed: false,
            has_error: false,
            reply: None,
            idle_at: None,
            last_output: Instant::now(),
            leave: None,
            is_closed: false,
        }
    }

    /// Waits for the next event. Cancel safe, as all of its parts.
    async fn next_event(&mut self, kernel: &mut Kernel, commands: &mut tokio::sync::mpsc::Receiver<Command>) -> Event {
        let line = self.lines.front().cloned();
        let is_blocked = line.is_some();
        if is_blocked {
            self.stalled_since.get_or_insert_with(Instant::now);
        }
        let stream = self.stream.filter(|_| self.leave.is_none());
        let deadline = self.deadline();
        tokio::select! {
            biased;
            command = commands.recv() => Event::Command(command),
            event = client_event(stream, line) => event,
            event = kernel.next(!is_blocked) => Event::Kernel(event),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Event::Deadline,
        }
    }

    /// Handles a message of the kernel.
    fn take(&mut self, kernel: &Kernel, event: KernelEvent) {
        let (message, is_reply) = match event {
            KernelEvent::Output(message) => (message, false),
            KernelEvent::Reply(message) => (message, true),
            KernelEvent::Ignored | KernelEvent::Lost | KernelEvent::Exited => return,
        };
        let Some(message) = kernel.parse(message).filter(|message| message.parent == self.id) else { return };
        if is_reply {
            if message.kind == Kind::ExecuteReply && self.reply.is_none() {
                self.reply = Some((content::reply(&message.content), Instant::now()));
            }
            return;
        }
        self.last_output = Instant::now();
        match message.kind {
            Kind::Status => match content::activity(&message.content) {
                Some(Activity::Busy) => self.busy_at = self.busy_at.or(Some(Instant::now())),
                Some(Activity::Idle) => self.idle_at = self.idle_at.or(Some(Instant::now())),
                _ => {}
            },
            _ if self.idle_at.is_some() => {}
            Kind::ExecuteInput => {
                let line =
                    (!self.is_confirmed).then(|| content::count_event(&message.content, self.uncounted)).flatten();
                self.is_confirmed = true;
                self.push(line);
            }
            _ => {
                let lines = self.output_lines(&message);
                self.push(lines);
            }
        }
    }

    /// Makes the events of an output message.
    fn output_lines(&mut self, message: &Message) -> Vec<Bytes> {
        if message.content.is_empty() && message.dropped_bytes > 0 {
            return too_large(message).into_iter().collect();
        }
        let line = match message.kind {
            Kind::Stream => {
                let now = jiff::Timestamp::now();
                return content::stream_events(&message.content, now, self.separates_line_ends);
            }
            Kind::DisplayData => content::result_event(&message.content, false),
            Kind::ExecuteResult => content::result_event(&message.content, true),
            Kind::Error if !self.has_error => {
                let line = content::error_event(&message.content);
                self.has_error = line.is_some();
                line
            }
            _ => None,
        };
        line.into_iter().collect()
    }

    fn push(&mut self, lines: impl IntoIterator<Item = Bytes>) {
        if self.stream.is_some() && self.leave.is_none() && !self.is_closed {
            self.lines.extend(lines);
        }
    }

    /// Returns the end if the request is over and the client has taken its lines.
    fn ended(&mut self) -> Option<Ended> {
        let now = Instant::now();
        let is_over = match (&self.reply, self.idle_at) {
            (Some(_), Some(_)) => true,
            (Some((_, at)), None) => self.lines.is_empty() && now >= *at.max(&self.last_output) + IDLE_MAX,
            (None, Some(at)) => now >= at + REPLY_MAX,
            (None, None) => false,
        };
        if !is_over {
            return None;
        }
        let reply = self.reply.as_ref().map(|(reply, _)| reply);
        let status = reply.map_or(&ReplyStatus::Ok, |reply| &reply.status);
        let asks_exit = reply.is_some_and(|reply| reply.asks_exit);
        let mut line = None;
        match status {
            // An interrupted request is not repeated.
            ReplyStatus::Aborted if !self.is_confirmed && self.leave.is_none() => return Some(Ended::Aborted),
            ReplyStatus::Error(error) if !self.has_error => line = Some(error.clone()),
            _ => {}
        }
        let failed = self.has_error || !matches!(status, ReplyStatus::Ok);
        if !self.is_closed {
            self.push(line);
            self.push(Some(Bytes::from_static(event::END)));
            self.is_closed = true;
        }
        self.lines.is_empty().then_some(Ended::Finished { failed, asks_exit })
    }

    /// Marks the client as gone.
    fn leave(&mut self) {
        self.lines.clear();
        self.stalled_since = None;
        self.leave = Some(Leave { since: Instant::now(), first: None, repeated: 0 });
    }

    /// Returns the time of the next timed step.
    fn deadline(&self) -> Option<Instant> {
        let lost = match (&self.reply, self.idle_at) {
            (Some((_, at)), None) if self.lines.is_empty() => Some(*at.max(&self.last_output) + IDLE_MAX),
            (None, Some(at)) => Some(at + REPLY_MAX),
            _ => None,
        };
        let stalled = self.stalled_since.map(|since| since + CLIENT_STALLED_MAX);
        let interrupt = self.leave.as_ref().and_then(|leave| self.next_interrupt(leave));
        [lost, stalled, interrupt, self.limit].into_iter().flatten().min()
    }

    /// Returns the time of the next interrupt, or of the end of all patience.
    fn next_interrupt(&self, leave: &Leave) -> Option<Instant> {
        let end = leave.since + INTERRUPT_MAX;
        let next = match leave.first {
            None if self.is_confirmed => Some(leave.since),
            None => self.busy_at.map(|busy| busy.max(leave.since) + CONFIRM_MAX),
            Some(first) => INTERRUPTS.get(leave.repeated).map(|after| first + *after),
        };
        Some(next.map_or(end, |next| next.min(end)))
    }

    /// Handles a deadline; returns true if the kernel must be replaced.
    async fn deadline_passed(&mut self, kernel: &mut Kernel) -> bool {
        let now = Instant::now();
        if self.limit.is_some_and(|limit| now >= limit) {
            return true;
        }
        if self.stalled_since.is_some_and(|since| now >= since + CLIENT_STALLED_MAX) {
            self.leave();
            return false;
        }
        let Some(leave) = &self.leave else { return false };
        if now >= leave.since + INTERRUPT_MAX {
            return true;
        }
        let is_due = self.next_interrupt(leave).is_some_and(|next| now >= next);
        if is_due && let Some(leave) = &mut self.leave {
            match leave.first {
                None => leave.first = Some(now),
                Some(_) => leave.repeated += 1,
            }
            kernel.interrupt().await;
        }
        false
    }

    /// Passes on what a kernel sent before it exited.
    async fn take_last_output(&mut self, kernel: &mut Kernel) {
        let end = Instant::now() + LAST_OUTPUT_MAX;
        loop {
            while let (Some(stream), Some(line)) = (self.stream, self.lines.pop_front()) {
                if !matches!(timeout_at(end, stream.send(line)).await, Ok(Ok(()))) {
                    return;
                }
            }
            match timeout_at(end, kernel.next(true)).await {
                Ok(event @ (KernelEvent::Output(_) | KernelEvent::Reply(_))) => self.take(kernel, event),
                _ => return,
            }
        }
    }
}

/// Sends the next line, or waits until the client leaves.
async fn client_event(stream: Option<&Sender>, line: Option<Bytes>) -> Event {
    match (stream, line) {
        (Some(stream), Some(line)) => Event::LineSent(stream.send(line).await.is_ok()),
        (Some(stream), None) => {
            stream.gone().await;
            Event::ClientGone
        }
        (None, _) => pending().await,
    }
}

/// Makes the event for a message that was too large.
fn too_large(message: &Message) -> Option<Bytes> {
    let what = match message.kind {
        Kind::Stream => "output",
        Kind::DisplayData | Kind::ExecuteResult => "a result",
        Kind::Error => "an error",
        _ => return None,
    };
    let text = format!(
        "{what} of {} bytes was dropped: the limit of one message is {MESSAGE_BYTES_MAX} bytes. Write it to a file \
         instead.\n",
        message.dropped_bytes
    );
    Some(event::output(StreamName::Stderr, &text, jiff::Timestamp::now()))
}
