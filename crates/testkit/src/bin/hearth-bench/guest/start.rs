//! Start time of the daemon, from its spawn to its first reply.
//!
//! The daemon runs on this machine for that, as an ordinary process, and receives only health requests.

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

/// Pause between two attempts to connect.
const POLL: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(10);
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\r\n";

/// Measures the size of the program, and the time from its start to its first reply.
pub(super) async fn measure(report: &mut Report, program: &Path, rounds: usize) -> Result<()> {
    let bytes = std::fs::metadata(program).with_context(|| format!("reading the size of {}", program.display()))?.len();
    report.plain("guest daemon: size of the program", "MiB", super::mib(bytes.try_into()?), None);
    let (mut measured, mut bounds) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let status = Command::new("/bin/true").status().await?;
        ensure!(status.success(), "/bin/true exited with {status}");
        bounds.push(start.elapsed());
        measured.push(time_to_first_reply(program).await?);
    }
    let (measured, bounds) = (Percentiles::of(measured), Percentiles::of(bounds));
    for (name, measured, bound) in [("p50", measured.p50, bounds.p50), ("p95", measured.p95, bounds.p95)] {
        let name = format!("guest daemon: start to first reply on the host, {name} (bound: `true`)");
        report.bounded(&name, "ms", milliseconds(measured), milliseconds(bound), None);
    }
    Ok(())
}

async fn time_to_first_reply(program: &Path) -> Result<Duration> {
    let free = TcpListener::bind("127.0.0.1:0")?;
    let address = free.local_addr()?;
    drop(free);
    let mut command = Command::new(program);
    command.args(["-isnotfc", "-no-cgroups", "-port", &address.port().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    tokio::time::timeout(PATIENCE, wait_for_reply(address)).await.context("the daemon did not reply in time")??;
    let took = start.elapsed();
    child.kill().await?;
    Ok(took)
}

async fn wait_for_reply(address: SocketAddr) -> Result<()> {
    let mut stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(POLL).await,
        }
    };
    stream.write_all(HEALTH).await?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await?;
    ensure!(reply.starts_with(b"HTTP/1.1 204 "), "{}", String::from_utf8_lossy(&reply));
    Ok(())
}
