//! Private server for journeys and demonstrations, with free ports and its own data directory, removed afterwards.
//!
//! The kernel and the templates are prepared once, in `target/hearth-data`; every instance gets hard links to them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant as Clock};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::check::Build;
use crate::leftovers;
use crate::phases::{print_line, run};

/// Data directory of the prepared kernel and templates, below `target`; Rust tests use the same.
const PREPARED: &str = "hearth-data";
/// Folders of a data directory that `hearth setup` fills, and whose files never change afterwards.
const LINKED: [&str; 2] = ["guest", "artifacts"];
/// Files that a server may replace. The result of the KVM test saves a boot.
const COPIED: [&str; 1] = ["accelerator.json"];
/// Variable with the templates that a server prepares.
const TEMPLATES: &str = "HEARTH_TEMPLATES";
/// Prefix of the data directories of instances. Short, because the paths of sockets in them are limited to 107 bytes.
const PREFIX: &str = "run-";
/// Time limit for a start. Everything is prepared, so a start is quick, but the machine may be busy.
const START_MAX: Duration = Duration::from_secs(120);
/// Guaranteed maximum time for a stop.
const STOP_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// Lines of the log that an error contains.
const LOG_LINES: usize = 40;

/// Content of `<data>/run/endpoints.json`, which a server writes once it serves.
#[derive(Debug, Clone, Default, Deserialize)]
struct Endpoints {
    api_url: String,
    sandbox_url: String,
    api_key: String,
    domain: Option<String>,
    ca_file: Option<PathBuf>,
    ca_bundle: Option<PathBuf>,
}

/// Template that tests need, besides those that it extends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Template {
    Base,
    Interpreter,
}

impl Template {
    /// Value of the variable for a server.
    ///
    /// A server makes other templates in the background, which would disturb tests that depend on time.
    const fn selection(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Interpreter => "base,code-interpreter-v1",
        }
    }
}

/// Way in which SDKs address a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Addressing {
    /// Plain HTTP, by two addresses.
    Addresses,
    /// TLS, by names of its domain.
    Names,
}

/// Environment variables of a program.
pub(crate) type Environment = Vec<(&'static str, String)>;

/// Running server.
#[derive(Debug)]
pub(crate) struct Instance {
    program: PathBuf,
    process: Child,
    endpoints: Endpoints,
    data: PathBuf,
    log: PathBuf,
    stopped: bool,
}

impl Instance {
    /// Starts a server with a template and waits until it serves. Its log is `target/NAME.log`.
    pub(crate) fn start(root: &Path, build: Build, name: &str, template: Template) -> Result<Self> {
        let program = build.program(root);
        let target = root.join("target");
        let prepared = prepare(&program, &target, template)?;
        // Without a process, another run would delete the new folder as a leftover. The lock prevents that until it starts.
        let filling = lock(&target, "run")?;
        sweep(&target)?;
        let data = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&target)?.keep();
        furnish(&prepared, &data).context("filling the data directory")?;
        let log = target.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let process = hearth(&program)
            .args(["up", "--no-first-sandbox", "--api-listen", "127.0.0.1:0", "--edge-listen", "127.0.0.1:0"])
            .args(["--tls-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(&data)
            // Test machines have small disks, and no guest here uses its whole share.
            .env("HEARTH_DISK_OVERCOMMIT", "64")
            .env(TEMPLATES, template.selection())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        drop(filling);
        let endpoints = Endpoints::default();
        let mut instance = Self { program, process, endpoints, data, log, stopped: false };
        instance.endpoints = instance.wait_until_serving()?;
        print_line(&format!(
            "server {} and {}, log {}",
            instance.endpoints.api_url,
            instance.endpoints.sandbox_url,
            instance.log.display()
        ));
        Ok(instance)
    }

    /// Environment variables for the SDKs and the journeys.
    pub(crate) fn environment(&self, by: Addressing) -> Result<Environment> {
        let Endpoints { api_url, sandbox_url, api_key, domain, ca_file, ca_bundle } = self.endpoints.clone();
        let mut environment = vec![
            ("E2B_API_KEY", api_key),
            ("JOURNEYS_API_URL", api_url.clone()),
            ("JOURNEYS_SANDBOX_URL", sandbox_url.clone()),
            // For journeys that act as an operator.
            ("HEARTH_PROGRAM", self.program.display().to_string()),
            ("HEARTH_DATA_DIR", self.data.display().to_string()),
            ("HEARTH_ADMIN_TOKEN", self.admin_token()?),
            // For measurements of the server's memory and file descriptors.
            ("JOURNEYS_SERVER_PID", self.process.id().to_string()),
        ];
        match by {
            Addressing::Addresses => environment.extend([("E2B_API_URL", api_url), ("E2B_SANDBOX_URL", sandbox_url)]),
            Addressing::Names => {
                environment.push(("E2B_DOMAIN", domain.context("the server has no domain")?));
                for (name, file) in [("NODE_EXTRA_CA_CERTS", ca_file), ("SSL_CERT_FILE", ca_bundle)] {
                    environment.push((name, file.context("the server has no authority")?.display().to_string()));
                }
            }
        }
        Ok(environment)
    }

    /// Token that authenticates operators over HTTP.
    fn admin_token(&self) -> Result<String> {
        let file = self.data.join("admin-token");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Stops the server, and checks that it leaves nothing behind and that its log has no errors.
    pub(crate) fn stop(mut self) -> Result<()> {
        let since = Clock::now();
        let status = self.terminate()?;
        let time = since.elapsed();
        let mut faults = Vec::new();
        if !status.success() {
            faults.push(format!("the server failed: {status}"));
        }
        if time > STOP_MAX {
            faults.push(format!("the server took {time:.1?} to stop"));
        }
        faults.extend(leftovers::of(&self.data));
        faults.extend(log_faults(&fs::read_to_string(&self.log).unwrap_or_default()));
        if faults.is_empty() {
            print_line(&format!("server stopped in {:.1} s, no leftovers", time.as_secs_f64()));
            return Ok(());
        }
        for fault in &faults {
            print_line(&format!("  {fault}"));
        }
        bail!("{} faults after the server stopped (log: {})", faults.len(), self.log.display());
    }

    fn wait_until_serving(&mut self) -> Result<Endpoints> {
        let file = self.data.join("run/endpoints.json");
        let deadline = Clock::now() + START_MAX;
        loop {
            if let Ok(text) = fs::read(&file) {
                return serde_json::from_slice(&text).with_context(|| format!("parsing {}", file.display()));
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("the server exited before it served: {status}\n{}", self.last_lines());
            }
            if Clock::now() > deadline {
                bail!("the server does not serve after {START_MAX:?}:\n{}", self.last_lines());
            }
            std::thread::sleep(POLL);
        }
    }

    fn last_lines(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Stops the server with SIGTERM, or with SIGKILL after twice the guaranteed time.
    fn terminate(&mut self) -> Result<ExitStatus> {
        self.stopped = true;
        let deadline = Clock::now() + STOP_MAX * 2;
        // An error means that the process has exited by itself; its status is read below.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        while Clock::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        self.process.kill()?;
        Ok(self.process.wait()?)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Dropped without `stop` after a failure, which is reported already: only clean up.
        if !self.stopped && self.terminate().is_err() {
            print_line("the server could not be stopped");
        }
        if leftovers::processes(&self.data).is_empty() {
            let _ = fs::remove_dir_all(&self.data);
        }
    }
}

/// Command for the binary, without the variables of the developer's environment that configure it.
fn hearth(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("HEARTH_") || text.starts_with("E2B_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Removes the data directories of runs that were killed, unless a process still uses them.
fn sweep(target: &Path) -> Result<()> {
    for entry in fs::read_dir(target).with_context(|| format!("listing {}", target.display()))? {
        let path = entry?.path();
        let is_run = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if is_run && path.is_dir() && leftovers::processes(&path).is_empty() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Prepares kernel and template: takes minutes the first time, nothing afterwards.
///
/// Concurrent callers wait for each other.
fn prepare(program: &Path, target: &Path, template: Template) -> Result<PathBuf> {
    let prepared = target.join(PREPARED);
    let _lock = lock(target, PREPARED)?;
    let mut setup = hearth(program);
    setup.arg("setup").arg("--data-dir").arg(&prepared).env(TEMPLATES, template.selection());
    run(&mut setup).with_context(|| format!("preparing kernel and {}", template.selection()))?;
    Ok(prepared)
}

/// Acquires the lock with this name, and waits until other tasks release it. Dropping the file releases it.
fn lock(target: &Path, name: &str) -> Result<File> {
    let path = target.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    file.lock().with_context(|| format!("waiting for {}", path.display()))?;
    Ok(file)
}

/// Fills a data directory with the prepared files.
fn furnish(prepared: &Path, data: &Path) -> Result<()> {
    for folder in LINKED {
        link_tree(&prepared.join(folder), &data.join(folder))?;
    }
    for file in COPIED {
        let from = prepared.join(file);
        if from.exists() {
            fs::copy(&from, data.join(file)).with_context(|| format!("copying {}", from.display()))?;
        }
    }
    Ok(())
}

/// Copies a folder tree, with hard links for the files.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_tree(&entry.path(), &target)?;
        } else {
            fs::hard_link(entry.path(), &target).with_context(|| format!("linking {}", target.display()))?;
        }
    }
    Ok(())
}

/// Returns the lines of a log that report errors or panics.
fn log_faults(log: &str) -> Vec<String> {
    let bad = log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked at"));
    bad.map(|line| format!("log: {line}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn images_are_linked_and_the_database_is_not_copied() {
        let prepared = tempfile::tempdir().expect("a folder");
        let data = tempfile::tempdir().expect("a folder");
        for folder in ["guest", "artifacts/set", "run"] {
            fs::create_dir_all(prepared.path().join(folder)).expect("a folder");
        }
        for file in ["artifacts/set/memory", "accelerator.json", "hearth.db", "run/endpoints.json"] {
            fs::write(prepared.path().join(file), file).expect("a file");
        }

        furnish(prepared.path(), data.path()).expect("it is filled");

        let inode = |folder: &Path, file| fs::metadata(folder.join(file)).expect("it exists").ino();
        for (file, same) in [("artifacts/set/memory", true), ("accelerator.json", false)] {
            assert_eq!(inode(data.path(), file) == inode(prepared.path(), file), same, "{file}");
        }
        assert!(!data.path().join("run").exists() && !data.path().join("hearth.db").exists());
    }

    #[test]
    fn folders_of_killed_runs_are_removed() {
        let target = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(target.path().join("run-abc/executions")).expect("a folder");
        fs::create_dir_all(target.path().join("release")).expect("a folder");
        sweep(target.path()).expect("removed");
        assert!(!target.path().join("run-abc").exists() && target.path().join("release").exists());
    }

    #[test]
    fn errors_and_panics_in_a_log_are_faults() {
        let log = "2026-01-01T00:00:00Z  INFO hearth: serving\n2026-01-01T00:00:00Z ERROR hearth: lost\nthread 'a' panicked at b";
        assert_eq!(log_faults(log).len(), 2);
    }
}
