//! A running process. Its task publishes output to every follower, then the end.
//!
//! The task owns the child. It reads output only as fast as the slowest follower takes it, but waits for none that
//! takes nothing ([`followers`](super::followers)); without followers it reads and discards output, so that the process
//! never blocks. The end is published when the process is reaped *and* its output has ended. After a signal through the
//! daemon it is published immediately, because the client that kills a process must not wait until its descendants
//! close a pipe.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connectrpc::ConnectError;
use hearth_envd_api::process::__buffa::oneof::process_event::data_event::Output;
use hearth_envd_api::process::ProcessConfig;
use hearth_envd_api::process::process_event::EndEvent;
use rustix::process::{Signal, kill_process, pidfd_send_signal};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::process::ChildStdin;
use tokio_util::sync::CancellationToken;

use crate::cgroups::Leaf;
use crate::log::{Level, Log, OutputLines};
use crate::rpc;
use crate::state::State;

use super::child::{Child, Streams, pid_of, window};
use super::followers::{Feed, Followers};
use super::output::{Destination, Source};
use super::registry::Registry;

/// Largest piece of output in one event.
const PIPE_CHUNK_BYTES: usize = 32 * 1024;
const TERMINAL_CHUNK_BYTES: usize = 16 * 1024;
/// Time that a kill waits until the process is reaped, so that its pid is free when the client has the reply.
///
/// Usually that takes a millisecond; an overloaded guest takes longer.
const REAP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that remaining output is read after a kill. Only descendants hold a pipe open for longer.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(20);

/// Time after its exit in which a process with open output is still followed like a running one.
///
/// Later followers receive the end immediately: a program that the process started holds its output open, maybe for
/// days.
const OUTLIVED_AFTER: Duration = Duration::from_secs(1);

/// Silence that ends a terminal's output after its process has exited.
///
/// At that exit the terminal is hung up, and nothing more can be written to it. Programs may still have it open.
const HANG_UP_SILENCE: Duration = Duration::from_millis(100);

/// Kind of input that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stdin {
    Pipe,
    Terminal,
}

/// A running process.
#[derive(Debug)]
pub(super) struct RunningProcess {
    pid: u32,
    pidfd: Option<OwnedFd>,
    config: ProcessConfig,
    tag: Option<String>,
    input: Input,
    followers: Arc<Followers>,
    group: Option<Leaf>,
    state: Arc<State>,
    /// Cancelled when a signal is sent through the daemon.
    signalled: CancellationToken,
    reaped: CancellationToken,
}

/// Destination of input. The lock is held while a message is written, so concurrent messages do not mix.
#[derive(Debug)]
enum Input {
    Pipe(tokio::sync::Mutex<Option<ChildStdin>>),
    Terminal { descriptor: Arc<AsyncFd<OwnedFd>>, turn: tokio::sync::Mutex<()> },
}

/// Sources of output.
enum Sources {
    Pipes(Source, Source),
    Terminal(Source),
}

impl RunningProcess {
    /// Adds the process to the registry and starts its task. The feed receives all output from the start.
    pub(super) fn start(child: Child, registry: &Arc<Registry>, state: Arc<State>) -> (Arc<Self>, Feed) {
        let Child { process, pid, pidfd, config, tag, streams, group } = child;
        let (input, sources) = match streams {
            Streams::Pipes { stdin, stdout, stderr } => {
                let pipe =
                    |descriptor, kind| Source { descriptor: Arc::new(descriptor), kind, chunk_bytes: PIPE_CHUNK_BYTES };
                let sources = Sources::Pipes(pipe(stdout, Output::Stdout), pipe(stderr, Output::Stderr));
                (Input::Pipe(tokio::sync::Mutex::new(stdin)), sources)
            }
            Streams::Terminal(descriptor) => {
                let descriptor = Arc::new(descriptor);
                let input =
                    Input::Terminal { descriptor: Arc::clone(&descriptor), turn: tokio::sync::Mutex::default() };
                let source = Source { descriptor, kind: Output::Pty, chunk_bytes: TERMINAL_CHUNK_BYTES };
                (input, Sources::Terminal(source))
            }
        };
        let live = Arc::new(Self {
            pid,
            pidfd,
            config,
            tag,
            input,
            followers: Arc::default(),
            group,
            state,
            signalled: CancellationToken::new(),
            reaped: CancellationToken::new(),
        });
        let feed = live.followers.add();
        live.log_start();
        live.state.activity.notify_one();
        registry.insert(Arc::clone(&live));
        tokio::spawn(Arc::clone(&live).run(process, sources, Arc::clone(registry)));
        (live, feed)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn config(&self) -> &ProcessConfig {
        &self.config
    }

    pub(super) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns true if the process has exited and was reaped; its output may not have ended.
    pub(super) fn is_reaped(&self) -> bool {
        self.reaped.is_cancelled()
    }

    /// Adds a follower of all output from now on.
    pub(super) fn subscribe(&self) -> Feed {
        self.followers.add()
    }

    pub(super) fn followers(&self) -> &Arc<Followers> {
        &self.followers
    }

    async fn run(self: Arc<Self>, mut process: tokio::process::Child, sources: Sources, registry: Arc<Registry>) {
        let mut output = Box::pin(self.read(sources));
        let mut drained = false;
        let mut status = None;
        let mut outlived_at = None;
        // All arms are cancel safe: publishing output resumes at the same place, and waiting takes nothing.
        while status.is_none() || !drained {
            tokio::select! {
                () = &mut output, if !drained => drained = true,
                exit = process.wait(), if status.is_none() => {
                    self.reaped.cancel();
                    status = Some(exit.ok());
                    outlived_at = Some(Instant::now() + OUTLIVED_AFTER);
                }
                () = rpc::deadline_passed(outlived_at), if outlived_at.is_some() => {
                    outlived_at = None;
                    registry.retire_outlived(&self, end_event(status.flatten()));
                }
                () = self.signalled.cancelled(), if status.is_some() => {
                    let _ = tokio::time::timeout(DRAIN_TIMEOUT, &mut output).await;
                    drained = true;
                }
            }
        }
        // Closes the daemon's ends of the pipes: remaining writers get EPIPE.
        drop(output);
        let end = end_event(status.flatten());
        self.log_end(&end);
        registry.retire(&self);
        self.followers.finish(end);
        self.state.idle.work_finished();
        self.state.activity.notify_one();
    }

    async fn read(&self, sources: Sources) {
        let never = std::future::pending;
        match sources {
            Sources::Pipes(stdout, stderr) => {
                let (out, err) = (self.destination("stdout"), self.destination("stderr"));
                tokio::join!(stdout.copy(out, never), stderr.copy(err, never));
            }
            Sources::Terminal(source) => source.copy(self.destination("pty"), || self.reaped_and_silent()).await,
        }
    }

    fn destination(&self, stream: &'static str) -> Destination<'_> {
        Destination { followers: &self.followers, log: self.log(), lines: OutputLines::new(self.pid, stream) }
    }

    fn log(&self) -> &Log {
        self.state.log()
    }

    fn log_start(&self) {
        let command: Vec<&str> =
            std::iter::once(&self.config.cmd).chain(&self.config.args).map(String::as_str).collect();
        let fields = [("event_type", json!("process_start")), ("pid", self.pid.into())];
        self.log().write(Level::Info, "process", &command.join(" "), fields);
    }

    fn log_end(&self, end: &EndEvent) {
        let fields = [
            ("event_type", json!("process_end")),
            ("pid", self.pid.into()),
            ("exit_code", end.exit_code.into()),
            ("output_bytes", self.followers.bytes().into()),
        ];
        self.log().write(Level::Info, "process", &end.status, fields);
    }

    async fn reaped_and_silent(&self) {
        self.reaped.cancelled().await;
        tokio::time::sleep(HANG_UP_SILENCE).await;
    }

    /// Writes all bytes; waits while the process does not read.
    pub(super) async fn write(&self, kind: Stdin, bytes: &[u8]) -> Result<(), ConnectError> {
        match (&self.input, kind) {
            (Input::Pipe(stdin), Stdin::Pipe) => {
                let mut stdin = stdin.lock().await;
                let pipe = stdin.as_mut().ok_or_else(|| ConnectError::internal("stdin is not enabled or is closed"))?;
                let written = pipe.write_all(bytes).await;
                written.map_err(|error| ConnectError::internal(format!("error writing to stdin: {error}")))
            }
            (Input::Terminal { descriptor, turn }, Stdin::Terminal) => {
                let _turn = turn.lock().await;
                let written = write_terminal(descriptor, bytes).await;
                written.map_err(|error| ConnectError::internal(format!("error writing to the pty: {error}")))
            }
            (Input::Terminal { .. }, Stdin::Pipe) => {
                Err(ConnectError::internal("the process has a pty, so input must be sent as pty input"))
            }
            (Input::Pipe(_), Stdin::Terminal) => Err(ConnectError::internal("the process has no pty")),
        }
    }

    pub(super) async fn close_stdin(&self) -> Result<(), ConnectError> {
        match &self.input {
            Input::Pipe(stdin) => {
                stdin.lock().await.take();
                Ok(())
            }
            Input::Terminal { .. } => Err(ConnectError::unknown("cannot close the stdin of a pty: send 0x04 instead")),
        }
    }

    pub(super) fn resize(&self, cols: u32, rows: u32) -> Result<(), ConnectError> {
        match &self.input {
            Input::Terminal { descriptor, .. } => {
                let resized = rustix::termios::tcsetwinsize(descriptor.get_ref(), window(cols, rows));
                resized.map_err(|error| ConnectError::internal(format!("error resizing the pty: {error}")))
            }
            Input::Pipe(_) => Err(ConnectError::internal("the process has no pty")),
        }
    }

    /// Sends a signal to this process, and ends the wait for its output.
    ///
    /// With SIGKILL, every process in its control group is killed too, and this returns once the process is reaped, or
    /// after [`REAP_TIMEOUT`]. Cancel safe: the signal is sent before the first await.
    pub(super) async fn signal(&self, signal: Signal) -> Result<(), ConnectError> {
        // A reaped process that is still listed waits for a descendant to close its output; this wait ends now.
        if !self.reaped.is_cancelled() {
            let sent = match (&self.pidfd, pid_of(self.pid)) {
                (Some(pidfd), _) => pidfd_send_signal(pidfd, signal),
                (None, Some(pid)) => kill_process(pid, signal),
                (None, None) => Err(rustix::io::Errno::SRCH),
            };
            match sent {
                // It was reaped meanwhile.
                Err(rustix::io::Errno::SRCH) if self.reaped.is_cancelled() => {}
                Err(error) => return Err(ConnectError::internal(format!("error sending the signal: {error}"))),
                Ok(()) => {}
            }
        }
        self.signalled.cancel();
        if signal == Signal::KILL {
            if let Some(Err(error)) = self.group.as_ref().map(Leaf::kill) {
                self.log().error("process", format!("killing the control group of process {}: {error}", self.pid));
            }
            // A process in an uninterruptible sleep dies later; the signal was delivered.
            let _ = tokio::time::timeout(REAP_TIMEOUT, self.reaped.cancelled()).await;
        }
        Ok(())
    }

    /// Kills the process at `deadline`, regardless of its followers.
    pub(super) fn kill_at(self: &Arc<Self>, deadline: Instant) {
        let live = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => {
                    // It may have exited meanwhile.
                    let _ = live.signal(Signal::KILL).await;
                }
                () = live.reaped.cancelled() => {}
            }
        });
    }
}

async fn write_terminal(descriptor: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = descriptor.writable().await?;
        if let Ok(written) = ready.try_io(|inner| Ok(rustix::io::write(inner.get_ref(), bytes)?)) {
            bytes = &bytes[written?..];
        }
    }
    Ok(())
}

fn end_event(status: Option<ExitStatus>) -> EndEvent {
    let Some(status) = status else {
        // Only a defect could have reaped it elsewhere: report that rather than invent a code.
        let text = "the exit status was lost".to_owned();
        return EndEvent {
            exit_code: -1,
            exited: false,
            status: text.clone(),
            error: Some(text),
            ..Default::default()
        };
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => {
            let text = format!("exit status {code}");
            let error = (code != 0).then(|| text.clone());
            EndEvent { exit_code: code, exited: true, status: text, error, ..Default::default() }
        }
        (None, signal) => {
            let dumped = if status.core_dumped() { " (core dumped)" } else { "" };
            let text = format!("signal: {}{dumped}", signal_name(signal.unwrap_or_default()));
            EndEvent { exit_code: -1, exited: false, status: text.clone(), error: Some(text), ..Default::default() }
        }
    }
}

/// Returns the contract's name of a signal.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_events_as_in_the_contract() {
        // wait(2): the code is in the second byte, the signal in the first, 0x80 means a core file.
        for (raw, code, exited, status) in [
            (0, 0, true, "exit status 0"),
            (2 << 8, 2, true, "exit status 2"),
            (9, -1, false, "signal: killed"),
            (11 | 0x80, -1, false, "signal: segmentation fault (core dumped)"),
            (40, -1, false, "signal: signal 40"),
        ] {
            let end = end_event(Some(ExitStatus::from_raw(raw)));
            assert_eq!((end.exit_code, end.exited, end.status.as_str()), (code, exited, status));
            assert_eq!(end.error.is_none(), raw == 0);
        }
    }
}
