//! One QEMU process with its monitor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_host::process::{Process, Spawn};
use hearth_types::guest::ADDRESS;
use serde_json::{Value, json};

use super::command::{self, Start};
use super::qmp::Monitor;
use super::{CONSOLE, LOG, MONITOR};
use crate::machine::Machine;
use crate::{Accelerator, Error};

/// Limit for a VMM to run its main loop.
///
/// It takes 30 ms, or seconds if many start at the same time on a busy host.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Limit for loading device state, which takes milliseconds.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two checks of whether device state is loaded.
const LOAD_POLL: Duration = Duration::from_micros(500);
/// Limit for a killed process to exit; a longer time is logged as an error.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Maximum part of a log that an error quotes.
const LOG_QUOTE_BYTES: usize = 600;

/// A QEMU process.
#[derive(Debug)]
pub(crate) struct Vm {
    process: Process,
    monitor: Option<Monitor>,
    folder: PathBuf,
    /// Number of the descriptor from which the process reads the device state.
    state_fd: Option<RawFd>,
}

impl Vm {
    /// Starts QEMU. The monitor socket listens before QEMU starts, so connecting needs no retries.
    pub(super) fn start(
        program: &Path,
        accelerator: Accelerator,
        machine: &Machine,
        start: &Start<'_>,
    ) -> Result<Self, Error> {
        let folder = machine.folder.clone();
        let listener = OwnedFd::from(listen(&folder)?);
        let log = open_log(&folder.join(LOG))?;
        let mut spawn = Spawn::new(program);
        spawn.args(command::arguments(machine, accelerator, start, listener.as_raw_fd())).output(log).inherit(listener);
        let state_fd = match start {
            Start::Boot(_) => None,
            Start::Restore(snapshot) => {
                let state = open_state(&snapshot.state)?;
                let number = state.as_raw_fd();
                spawn.inherit(state);
                Some(number)
            }
        };
        if let Some(namespace) = &machine.namespace {
            spawn.namespace(namespace);
        }
        if let Some(group) = &machine.cgroup {
            spawn.cgroup(group);
        }
        let process = spawn.spawn().map_err(|source| {
            if source.is_program_missing() {
                Error::ProgramMissing { program: program.display().to_string() }
            } else {
                Error::Spawn { program: program.display().to_string(), source }
            }
        })?;
        Ok(Self { process, monitor: None, folder, state_fd })
    }

    /// Connects the monitor of a VM that was just started. On failure the VM is killed.
    pub(super) async fn connect(&mut self, action: &'static str) -> Result<(), Error> {
        let result = tokio::select! {
            // The exit is checked first: the log then explains more than the broken socket.
            biased;
            () = self.process.wait() => Err(self.exit_error(action)),
            monitor = tokio::time::timeout(START_LIMIT, self.open_monitor()) => match monitor {
                Ok(result) => result,
                Err(_) => Err(Error::Timeout { action, limit: START_LIMIT }),
            },
        };
        match result {
            Ok(monitor) => {
                self.monitor = Some(monitor);
                Ok(())
            }
            Err(error) => {
                let error = self.or_exited(error, action).await;
                self.kill_process().await;
                Err(error)
            }
        }
    }

    /// Replaces an error by [`Error::Exited`] if the process exits: its log explains a broken monitor.
    async fn or_exited(&self, error: Error, action: &'static str) -> Error {
        let grace = Duration::from_millis(200);
        let ended = tokio::time::timeout(grace, self.process.wait()).await.is_ok();
        if ended { self.exit_error(action) } else { error }
    }

    async fn open_monitor(&self) -> Result<Monitor, Error> {
        let folder = open_folder(&self.folder)?;
        Monitor::connect(&path_through(&folder, MONITOR)).await
    }

    fn exit_error(&self, action: &'static str) -> Error {
        Error::Exited { action, log: tail(&self.folder.join(LOG)) }
    }

    async fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        let gone = || Error::Monitor { action: command, source: io::ErrorKind::NotConnected.into() };
        let monitor = self.monitor.as_mut().ok_or_else(gone)?;
        let result = monitor.execute(command, arguments).await;
        if let Err(Error::Monitor { .. } | Error::Timeout { .. }) = &result {
            // The next reply may belong to this command, so the connection cannot be used any more.
            self.monitor = None;
        }
        result
    }

    /// Loads the device state that [`start`](Self::start) passed to the process. On failure the VM is killed.
    pub(super) async fn load_state(&mut self) -> Result<(), Error> {
        let loaded = match tokio::time::timeout(LOAD_LIMIT, self.load()).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { action: "loading device state", limit: LOAD_LIMIT }),
        };
        if let Err(error) = loaded {
            let error = self.or_exited(error, "loading device state").await;
            self.kill_process().await;
            return Err(error);
        }
        Ok(())
    }

    async fn load(&mut self) -> Result<(), Error> {
        let Some(number) = self.state_fd.take() else { return Ok(()) };
        self.execute("migrate-incoming", json!({ "uri": format!("fd:{number}") })).await?;
        loop {
            let status = self.execute("query-status", json!({})).await?;
            match status.get("status").and_then(Value::as_str) {
                Some("inmigrate") => tokio::time::sleep(LOAD_POLL).await,
                Some("paused" | "prelaunch") => return Ok(()),
                other => {
                    let reason = format!("the VM is in state {} after loading", other.unwrap_or("unknown"));
                    return Err(Error::Rejected { command: "migrate-incoming".to_owned(), reason });
                }
            }
        }
    }

    pub(crate) async fn stop(&mut self) -> Result<(), Error> {
        self.execute("stop", json!({})).await.map(drop)
    }

    pub(crate) async fn resume(&mut self) -> Result<(), Error> {
        self.execute("cont", json!({})).await.map(drop)
    }

    /// Waits until the VMM stops the CPUs because a write found no space. Cancel safe; never ready without a monitor.
    pub(crate) async fn out_of_space(&mut self) {
        let Some(monitor) = self.monitor.as_mut() else { return std::future::pending().await };
        if let Err(error) = monitor.out_of_space().await {
            // Either the process is exiting, which another future waits for, or the connection is unusable.
            tracing::debug!(pid = self.process.pid(), %error, "VMM monitor connection lost");
            self.monitor = None;
            std::future::pending::<()>().await;
        }
    }

    pub(crate) async fn save_state(&mut self, state: &Path) -> Result<(), Error> {
        let arguments = json!({ "filename": state.to_string_lossy(), "live": false });
        self.execute("xen-save-devices-state", arguments).await.map(drop)
    }

    pub(crate) async fn forward(&mut self, guest_port: u16) -> Result<u16, Error> {
        // QEMU does not report the port it chose, so a free one is found first. If another process takes it meanwhile,
        // QEMU rejects the command.
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let host_port = free.map_err(|source| Error::Monitor { action: "finding a free port", source })?.port();
        let line = format!("hostfwd_add net tcp:127.0.0.1:{host_port}-{ADDRESS}:{guest_port}");
        let reply = self.execute("human-monitor-command", json!({ "command-line": line })).await?;
        match reply.as_str().unwrap_or_default().trim() {
            "" => Ok(host_port),
            reason => Err(Error::Rejected { command: "hostfwd_add".to_owned(), reason: reason.to_owned() }),
        }
    }

    pub(crate) async fn console(&mut self) -> String {
        let path = self.folder.join(CONSOLE);
        if path.exists() {
            return tail(&path);
        }
        let arguments = json!({ "device": "console", "size": LOG_QUOTE_BYTES, "format": "utf8" });
        let text = self.execute("ringbuf-read", arguments).await;
        text.ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until a booting guest's console contains `text`.
    pub(super) async fn wait_for_console(&mut self, text: &str, limit: Duration) -> Result<(), Error> {
        let action = "booting to its first program";
        let console = self.folder.join(CONSOLE);
        let has_text = || std::fs::read(&console).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text));
        let shown = async {
            while !has_text() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            // A guest may write the text and power off between two checks.
            () = self.process.wait() => if has_text() { Ok(()) } else { Err(self.exit_error(action)) },
            shown = tokio::time::timeout(limit, shown) => shown.map_err(|_| Error::Timeout { action, limit }),
        }
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) async fn exited(&self) {
        self.process.wait().await;
    }

    pub(crate) async fn kill(mut self) {
        self.kill_process().await;
    }

    async fn kill_process(&mut self) {
        self.monitor = None;
        if let Err(error) = self.process.kill() {
            tracing::warn!(pid = self.process.pid(), %error, "could not kill the VMM");
        }
        if tokio::time::timeout(KILL_LIMIT, self.process.wait()).await.is_err() {
            tracing::error!(pid = self.process.pid(), "VMM still running after SIGKILL");
        }
        let _ = std::fs::remove_file(self.folder.join(MONITOR));
    }
}

/// Listens on the monitor socket in `folder`.
///
/// The path goes through a descriptor of the folder: a socket's path has at most 107 characters (unix(7)), and the path
/// of a data directory may be longer.
fn listen(folder: &Path) -> Result<UnixListener, Error> {
    let error = |source| Error::File { action: "listening in", path: folder.to_owned(), source };
    let descriptor = open_folder(folder)?;
    let path = path_through(&descriptor, MONITOR);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    UnixListener::bind(&path).map_err(error)
}

fn open_folder(folder: &Path) -> Result<File, Error> {
    File::open(folder).map_err(|source| Error::File { action: "opening the folder", path: folder.to_owned(), source })
}

fn path_through(folder: &impl AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_fd().as_raw_fd()))
}

fn open_state(path: &Path) -> Result<OwnedFd, Error> {
    let opened = File::open(path).map(OwnedFd::from);
    opened.map_err(|source| Error::File { action: "opening the device state", path: path.to_owned(), source })
}

fn open_log(path: &Path) -> Result<OwnedFd, Error> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(OwnedFd::from);
    opened.map_err(|source| Error::File { action: "opening the log", path: path.to_owned(), source })
}

/// Returns the end of a log, for error messages.
fn tail(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let start = bytes.len().saturating_sub(LOG_QUOTE_BYTES);
    String::from_utf8_lossy(&bytes[start..]).trim().to_owned()
}
