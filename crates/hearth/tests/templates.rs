//! Templates that a real `hearth up` prepares in the background.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use hearth_sdk::{Error, NewSandbox};
use hearth_testkit::{Instance, Leftovers, PreparedDataDir};
use serde_json::Value;
use tokio::process::Command;

/// Template that no other test prepares.
const TEMPLATE: &str = "desktop";

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hearth"))
}

/// Returns the state of a template according to `hearth doctor`.
async fn state(instance: &Instance, template: &str) -> Result<String> {
    let mut doctor = Command::new(binary());
    let doctor = doctor.args(["doctor", "--json", "--templates", template, "--data-dir"]).arg(instance.folder());
    let output = doctor.stdin(Stdio::null()).output().await?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let mut templates = report["templates"].as_array().context("a list")?.iter();
    let found = templates.find(|found| found["name"] == template).context("the template")?;
    Ok(found["state"].as_str().context("a state")?.to_owned())
}

/// The mirror accepts connections and never replies, so that the preparation does not end.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_in_preparation_delays_neither_the_start_nor_the_stop() -> Result<()> {
    let prepared = PreparedDataDir::ensure(binary())?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let mirror = format!("http://{}/debian", silent.local_addr()?);
    // Fails if the daemon does not serve in time.
    let instance = Instance::start(&prepared, &["--templates", TEMPLATE, "--mirror", &mirror]).await?;
    let client = instance.client();
    let sandbox = client.create(&NewSandbox::of("base")).await?;
    assert_eq!(sandbox.run("echo ready").await?.stdout, "ready\n".as_bytes());
    assert_eq!(state(&instance, TEMPLATE).await?, "being_prepared");
    match client.create(&NewSandbox::of(TEMPLATE)).await {
        Err(Error::Rejected { status, message }) => {
            assert_eq!(status, 503, "{message}");
            ensure!(message.contains("is being prepared ("), "{message}");
        }
        other => anyhow::bail!("{:?}", other.map(|sandbox| sandbox.id().to_string())),
    }
    match client.create(&NewSandbox::of("unknown")).await {
        Err(error) => ensure!(error.is_not_found(), "{error}"),
        Ok(_) => anyhow::bail!("an unknown template exists"),
    }
    let log = instance.log();
    let (status, folder) = instance.terminate().await?;
    ensure!(status.success(), "{status}: {log}");
    let left = Leftovers::of(folder.path());
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}
