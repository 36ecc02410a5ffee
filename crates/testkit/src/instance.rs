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

use crate::prepared::{ONLY_BASE, TEMPLATES, configuration};
use crate::{Leftovers, PreparedDataDir};

/// Limit for the time until an instance listens, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Documented limit for a shutdown after `SIGTERM`.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Instance with its own data directory. Killed when dropped.
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
    pub async fn start(prepared: &PreparedDataDir, arguments: &[&str]) -> Result<Self> {
        // The mode that an instance gives to its own data directory.
        let mode = fs::Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix("hearth-").permissions(mode).tempdir()?;
        prepared.link_into(folder.path())?;
        Self::start_with(prepared.binary(), folder, arguments, prepared.templates()).await
    }

    /// Starts an instance in an existing data directory. It prepares `base` alone.
    pub async fn start_in(binary: &Path, folder: tempfile::TempDir, arguments: &[&str]) -> Result<Self> {
        Self::start_with(binary, folder, arguments, ONLY_BASE).await
    }

    async fn start_with(binary: &Path, folder: tempfile::TempDir, arguments: &[&str], templates: &str) -> Result<Self> {
        let endpoints = folder.path().join("run/endpoints.json");
        // A killed instance does not remove this file.
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
            // A test that needs another template names it.
            .env("HEARTH_TEMPLATES", "base")
            // Test machines have small disks, and the guests of tests use little of theirs.
            .env("HEARTH_DISK_OVERCOMMIT", "64")
            .env(TEMPLATES, templates)
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
                    bail!("hearth exited with {status}: {}", log_of(folder.path()));
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

    /// Returns a client with the key of the first team.
    ///
    /// # Panics
    /// Never: the instance wrote its own addresses.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.api_url, &self.sandbox_url, self.key.clone()).expect("the instance's own addresses")
    }

    /// Returns the URL of the REST API.
    #[must_use]
    pub fn api_url(&self) -> &str {
        &self.api_url
    }

    /// Returns the URL of the edge, for traffic to sandboxes.
    #[must_use]
    pub fn sandbox_url(&self) -> &str {
        &self.sandbox_url
    }

    /// Returns the API key of the first team.
    #[must_use]
    pub fn key(&self) -> &Secret {
        &self.key
    }

    /// Returns the data directory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the process id of the daemon, or `None` after it exited.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns the daemon's output so far.
    #[must_use]
    pub fn log(&self) -> String {
        log_of(self.folder.path())
    }

    /// Lists the resources of this instance on the machine.
    #[must_use]
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(self.folder.path())
    }

    /// Sends SIGTERM and waits for the exit. Returns the exit status and the data directory.
    ///
    /// # Errors
    /// Fails if the daemon does not exit within the documented limit of 10 seconds.
    pub async fn terminate(self) -> Result<(ExitStatus, tempfile::TempDir)> {
        self.stop_with(Signal::TERM).await
    }

    /// Sends SIGKILL and waits for the exit. Returns the data directory.
    pub async fn kill(self) -> Result<tempfile::TempDir> {
        Ok(self.stop_with(Signal::KILL).await?.1)
    }

    /// Sends a signal that stops the daemon and waits for the exit. Returns the exit status and the data directory.
    ///
    /// # Errors
    /// Fails if the daemon does not exit within the documented limit of 10 seconds.
    pub async fn stop_with(mut self, signal: Signal) -> Result<(ExitStatus, tempfile::TempDir)> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.context("the daemon has exited already")?, signal)?;
        let exited = tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await;
        let status =
            exited.with_context(|| format!("no exit within {STOP_PATIENCE:?}: {}", log_of(self.folder.path())))??;
        Ok((status, self.folder))
    }
}

/// Returns the output of an instance.
fn log_of(folder: &Path) -> String {
    fs::read_to_string(folder.join("hearth.log")).unwrap_or_default()
}
