//! Many idle WebSockets, and one message on each afterwards.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use futures::stream;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::load::Connection;
use super::parts::{HOST, Part};
use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};

/// Concurrent opens.
const OPENING_MAX: usize = 32;
/// Goal for the memory of each: the buffers of both sides and the tasks.
const KIB_MAX: f64 = 64.0;
const MESSAGE: &[u8] = b"is anybody there";

type Socket = TokioIo<hyper::upgrade::Upgraded>;

async fn open(edge: &Part) -> Result<Socket> {
    let mut connection = Connection::open(edge.address, HOST).await?;
    let request = Request::get("/")
        .header(header::HOST, HOST)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .body(Empty::new())?;
    let response = connection.send(request).await?;
    ensure!(response.status() == StatusCode::SWITCHING_PROTOCOLS, "{}", response.status());
    Ok(TokioIo::new(hyper::upgrade::on(response).await?))
}

pub(super) async fn idle(report: &mut Report, edge: &Part, count: usize) -> Result<()> {
    hearth_host::process::raise_open_files()?;
    let before = edge.memory_mib()?;
    let opened: Vec<_> = stream::iter(0..count).map(|_| open(edge)).buffer_unordered(OPENING_MAX).collect().await;
    let mut sockets = opened.into_iter().collect::<Result<Vec<_>>>().context("opening WebSockets")?;
    let each_kib = (edge.memory_mib()? - before) * 1024.0 / count as f64;
    report.plain(
        &format!("memory of the edge for each of {count} idle WebSockets"),
        "KiB",
        each_kib,
        Some(Goal::AtMost(KIB_MAX)),
    );
    let mut times = Vec::new();
    for socket in &mut sockets {
        let start = Instant::now();
        socket.write_all(MESSAGE).await?;
        let mut echo = [0; MESSAGE.len()];
        socket.read_exact(&mut echo).await?;
        ensure!(echo == MESSAGE, "the echo differs from the message");
        times.push(start.elapsed());
    }
    let times = Percentiles::of(times);
    report.plain(&format!("message and echo on one of {count} WebSockets, p99"), "ms", milliseconds(times.p99), None);
    Ok(())
}
