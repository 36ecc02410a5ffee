//! A running `hearth up`.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hearth_sdk::Client;
use hearth_types::Secret;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::prepared::configuration;
use crate::{Leftovers, Prepared};

/// How long an instance may take to listen, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// What `SIGTERM` may take, as promised to users.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// An instance in a data directory of its own. Killed when dropped.
#[derive(Debug)]
pub struct Instance {
    child: Child,
    folder: tempfile::TempDir,
    api_url: String,
    sandbox_url: String,
    key: Secret,
}

impl Instance {
    /// Starts an instance on free ports, without a first sandbox, and waits until it listens.
    pub async fn start(prepared: &Prepared, arguments: &[&str]) -> Result<Self> {
        // As an instance makes its own.
        let closed = fs::Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix("hearth-").permissions(closed).tempdir()?;
        prepared.furnish(folder.path())?;
        Self::start_in(prepared.binary(), folder, arguments).await
    }

    /// Starts an instance again in the folder that another one left.
    pub async fn start_in(binary: &Path, folder: tempfile::TempDir, arguments: &[&str]) -> Result<Self> {
        let endpoints = folder.path().join("run/endpoints.json");
        // A killed instance leaves it.
        let _ = fs::remove_file(&endpoints);
        let log = File::options().create(true).append(true).open(folder.path().join("hearth.log"))?;
        let mut command = Command::new(binary);
        for variable in configuration() {
            command.env_remove(variable);
        }
        command
            .args(["up", "--no-first-sandbox", "--api-listen", "127.0.0.1:0", "--edge-listen", "127.0.0.1:0"])
            .args(if arguments.contains(&"--tls-listen") { &[][..] } else { &["--tls-listen", "127.0.0.1:0"] })
            .arg("--data-dir")
            .arg(folder.path())
            .args(arguments)
            // Test machines have small disks, and no guest here needs its share of one.
            .env("HEARTH_DISK_OVERCOMMIT", "64")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
        let listening = async {
            loop {
                if let Ok(text) = fs::read_to_string(&endpoints) {
                    return Ok(text);
                }
                if let Some(status) = child.try_wait()? {
                    bail!("hearth ended with {status}: {}", log_of(folder.path()));
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let text = tokio::time::timeout(START_PATIENCE, listening).await.context("hearth did not listen in time")??;
        let value: Value = serde_json::from_str(&text)?;
        let field =
            |name: &str| value[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {text}"));
        Ok(Self {
            api_url: field("api_url")?,
            sandbox_url: field("sandbox_url")?,
            key: Secret::new(field("api_key")?),
            child,
            folder,
        })
    }

    /// A client of the instance with its first team's key.
    ///
    /// # Panics
    /// Never: the instance printed its own addresses.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.api_url, &self.sandbox_url, self.key.clone()).expect("the instance's own addresses")
    }

    /// Where the REST API is.
    #[must_use]
    pub fn api_url(&self) -> &str {
        &self.api_url
    }

    /// Where sandboxes are reached.
    #[must_use]
    pub fn sandbox_url(&self) -> &str {
        &self.sandbox_url
    }

    /// The first team's key.
    #[must_use]
    pub fn key(&self) -> &Secret {
        &self.key
    }

    /// The data directory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The number of the daemon's process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What the daemon has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        log_of(self.folder.path())
    }

    /// What is on the machine because of this instance.
    #[must_use]
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(self.folder.path())
    }

    /// SIGTERM; waits until the daemon is gone and returns how it ended and its folder.
    ///
    /// # Errors
    /// It did not stop in the time that users are promised.
    pub async fn terminate(self) -> Result<(ExitStatus, tempfile::TempDir)> {
        self.end(Signal::TERM).await
    }

    /// SIGKILL; waits until the daemon is gone and returns its folder.
    pub async fn kill(self) -> Result<tempfile::TempDir> {
        Ok(self.end(Signal::KILL).await?.1)
    }

    /// Sends a signal that ends the daemon; waits until it is gone and returns how it ended and its folder.
    ///
    /// # Errors
    /// It did not end in the time that users are promised.
    pub async fn end(mut self, signal: Signal) -> Result<(ExitStatus, tempfile::TempDir)> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.context("the daemon has ended already")?, signal)?;
        let ended = tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await;
        let status =
            ended.with_context(|| format!("no end within {STOP_PATIENCE:?}: {}", log_of(self.folder.path())))??;
        Ok((status, self.folder))
    }
}

/// What an instance printed.
fn log_of(folder: &Path) -> String {
    fs::read_to_string(folder.join("hearth.log")).unwrap_or_default()
}
