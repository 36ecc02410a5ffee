//! The edge compared with nginx: each alone in front of the same upstream, with a direct connection as the bound.
//!
//! Upstream, edge and nginx are separate processes, so that their memory is measured separately. Upstream and edge are
//! further processes of this program. The edge finds the upstream as it finds a node: by a route in its catalog.

mod load;
mod nginx;
mod parts;
mod sockets;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use http::Request;
use http_body_util::{BodyExt, Empty};

use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};
use load::{Connection, Wrk};
use nginx::Nginx;
use parts::Part;

pub(crate) use parts::run_as_part;

/// Number and size of the measurements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) requests: usize,
    /// Turns of one second each.
    pub(crate) load_turns: u64,
    pub(crate) stream_mib: u64,
    pub(crate) sockets: usize,
}

/// Goal for the latency that the edge adds to a request.
const ADDED_MS_MAX: f64 = 0.3;
/// Goal for the throughput, as a share of nginx's.
const SHARE_OF_NGINX_MIN: f64 = 0.8;
/// Goal for the growth of the edge's memory during a long reply.
const GROWTH_MIB_MAX: f64 = 16.0;
/// Requests before the first one that is measured.
const WARM_UP: usize = 200;

/// Server under test.
struct Target {
    name: &'static str,
    address: SocketAddr,
    /// `Host` header of requests.
    host: String,
}

/// Measures latency, throughput, a long reply and idle WebSockets.
pub(crate) async fn measure(report: &mut Report, workload: Workload) -> Result<()> {
    let upstream = Part::start(&["upstream"]).await?;
    let edge = Part::start(&["edge", &upstream.address.to_string()]).await?;
    let nginx = Nginx::start(upstream.address).await?;
    let targets = [
        Target { name: "direct", address: upstream.address, host: upstream.address.to_string() },
        Target { name: "edge", address: edge.address, host: parts::HOST.to_owned() },
        Target { name: "nginx", address: nginx.address, host: nginx.address.to_string() },
    ];
    latency(report, &targets, workload.requests).await?;
    throughput(report, &targets, workload.load_turns).await?;
    stream(report, &targets, &edge, workload.stream_mib).await?;
    sockets::idle(report, &edge, workload.sockets).await?;
    nginx.stop().await?;
    edge.stop().await?;
    upstream.stop().await
}

/// Measures the latency of sequential requests on one keep-alive connection to each target, in turns.
async fn latency(report: &mut Report, targets: &[Target; 3], requests: usize) -> Result<()> {
    let mut connections = Vec::new();
    for target in targets {
        connections.push((Connection::open(target.address, &target.host).await?, Vec::new()));
    }
    for number in 0..WARM_UP + requests {
        for (connection, times) in &mut connections {
            let took = connection.request("/").await?;
            if number >= WARM_UP {
                times.push(took);
            }
        }
    }
    let [direct, edge, nginx] = [0, 1, 2].map(|target| Percentiles::of(std::mem::take(&mut connections[target].1)));
    for (name, of) in [("p50", 0), ("p99", 1)] {
        let pick = |percentiles: &Percentiles| milliseconds([percentiles.p50, percentiles.p99][of]);
        let goal = (of == 0).then_some(Goal::AtMost(ADDED_MS_MAX));
        let name = format!("edge alone adds to a request, {name} (bound: nginx adds)");
        report.bounded(&name, "ms", pick(&edge) - pick(&direct), pick(&nginx) - pick(&direct), goal);
    }
    Ok(())
}

/// Measures the maximum rate of requests on 32 connections.
///
/// The targets take turns of one second, because the speed of the machine varies over time. The result is the turn with
/// the median ratio of edge to nginx.
async fn throughput(report: &mut Report, targets: &[Target; 3], turns: u64) -> Result<()> {
    let wrk = Wrk { seconds: 1, connections: 32 };
    let mut all = Vec::new();
    for _ in 0..turns {
        let mut rates = [0.0; 3];
        for (target, rate) in targets.iter().zip(&mut rates) {
            *rate = wrk.run(target.address, &target.host).await.with_context(|| target.name)?;
        }
        all.push(rates);
    }
    all.sort_by(|one, other| f64::total_cmp(&(one[1] / one[2]), &(other[1] / other[2])));
    let rates = all[all.len() / 2];
    let goal = Some(Goal::AtLeastTimesBound(SHARE_OF_NGINX_MIN));
    report.bounded("requests through the edge alone (bound: nginx)", "per s", rates[1], rates[2], goal);
    report.plain("requests without a proxy", "per s", rates[0], None);
    Ok(())
}

/// Measures one long reply through each target, and the growth of the edge's memory.
async fn stream(report: &mut Report, targets: &[Target; 3], edge: &Part, mib: u64) -> Result<()> {
    let before = edge.memory_mib()?;
    let mut rates = Vec::new();
    for target in targets {
        let time = download(target, mib).await.with_context(|| target.name)?;
        rates.push(mib as f64 * 1.048_576 / time.as_secs_f64());
    }
    let goal = Some(Goal::AtLeastTimesBound(SHARE_OF_NGINX_MIN));
    let name = format!("{mib} MiB through the edge alone (bound: nginx)");
    report.bounded(&name, "MB/s", rates[1], rates[2], goal);
    report.plain(&format!("{mib} MiB without a proxy"), "MB/s", rates[0], None);
    let growth = edge.memory_mib()? - before;
    report.plain("memory of the edge grew by", "MiB", growth.max(0.0), Some(Goal::AtMost(GROWTH_MIB_MAX)));
    Ok(())
}

async fn download(target: &Target, mib: u64) -> Result<Duration> {
    let mut connection = Connection::open(target.address, &target.host).await?;
    let request = Request::get(format!("/stream/{mib}")).header("host", &target.host).body(Empty::new())?;
    let start = std::time::Instant::now();
    let mut body = connection.send(request).await?.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    anyhow::ensure!(bytes == mib << 20, "{bytes} bytes arrived instead of {mib} MiB");
    Ok(start.elapsed())
}
