//! Programs of the host that do parts of a build.
//!
//! A program runs in its own process group, which is killed when the future that waits for it is dropped. Its output is
//! read line by line for progress reports; the end of it is retained for errors.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use hearth_host::process::find_program;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::Error;

/// Number of lines of output that an error quotes.
const TAIL_LINES: usize = 12;
/// Maximum length of a retained line: a tool may draw its progress on one.
const LINE_BYTES_MAX: usize = 400;
/// Maximum number of unread lines; with more, the program blocks.
const LINES_BUFFERED: usize = 64;
/// Pause between two progress reports of a download.
const TICK: Duration = Duration::from_millis(200);

/// A program with its arguments.
#[derive(Debug)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    folder: Option<std::path::PathBuf>,
}

impl Tool {
    /// Creates a tool of a program to look up; `package` is the one that contains it.
    pub(crate) fn new(program: &'static str, package: &'static str) -> Self {
        Self { program, package, arguments: Vec::new(), environment: Vec::new(), folder: None }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(crate) fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name, value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Runs the program until it succeeds or fails.
    ///
    /// `line` receives every line of both outputs, `tick` is called every [`TICK`]. Dropping the future kills the
    /// program and all processes in its group.
    pub(crate) async fn run(
        self,
        action: &'static str,
        mut line: impl FnMut(&str),
        mut tick: impl FnMut(),
    ) -> Result<(), Error> {
        let mut command = Command::new(self.path()?);
        command
            .args(&self.arguments)
            .envs(self.environment)
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        // One pipe for both outputs, so that their lines keep their order.
        let pipe = || Error::file("creating a pipe for", self.program);
        let (output, input) = std::io::pipe().map_err(pipe())?;
        command.stdout(input.try_clone().map_err(pipe())?).stderr(input);
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let mut child = command.spawn().map_err(Error::file("starting", self.program))?;
        let mut group = ProcessGroup::of(&child);
        // Drops this process's copies of the pipe's write end, which `command` holds.
        drop(command);
        let output = Receiver::from_owned_fd(output.into()).map_err(pipe())?;
        let (sender, mut lines) = mpsc::channel(LINES_BUFFERED);
        let reading = forward(output, sender);
        tokio::pin!(reading);
        let mut tail = VecDeque::new();
        let mut clock = tokio::time::interval(TICK);
        let mut still_reading = true;
        // The output ends when the last process that holds the pipe exits. All arms are cancel safe.
        while still_reading {
            tokio::select! {
                () = &mut reading => still_reading = false,
                Some(text) = lines.recv() => record_line(&mut tail, text, &mut line),
                _ = clock.tick() => tick(),
            }
        }
        while let Ok(text) = lines.try_recv() {
            record_line(&mut tail, text, &mut line);
        }
        let status = child.wait().await.map_err(Error::file("waiting for", self.program))?;
        group.leader = None;
        if status.success() {
            return Ok(());
        }
        let tail = Vec::from(tail).join("\n");
        Err(Error::Tool { action, program: self.program.to_owned(), status: status.to_string(), tail })
    }

    /// Runs the program and returns the lines of both outputs.
    pub(crate) async fn lines(self, action: &'static str) -> Result<Vec<String>, Error> {
        let mut lines = Vec::new();
        self.run(action, |line| lines.push(line.to_owned()), || {}).await?;
        Ok(lines)
    }

    fn path(&self) -> Result<std::path::PathBuf, Error> {
        let missing = || Error::ToolMissing { program: self.program.to_owned(), package: self.package };
        find_program(OsStr::new(self.program)).ok_or_else(missing)
    }
}

fn record_line(tail: &mut VecDeque<String>, text: String, line: &mut impl FnMut(&str)) {
    line(&text);
    if tail.len() == TAIL_LINES {
        tail.pop_front();
    }
    tail.push_back(text);
}

/// Sends the output line by line until it ends.
async fn forward(output: Receiver, lines: mpsc::Sender<String>) {
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    // A tool that writes invalid text or closes its output is judged by its exit status.
    while reader.read_until(b'\n', &mut bytes).await.is_ok_and(|count| count > 0) {
        bytes.truncate(LINE_BYTES_MAX);
        let line = String::from_utf8_lossy(&bytes).trim().to_owned();
        bytes.clear();
        if !line.is_empty() && lines.send(line).await.is_err() {
            return;
        }
    }
}

/// A process group that is killed on drop, unless its leader has exited by itself.
struct ProcessGroup {
    leader: Option<Pid>,
}

impl ProcessGroup {
    fn of(child: &tokio::process::Child) -> Self {
        let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Self { leader }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // The leader has not been waited for, so its process id cannot belong to another process yet.
        if let Some(leader) = self.leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tool {
        Tool::new("sh", "dash").args(["-c", script])
    }

    #[tokio::test]
    async fn a_failure_quotes_the_end_of_the_output() {
        let script = "for i in $(seq 1 100); do echo line $i; done; echo sorry >&2; exit 7";
        let error = shell(script).lines("counting").await.expect_err("fails");
        let text = error.to_string();
        assert!(text.starts_with("counting: sh ended with exit status: 7"), "{text}");
        assert!(text.contains("sorry") && text.contains("line 100") && !text.contains("line 50\n"), "{text}");
    }

    #[tokio::test]
    async fn a_missing_program_names_its_package() {
        let error = Tool::new("hearth-no-such-program", "nothing").lines("trying").await.expect_err("missing");
        assert!(matches!(error, Error::ToolMissing { package: "nothing", .. }), "{error}");
    }

    #[tokio::test]
    async fn a_dropped_run_leaves_no_grandchild() {
        let mark = format!("1000.{}", std::process::id());
        let script = format!("sleep {mark} & echo started; wait");
        let (started, mut is_started) = mpsc::channel(1);
        let run = shell(&script).run("sleeping", move |_| started.try_send(()).unwrap_or(()), || {});
        tokio::select! {
            result = run => panic!("ended: {result:?}"),
            _ = is_started.recv() => {}
        }
        for process in hearth_host::process::Process::find_by_argument(&mark) {
            // It was killed, but may take some time to exit.
            process.wait().await;
        }
        assert!(hearth_host::process::Process::find_by_argument(&mark).is_empty());
    }
}
