//! A context: one kernel and its bookkeeping, owned by one task.
//!
//! ```text
//!              start fails                  request, start fails again
//!   starting ───────────────> without kernel ────────┐
//!      │                          ^    │ <───────────┘
//!      v        kernel exits      │    │ next execution
//!    idle ────────────────────────┴────┴─> starting
//!      │ ^
//!      v │ idle and reply, or restart after the deadline
//!   running ── exit, restart, lost connection ──> starting
//! ```
//!
//! Executions run one at a time, in order of arrival. Commands overtake them. The next execution starts only when the
//! kernel has finished the one before, or was replaced.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::environment::{Environment, Generation};
use crate::kernel::{Kernel, KernelEvent, Launch, StartError};
use crate::language::{Language, Variables};
use crate::stream::Sender;
use crate::{event, log};

mod run;

use run::{Code, Ended};

/// Executions that wait in one context. A client waits for each of its own, so this many clients share a context.
const QUEUED_MAX: usize = 128;
/// Commands that wait: each is handled at once.
const COMMANDS_MAX: usize = 16;
/// Attempts to run code that the kernel did not start: an earlier interrupt may abort it.
const ATTEMPTS_MAX: usize = 4;
/// Life time of a kernel below which it is not replaced before the next execution: it would exit again.
const LIFE_MIN: Duration = Duration::from_secs(5);
/// Time for code that prepares the kernel.
const PREPARE_MAX: Duration = Duration::from_secs(60);
/// Time for the warm-up code, which imports large packages.
const WARM_UP_MAX: Duration = Duration::from_secs(600);
/// Time in which a client must take the errors that end its stream.
const LAST_LINES_MAX: Duration = Duration::from_secs(5);
/// Time in which a kernel that announced its exit must have exited.
const EXIT_MAX: Duration = Duration::from_secs(5);

/// Public description of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Description {
    pub(crate) id: String,
    pub(crate) language: String,
    pub(crate) cwd: String,
}

/// Parameters of a new context.
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) language: Language,
    /// Language of the code that prepares the kernel.
    pub(crate) dialect: Language,
    /// Requested working directory.
    pub(crate) cwd: String,
    pub(crate) launch: Launch,
    pub(crate) environment: Arc<Environment>,
    /// File with code that runs silently before the context is ready.
    pub(crate) warm_up: Option<PathBuf>,
}

/// Reason that a context was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("Failed to set working directory")]
    Directory,
    #[error("the context was deleted while it started")]
    Deleted,
}

/// One execution of a client.
pub(crate) struct Execution {
    pub(crate) code: String,
    pub(crate) variables: Variables,
    pub(crate) token: Option<HeaderValue>,
    pub(crate) stream: Sender,
    /// Share of the memory for code that waits or runs.
    pub(crate) share: OwnedSemaphorePermit,
}

/// Change that a client requests.
pub(crate) enum Command {
    Restart(oneshot::Sender<Result<(), StartError>>),
    Delete(oneshot::Sender<()>),
}

/// Reason that an execution was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is full.
    Busy,
    /// The context was deleted.
    Deleted,
}

/// Handle of a running context.
pub(crate) struct Context {
    pub(crate) description: Description,
    pub(crate) language: Language,
    executions: mpsc::Sender<Execution>,
    commands: mpsc::Sender<Command>,
}

impl Context {
    /// Starts a context and returns when its kernel is ready.
    pub(crate) async fn start(plan: Plan) -> Result<Self, CreateError> {
        let (executions, queue) = mpsc::channel(QUEUED_MAX);
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let (ready, started) = oneshot::channel();
        let description =
            Description { id: plan.id.clone(), language: plan.language.name().to_owned(), cwd: plan.cwd.clone() };
        let language = plan.language.clone();
        tokio::spawn(Owner::new(plan, queue, command_queue).run(ready));
        // The task drops its sender only when it ends.
        started.await.unwrap_or(Err(CreateError::Deleted))?;
        Ok(Self { description, language, executions, commands })
    }

    /// Queues an execution.
    pub(crate) fn execute(&self, execution: Execution) -> Result<(), Refused> {
        self.executions.try_send(execution).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refused::Busy,
            mpsc::error::TrySendError::Closed(_) => Refused::Deleted,
        })
    }

    /// Sends a command; false if the context no longer exists.
    pub(crate) async fn command(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }
}

/// Task that owns a kernel.
struct Owner {
    plan: Plan,
    executions: mpsc::Receiver<Execution>,
    commands: mpsc::Receiver<Command>,
    kernel: Option<Kernel>,
    started: Instant,
    /// Sandbox variables that the kernel has.
    applied: Arc<Variables>,
    /// Generation at which the kernel was seeded.
    seeded: Generation,
    /// Executions that the kernel counted and clients do not see.
    uncounted: i64,
}

/// Decision after an event.
enum Next {
    Continue,
    Stop,
}

impl Owner {
    fn new(plan: Plan, executions: mpsc::Receiver<Execution>, commands: mpsc::Receiver<Command>) -> Self {
        let started = Instant::now();
        Self { plan, executions, commands, kernel: None, started, applied: Arc::default(), seeded: None, uncounted: 0 }
    }

    async fn run(mut self, ready: oneshot::Sender<Result<(), CreateError>>) {
        let outcome = self.create().await;
        let is_ready = outcome.is_ok();
        let _ = ready.send(outcome);
        if !is_ready {
            return;
        }
        while let Next::Continue = self.step().await {}
        // Streams of waiting executions end with an error, not in the middle.
        self.commands.close();
        self.executions.close();
        while let Some(execution) = self.executions.recv().await {
            fail(execution.stream, &[run::UNEXPECTED_END]).await;
        }
    }

    /// Starts the kernel for the first time, and runs the warm-up.
    async fn create(&mut self) -> Result<(), CreateError> {
        self.start().await?;
        if let Some(code) = self.directory_code() {
            let ended = self.prepare(code, PREPARE_MAX).await;
            if !matches!(ended, Ended::Finished { failed: false, .. }) {
                return Err(CreateError::Directory);
            }
        }
        let code = self.plan.warm_up.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        if let Some(code) = code.filter(|code| !code.trim().is_empty()) {
            let begun = Instant::now();
            let ended = self.prepare(code, WARM_UP_MAX).await;
            let is_sound = matches!(ended, Ended::Finished { failed: false, .. });
            if !ended.keeps_kernel() {
                self.stop().await;
                self.start_prepared().await?;
            }
            let millis = begun.elapsed().as_millis();
            let language = self.plan.language.name();
            log::line("warm-up finished", &[("language", &language), ("ok", &is_sound), ("ms", &millis)]);
        }
        Ok(())
    }

    /// Waits for the next event while no code runs.
    async fn step(&mut self) -> Next {
        let idle = idle(&mut self.kernel);
        tokio::select! {
            biased;
            command = self.commands.recv() => match command {
                Some(command) => self.apply(command).await,
                None => Next::Stop,
            },
            () = idle => self.replace_quietly().await,
            execution = self.executions.recv() => match execution {
                Some(execution) => self.execute(execution).await,
                None => Next::Stop,
            },
        }
    }

    async fn apply(&mut self, command: Command) -> Next {
        match command {
            Command::Delete(done) => {
                self.stop().await;
                let _ = done.send(());
                Next::Stop
            }
            Command::Restart(done) => {
                self.stop().await;
                let outcome = self.start_prepared().await;
                let _ = done.send(outcome);
                Next::Continue
            }
        }
    }

    /// Replaces a kernel that exited or closed its sockets while it was idle.
    async fn replace_quietly(&mut self) -> Next {
        let lived = self.started.elapsed();
        self.log_exit("kernel exited while idle");
        self.stop().await;
        // Otherwise the next execution starts it.
        if lived > LIFE_MIN {
            let _ = self.start_prepared().await;
        }
        Next::Continue
    }

    async fn stop(&mut self) {
        if let Some(kernel) = self.kernel.take() {
            kernel.kill().await;
        }
    }

    /// Starts a kernel. A client that deletes the context meanwhile waits for it.
    async fn start(&mut self) -> Result<(), StartError> {
        self.started = Instant::now();
        self.applied = Arc::default();
        self.uncounted = 0;
        self.seeded = self.plan.environment.generation();
        let kernel = Kernel::start(&self.plan.launch).await;
        if let Err(error) = &kernel {
            log::line("kernel start failed", &[("context", &self.plan.id), ("error", error)]);
        }
        self.kernel = Some(kernel?);
        if let Some(code) = self.plan.dialect.start_code() {
            self.prepare(code.to_owned(), PREPARE_MAX).await;
        }
        Ok(())
    }

    /// Starts a kernel in the context's working directory.
    async fn start_prepared(&mut self) -> Result<(), StartError> {
        self.start().await?;
        if let Some(code) = self.directory_code() {
            self.prepare(code, PREPARE_MAX).await;
        }
        Ok(())
    }

    /// Code that enters the working directory, unless the kernel starts in it.
    fn directory_code(&self) -> Option<String> {
        let is_other = self.plan.launch.directory.as_os_str() != self.plan.cwd.as_str();
        is_other.then(|| self.plan.dialect.directory_code(&self.plan.cwd)).flatten()
    }

    fn log_exit(&self, message: &str) {
        let stderr = self.kernel.as_ref().map(Kernel::stderr).unwrap_or_default();
        log::line(message, &[("context", &self.plan.id), ("stderr", &stderr.trim())]);
    }

    /// Runs one execution and everything around it.
    async fn execute(&mut self, execution: Execution) -> Next {
        let Execution { code, variables, token, stream, share: _share } = execution;
        if stream.is_gone() {
            return Next::Continue;
        }
        if self.kernel.is_none()
            && let Err(error) = self.start_prepared().await
        {
            let line = event::error("ContextRestarting", &format!("The kernel did not start: {error}"), "");
            send_all(&stream, vec![line]).await;
            return Next::Continue;
        }
        let sandbox = self.plan.environment.variables(token.as_ref()).await;
        let sandbox = sandbox.unwrap_or_else(|| Arc::clone(&self.applied));
        if let Some(code) = self.preparation(&sandbox, &variables) {
            let ended = self.prepare(code, PREPARE_MAX).await;
            if !ended.keeps_kernel() {
                fail(stream, errors(&ended)).await;
                return self.recover(ended).await;
            }
        }
        self.applied = sandbox;
        let ended = self.run_code(&code, &stream).await;
        // The stream ends before the clean-up and a new start, which only the next execution waits for.
        match errors(&ended) {
            [] => drop(stream),
            errors => fail(stream, errors).await,
        }
        if !ended.keeps_kernel() {
            return self.recover(ended).await;
        }
        match self.restoration(&variables) {
            Some(code) => {
                let ended = self.prepare(code, PREPARE_MAX).await;
                self.recover(ended).await
            }
            None => Next::Continue,
        }
    }

    /// Runs the code of a client, again if the kernel did not start it.
    async fn run_code(&mut self, code: &str, stream: &Sender) -> Ended {
        for _ in 1..ATTEMPTS_MAX {
            let ended = self.drive(Code::visible(code), Some(stream), None).await;
            if !matches!(ended, Ended::Aborted) {
                return ended;
            }
        }
        match self.drive(Code::visible(code), Some(stream), None).await {
            Ended::Aborted => {
                send_all(stream, vec![event::error("ExecutionAborted", "Execution was aborted", "")]).await;
                Ended::Finished { failed: true, asks_exit: false }
            }
            ended => ended,
        }
    }

    /// Code that runs before an execution: one request for everything that is out of date.
    fn preparation(&mut self, sandbox: &Arc<Variables>, variables: &Variables) -> Option<String> {
        let dialect = &self.plan.dialect;
        let mut code = Vec::new();
        let generation = self.plan.environment.generation();
        if generation != self.seeded {
            self.seeded = generation;
            code.extend(dialect.reseed_code(random_seed()));
        }
        let mut set = Variables::new();
        let mut removed = Vec::new();
        if !Arc::ptr_eq(sandbox, &self.applied) {
            let gone = self.applied.keys().filter(|name| !sandbox.contains_key(*name));
            (set, removed) = self.restored(gone);
            set.extend(sandbox.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        set.extend(variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        removed.retain(|name| !set.contains_key(*name));
        code.extend(dialect.variables_code(&set, &removed));
        (!code.is_empty()).then(|| code.join("\n"))
    }

    /// Code that undoes the variables of one execution.
    fn restoration(&self, variables: &Variables) -> Option<String> {
        let (sandbox, others): (Vec<_>, _) = variables.keys().partition(|name| self.applied.contains_key(*name));
        let (mut set, removed) = self.restored(others.into_iter());
        set.extend(sandbox.into_iter().filter_map(|name| Some((name.clone(), self.applied.get(name)?.clone()))));
        self.plan.dialect.variables_code(&set, &removed)
    }

    /// Splits variables without a value of the sandbox into those that the kernel was started with and others.
    fn restored<'a>(&self, names: impl Iterator<Item = &'a String>) -> (Variables, Vec<&'a str>) {
        let mut set = Variables::new();
        let mut removed = Vec::new();
        for name in names {
            let own = self.plan.launch.spec.env.get(name).cloned().or_else(|| std::env::var(name).ok());
            match own.filter(|_| self.plan.dialect.has_environment()) {
                Some(value) => drop(set.insert(name.clone(), value)),
                None => removed.push(name.as_str()),
            }
        }
        (set, removed)
    }

    /// Runs code silently.
    async fn prepare(&mut self, code: String, limit: Duration) -> Ended {
        self.uncounted += i64::from(self.plan.dialect.counts_silent_code());
        self.drive(Code::silent(&code), None, Some(limit)).await
    }

    /// Replaces the kernel if the code ended it, and applies a command that arrived meanwhile.
    async fn recover(&mut self, ended: Ended) -> Next {
        match ended {
            Ended::Finished { asks_exit: false, .. } | Ended::Aborted => Next::Continue,
            Ended::Finished { asks_exit: true, .. } => {
                self.await_exit().await;
                self.restart().await
            }
            Ended::Exited | Ended::Lost | Ended::NotSent | Ended::Late => {
                self.log_exit("kernel replaced");
                self.restart().await
            }
            Ended::Commanded(command) => self.apply(command).await,
        }
    }

    async fn await_exit(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            let _ = tokio::time::timeout(EXIT_MAX, kernel.exited()).await;
        }
    }

    async fn restart(&mut self) -> Next {
        self.stop().await;
        // A failure was logged; the next execution tries again.
        let _ = self.start_prepared().await;
        Next::Continue
    }
}

/// Waits until a kernel exits or breaks. Output of threads that outlive their execution is discarded. Cancel safe.
async fn idle(kernel: &mut Option<Kernel>) {
    let Some(kernel) = kernel else { return std::future::pending().await };
    while !matches!(kernel.next(true).await, KernelEvent::Lost | KernelEvent::Exited) {}
}

/// Returns the errors that an end means to the client.
fn errors(ended: &Ended) -> &'static [run::MadeUp] {
    match ended {
        Ended::Exited => &[run::RESTARTING],
        Ended::Lost | Ended::Commanded(Command::Restart(_)) => &[run::CONNECTION_LOST, run::UNEXPECTED_END],
        Ended::Commanded(Command::Delete(_)) | Ended::Late => &[run::UNEXPECTED_END],
        Ended::NotSent => &[run::NOT_SENT],
        Ended::Finished { .. } | Ended::Aborted => &[],
    }
}

/// Ends a stream with errors.
async fn fail(stream: Sender, errors: &[run::MadeUp]) {
    let mut lines = Vec::new();
    for error in errors {
        lines.push(event::error(error.name, error.value, ""));
    }
    send_all(&stream, lines).await;
}

/// Sends lines and the last line. A client that does not take them is not waited for.
async fn send_all(stream: &Sender, mut lines: Vec<Bytes>) {
    lines.push(Bytes::from_static(event::END));
    for line in lines {
        if !matches!(tokio::time::timeout(LAST_LINES_MAX, stream.send(line)).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn random_seed() -> u32 {
    // A version 4 UUID starts with random bits.
    u32::try_from(uuid::Uuid::new_v4().as_u128() >> 96).unwrap_or_default()
}
