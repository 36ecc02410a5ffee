//! The edge next to nginx, each alone in front of the same upstream, and a direct connection as the bound.
//!
//! Every part is a process of its own, this program again for the upstream and the edge, so that one's memory can be told from
//! another's. The edge finds its upstream as it finds a node: by a route in its catalog.

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

pub(crate) use parts::act;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amounts {
    pub(crate) requests: usize,
    /// Turns of a second.
    pub(crate) load_turns: u64,
    pub(crate) stream_mib: u64,
    pub(crate) sockets: usize,
}

/// What is promised.
const ADDED_MS_MAX: f64 = 0.3;
const SHARE_OF_NGINX_MIN: f64 = 0.8;
const GROWTH_MIB_MAX: f64 = 16.0;
/// Requests before the first that counts.
const WARM_UP: usize = 200;

/// Who answers, and what requests to it say.
struct Way {
    name: &'static str,
    address: SocketAddr,
    host: String,
}

/// Measures all of it.
pub(crate) async fn measure(report: &mut Report, amounts: Amounts) -> Result<()> {
    let upstream = Part::start(&["upstream"]).await?;
    let edge = Part::start(&["edge", &upstream.address.to_string()]).await?;
    let nginx = Nginx::start(upstream.address).await?;
    let ways = [
        Way { name: "direct", address: upstream.address, host: upstream.address.to_string() },
        Way { name: "edge", address: edge.address, host: parts::HOST.to_owned() },
        Way { name: "nginx", address: nginx.address, host: nginx.address.to_string() },
    ];
    latency(report, &ways, amounts.requests).await?;
    throughput(report, &ways, amounts.load_turns).await?;
    stream(report, &ways, &edge, amounts.stream_mib).await?;
    sockets::idle(report, &edge, amounts.sockets).await?;
    nginx.stop().await?;
    edge.stop().await?;
    upstream.stop().await
}

/// One request after the other on a kept connection to each; they take turns.
async fn latency(report: &mut Report, ways: &[Way; 3], requests: usize) -> Result<()> {
    let mut connections = Vec::new();
    for way in ways {
        connections.push((Connection::open(way.address, &way.host).await?, Vec::new()));
    }
    for number in 0..WARM_UP + requests {
        for (connection, times) in &mut connections {
            let took = connection.ask("/").await?;
            if number >= WARM_UP {
                times.push(took);
            }
        }
    }
    let [direct, edge, nginx] = [0, 1, 2].map(|way| Percentiles::of(std::mem::take(&mut connections[way].1)));
    for (name, of) in [("p50", 0), ("p99", 1)] {
        let pick = |percentiles: &Percentiles| milliseconds([percentiles.p50, percentiles.p99][of]);
        let goal = (of == 0).then_some(Goal::AtMost(ADDED_MS_MAX));
        let name = format!("edge alone adds to a request, {name} (bound: nginx adds)");
        report.bounded(&name, "ms", pick(&edge) - pick(&direct), pick(&nginx) - pick(&direct), goal);
    }
    Ok(())
}

/// As many requests as go through, on 32 connections. They take turns of a second, because the machine's own speed changes from
/// one to the next; the turn with the median share of nginx's counts.
async fn throughput(report: &mut Report, ways: &[Way; 3], turns: u64) -> Result<()> {
    let wrk = Wrk { seconds: 1, connections: 32 };
    let mut all = Vec::new();
    for _ in 0..turns {
        let mut rates = [0.0; 3];
        for (way, rate) in ways.iter().zip(&mut rates) {
            *rate = wrk.run(way.address, &way.host).await.with_context(|| way.name)?;
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

/// One long answer through each.
async fn stream(report: &mut Report, ways: &[Way; 3], edge: &Part, mib: u64) -> Result<()> {
    let before = edge.memory_mib()?;
    let mut rates = Vec::new();
    for way in ways {
        let time = download(way, mib).await.with_context(|| way.name)?;
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

async fn download(way: &Way, mib: u64) -> Result<Duration> {
    let mut connection = Connection::open(way.address, &way.host).await?;
    let request = Request::get(format!("/stream/{mib}")).header("host", &way.host).body(Empty::new())?;
    let start = std::time::Instant::now();
    let mut body = connection.send(request).await?.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    anyhow::ensure!(bytes == mib << 20, "{bytes} bytes arrived instead of {mib} MiB");
    Ok(start.elapsed())
}
