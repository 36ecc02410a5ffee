//! Restart of a daemon in place, while clients are connected.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hearth_sdk::NewSandbox;
use hearth_testkit::{Instance, Leftovers, PreparedDataDir, until};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustix::process::Signal;
use tokio::process::Command;

type Http = Client<HttpConnector, Empty<Bytes>>;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hearth"))
}

/// Creates a client with a connection pool.
fn http() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

async fn health(http: &Http, instance: &Instance) -> Result<()> {
    let uri = format!("{}/health", instance.api_url()).parse()?;
    let response = http.get(uri).await?;
    ensure!(response.status() == 200, "{}", response.status());
    Ok(())
}

/// Runs `hearth restart`, and returns its output.
async fn restart(instance: &Instance) -> Result<String> {
    let mut command = Command::new(binary());
    let output = command.arg("restart").arg("--data-dir").arg(instance.folder()).stdin(Stdio::null()).output().await?;
    ensure!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), instance.log());
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_restarted_daemon_wait_and_are_not_refused() -> Result<()> {
    let prepared = PreparedDataDir::ensure(binary())?;
    let instance = Arc::new(Instance::start(&prepared, &[]).await?);
    let client = instance.client();
    let before = client.create(&NewSandbox::of("base")).await?;
    let idle = http();
    health(&idle, &instance).await?;

    // New connections all the time; each must get a reply.
    let (enough, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (instance, enough, answered) = (Arc::clone(&instance), Arc::clone(&enough), Arc::clone(&answered));
            tokio::spawn(async move {
                while !enough.load(Ordering::Relaxed) {
                    health(&http(), &instance).await?;
                    answered.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let pid = instance.pid().context("it runs")?;
    for _ in 0..2 {
        assert!(restart(&instance).await?.contains(&format!("process {pid}")));
        health(&idle, &instance).await.context("a client that was idle meanwhile")?;
    }
    let so_far = answered.load(Ordering::Relaxed);
    until("replies after the restarts", || async { Ok((answered.load(Ordering::Relaxed) > so_far).then_some(())) })
        .await?;
    enough.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await?.context("a client that connected meanwhile")?;
    }
    assert_eq!(instance.pid(), Some(pid), "the process ID changed");
    // Sandboxes do not survive a restart yet, and leave nothing behind.
    assert!(client.info(before.id()).await.expect_err("deleted").is_not_found());
    let sandbox = client.create(&NewSandbox::of("base")).await?;
    assert_eq!(sandbox.run("echo again").await?.stdout, "again\n".as_bytes());
    let instance = Arc::into_inner(instance).context("the callers have finished")?;
    let (status, folder) = instance.terminate().await?;
    ensure!(status.success(), "{status}");
    let left = Leftovers::of(folder.path());
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_stops_the_daemon_and_a_stopped_one_cannot_be_restarted() -> Result<()> {
    let prepared = PreparedDataDir::ensure(binary())?;
    let instance = Instance::start(&prepared, &[]).await?;
    let (status, folder) = instance.stop_with(Signal::HUP).await?;
    ensure!(status.success(), "{status}");
    let output = Command::new(binary()).arg("restart").arg("--data-dir").arg(folder.path()).output().await?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && error.contains("no daemon runs on"), "{error}");
    Ok(())
}
