//! What `hearth up` says when everything runs: proof that it works, and how to use it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_sdk::{Client, NewSandbox};
use hearth_types::Secret;

use crate::endpoints::Endpoints;

/// The samples of the README, which `make demo` runs.
const PYTHON: &str = include_str!("../../../docs/samples/quickstart.py");
const JAVASCRIPT: &str = include_str!("../../../docs/samples/quickstart.mjs");

/// Creates a sandbox as a user would, runs a command in it, ends it; returns how long it took from the request to the
/// command's output.
///
/// # Errors
/// Something between the API and the guest does not work. The sandbox is ended, or expires within a minute.
pub(crate) async fn first_sandbox(endpoints: &Endpoints) -> Result<Duration> {
    let key = Secret::new(endpoints.api_key.clone());
    let client = Client::new(&endpoints.api_url, &endpoints.sandbox_url, key)?;
    let start = Instant::now();
    let new = NewSandbox { timeout_seconds: Some(60), ..NewSandbox::of("base") };
    let sandbox = client.create(&new).await.context("creating the first sandbox")?;
    let output = sandbox.run("echo ready").await.context("running the first command");
    let took = start.elapsed();
    sandbox.kill().await.context("ending the first sandbox")?;
    let output = output?;
    ensure!(output.stdout == b"ready\n", "the first command printed {:?}", String::from_utf8_lossy(&output.stdout));
    Ok(took)
}

/// What is worth knowing of an instance that runs.
pub(crate) struct Banner<'a> {
    pub(crate) endpoints: &'a Endpoints,
    /// What to paste into a shell.
    pub(crate) exports: String,
    /// From request to first command, if it was tried.
    pub(crate) first_sandbox: Option<Duration>,
    /// Which accelerator, and why.
    pub(crate) accelerator: String,
    /// How guests are connected.
    pub(crate) network: &'static str,
    /// By memory and by disk.
    pub(crate) sandboxes_max: u32,
    pub(crate) limited_by_disk: bool,
    pub(crate) data_dir: String,
}

impl std::fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "\nHearth is up.")?;
        if let Some(took) = self.first_sandbox {
            writeln!(f, "  first sandbox  {} ms from request to first command", took.as_millis())?;
        }
        writeln!(f, "  API            {}", self.endpoints.api_url)?;
        let why = if self.limited_by_disk { " (free disk space)" } else { "" };
        writeln!(f, "  sandboxes      {}, at most {} at once{why}", self.endpoints.sandbox_url, self.sandboxes_max)?;
        match &self.endpoints.domain {
            Some(domain) => writeln!(f, "  names          https://api.{domain}, https://PORT-SANDBOX.{domain}")?,
            None => writeln!(f, "  names          none: --tls-listen is off")?,
        }
        writeln!(f, "  accelerator    {}", self.accelerator)?;
        writeln!(f, "  network        {}", self.network)?;
        writeln!(f, "  data           {}", self.data_dir)?;
        writeln!(f, "\nPaste this into the shell of your agent (`hearth env` prints it again):\n")?;
        writeln!(f, "{}", indented(&self.exports))?;
        writeln!(f, "\nPython, after `pip install e2b`:\n\n{}", indented(PYTHON))?;
        writeln!(f, "\nJavaScript, after `npm install e2b`:\n\n{}", indented(JAVASCRIPT))?;
        write!(f, "\nCtrl-C stops it and ends all sandboxes.")
    }
}

fn indented(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::By;

    #[test]
    fn the_banner_has_exports_and_samples() {
        let endpoints = Endpoints {
            api_url: "http://127.0.0.1:3000".to_owned(),
            sandbox_url: "http://127.0.0.1:3002".to_owned(),
            api_key: "e2b_00".to_owned(),
            domain: Some("hearth.localhost:3443".to_owned()),
            ca_file: None,
            ca_bundle: None,
        };
        let banner = Banner {
            endpoints: &endpoints,
            exports: endpoints.exports(By::Addresses).expect("known"),
            first_sandbox: Some(Duration::from_millis(123)),
            accelerator: "tcg".to_owned(),
            network: "namespaces",
            sandboxes_max: 5,
            limited_by_disk: true,
            data_dir: "/data".to_owned(),
        };
        let text = banner.to_string();
        for part in [
            "123 ms",
            "at most 5 at once (free disk space)",
            "https://api.hearth.localhost:3443",
            "export E2B_API_KEY=e2b_00",
            "from e2b import Sandbox",
            "import { Sandbox } from 'e2b'",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn the_readme_shows_the_samples() {
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(PYTHON) && readme.contains(JAVASCRIPT));
    }
}
