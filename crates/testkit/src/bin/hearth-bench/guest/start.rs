//! How soon the daemon serves. It runs on this machine for this, as an ordinary process that is asked for nothing but its health.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::report::Report;
use crate::statistics::{Percentiles, milliseconds};

/// Between two tries to connect.
const POLL: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(10);
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\r\n";

/// Size of the program, and time from its start to its first answer.
pub(super) async fn measure(report: &mut Report, program: &Path, rounds: usize) -> Result<()> {
    let bytes = std::fs::metadata(program).with_context(|| format!("looking at {}", program.display()))?.len();
    report.plain("guest daemon: size of the program", "MiB", super::mib(bytes.try_into()?), None);
    let (mut ours, mut bounds) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let status = Command::new("/bin/true").status().await?;
        ensure!(status.success(), "/bin/true ended with {status}");
        bounds.push(start.elapsed());
        ours.push(first_answer(program).await?);
    }
    let (ours, bounds) = (Percentiles::of(ours), Percentiles::of(bounds));
    for (name, ours, bound) in [("p50", ours.p50, bounds.p50), ("p95", ours.p95, bounds.p95)] {
        let name = format!("guest daemon: start to first answer on the host, {name} (bound: `true`)");
        report.bounded(&name, "ms", milliseconds(ours), milliseconds(bound), None);
    }
    Ok(())
}

async fn first_answer(program: &Path) -> Result<Duration> {
    let free = TcpListener::bind("127.0.0.1:0")?;
    let address = free.local_addr()?;
    drop(free);
    let mut command = Command::new(program);
    command.args(["-isnotfc", "-no-cgroups", "-port", &address.port().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    tokio::time::timeout(PATIENCE, answered(address)).await.context("the daemon does not answer")??;
    let took = start.elapsed();
    child.kill().await?;
    Ok(took)
}

async fn answered(address: SocketAddr) -> Result<()> {
    let mut stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(POLL).await,
        }
    };
    stream.write_all(HEALTH).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(answer.starts_with(b"HTTP/1.1 204 "), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}
