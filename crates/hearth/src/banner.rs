//! The banner of `hearth up`: a first sandbox as proof that the instance works, addresses, and samples.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_sdk::{Client, NewSandbox};
use hearth_types::Secret;

use crate::endpoints::{Endpoints, quoted};

/// Samples of the README; `make demo` runs them.
const PYTHON: &str = include_str!("../../../docs/samples/quickstart.py");
const JAVASCRIPT: &str = include_str!("../../../docs/samples/quickstart.mjs");

/// Creates a sandbox over the REST API, runs a command in it and kills it.
///
/// Returns the time from the request to the command's output.
///
/// # Errors
/// A part between the API and the guest does not work. The sandbox is killed, or expires within a minute.
pub(crate) async fn first_sandbox(endpoints: &Endpoints) -> Result<Duration> {
    let key = Secret::new(endpoints.api_key.clone());
    let client = Client::new(&endpoints.api_url, &endpoints.sandbox_url, key)?;
    let start = Instant::now();
    let new = NewSandbox { timeout_seconds: Some(60), ..NewSandbox::of("base") };
    let sandbox = client.create(&new).await.context("creating the first sandbox")?;
    let output = sandbox.run("echo ready").await.context("running the first command");
    let took = start.elapsed();
    sandbox.kill().await.context("killing the first sandbox")?;
    let output = output?;
    ensure!(output.stdout == b"ready\n", "the first command printed {:?}", String::from_utf8_lossy(&output.stdout));
    Ok(took)
}

/// Facts about the running instance, displayed as the banner.
pub(crate) struct Banner<'a> {
    pub(crate) endpoints: &'a Endpoints,
    /// Shell exports, with the API key. `None` if the output is no terminal: it may go to a journal, which must not get
    /// keys.
    pub(crate) exports: Option<String>,
    /// Time from request to the first command's output; `None` if no first sandbox was created.
    pub(crate) first_sandbox: Option<Duration>,
    /// Accelerator, and the reason for it.
    pub(crate) accelerator: String,
    /// Network mode, in words.
    pub(crate) network: &'static str,
    /// Limit by configuration or memory, and by disk.
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
        writeln!(
            f,
            "  sandboxes      {}, at most {} at the same time{why}",
            self.endpoints.sandbox_url, self.sandboxes_max
        )?;
        match &self.endpoints.domain {
            Some(domain) => writeln!(f, "  names          https://api.{domain}, https://PORT-SANDBOX.{domain}")?,
            None => writeln!(f, "  names          none: --tls-listen is off")?,
        }
        writeln!(f, "  accelerator    {}", self.accelerator)?;
        writeln!(f, "  network        {}", self.network)?;
        writeln!(f, "  data           {}", self.data_dir)?;
        match &self.exports {
            Some(exports) => {
                writeln!(f, "\nPaste this into the shell of your agent (`hearth env` prints it again):\n")?;
                writeln!(f, "{}", indented(exports))?;
            }
            None => writeln!(
                f,
                "\nThe API key is printed to terminals only. To get the exports for the shell of your agent, run:\n\n  \
                 hearth env --data-dir {}",
                quoted(&self.data_dir)
            )?,
        }
        writeln!(f, "\nPython, after `pip install e2b`:\n\n{}", indented(PYTHON))?;
        writeln!(f, "\nJavaScript, after `npm install e2b`:\n\n{}", indented(JAVASCRIPT))?;
        write!(f, "\nCtrl-C stops Hearth and kills all sandboxes.")
    }
}

fn indented(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Addressing;

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
        let banner = |exports| {
            let banner = Banner {
                endpoints: &endpoints,
                exports,
                first_sandbox: Some(Duration::from_millis(123)),
                accelerator: "tcg".to_owned(),
                network: "namespaces",
                sandboxes_max: 5,
                limited_by_disk: true,
                data_dir: "/data".to_owned(),
            };
            banner.to_string()
        };
        let text = banner(Some(endpoints.exports(Addressing::Addresses).expect("known")));
        for part in [
            "123 ms",
            "at most 5 at the same time (free disk space)",
            "https://api.hearth.localhost:3443",
            "export E2B_API_KEY=e2b_00",
            "from e2b import Sandbox",
            "import { Sandbox } from 'e2b'",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = banner(None);
        assert!(!text.contains("e2b_00") && text.contains("hearth env --data-dir /data\n"), "{text}");
    }

    #[test]
    fn the_readme_shows_the_samples() {
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(PYTHON) && readme.contains(JAVASCRIPT));
    }
}
