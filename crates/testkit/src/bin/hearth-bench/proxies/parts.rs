//! Upstream and edge as separate processes: this program, started with special arguments.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::StreamExt;
use hearth_catalog::Catalog;
use hearth_edge::Edge;
use hearth_proxy::body::{self, Body};
use hearth_proxy::serve;
use hearth_types::{ExecutionId, NodeAddress, Route, TeamId, Visitors};
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// First argument that makes this program run as a part.
const ACT: &str = "act";
/// The only sandbox with a route in the edge's catalog.
const SANDBOX: &str = "ibench";
/// Host name of a port of that sandbox.
pub(super) const HOST: &str = "8000-ibench.example.com";
const CHUNK_BYTES: usize = 64 << 10;
/// Longer than the benchmark.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// Running part.
pub(super) struct Part {
    child: Child,
    pub(super) address: SocketAddr,
}

impl Part {
    pub(super) async fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ACT).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting a part")?;
        let output = child.stdout.take().context("standard output is not a pipe")?;
        let line = BufReader::new(output).lines().next_line().await?.context("a part exited without an address")?;
        Ok(Self { child, address: line.parse()? })
    }

    /// Returns the resident anonymous memory of the process.
    pub(super) fn memory_mib(&self) -> Result<f64> {
        let pid = self.child.id().context("a part has exited")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        terminate(&self.child)?;
        self.child.wait().await?;
        Ok(())
    }
}

pub(super) fn terminate(child: &Child) -> Result<()> {
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).context("the process has exited")?;
    Ok(kill_process(pid, Signal::TERM)?)
}

/// Runs as a part until the process is killed, if the arguments request it. Otherwise returns false.
pub(crate) async fn run_as_part(arguments: &[String]) -> Result<bool> {
    match arguments {
        [act, part] if act == ACT && part == "upstream" => upstream().await?,
        [act, part, address] if act == ACT && part == "edge" => edge(address.parse()?).await?,
        _ => return Ok(false),
    }
    Ok(true)
}

async fn listen() -> Result<TcpListener> {
    hearth_host::process::raise_open_files()?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?);
    Ok(listener)
}

async fn edge(upstream: SocketAddr) -> Result<()> {
    let catalog = Catalog::in_memory();
    let route = Route {
        sandbox_id: SANDBOX.parse()?,
        execution_id: ExecutionId::generate(),
        team_id: TeamId::generate(),
        node_id: "bench".parse()?,
        node_proxy: NodeAddress::Tcp(upstream),
        visitors: Visitors::All,
        host_mask: None,
        https_ports: BTreeSet::new(),
    };
    catalog.publish(route, LEASE, None).await?;
    let edge = Edge::new(hearth_edge::Config::default(), catalog);
    edge.serve(listen().await?, CancellationToken::new()).await;
    bail!("the edge stopped without a request")
}

/// Serves `/` with a few bytes and `/stream/MIB` with that many MiB. Echoes data on upgraded connections.
async fn upstream() -> Result<()> {
    let handler = tower::service_fn(|request: Request<Body>| async { Ok::<_, Infallible>(reply(request)) });
    let bounds =
        serve::Config { connections_max: 16_384, idle_timeout: serve::IDLE_TIMEOUT, drain_timeout: Duration::ZERO };
    serve::serve(listen().await?, handler, bounds, CancellationToken::new()).await;
    bail!("the upstream stopped without a request")
}

fn reply(mut request: Request<Body>) -> Response<Body> {
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await?);
            let mut buffer = [0; 64];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return anyhow::Ok(()),
                    count => stream.write_all(&buffer[..count]).await?,
                }
            }
        });
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        return response;
    }
    let mib = request.uri().path().strip_prefix("/stream/").and_then(|mib| mib.parse::<usize>().ok());
    let Some(mib) = mib else { return Response::new(body::full("fine")) };
    let chunk = Bytes::from(vec![b'x'; CHUNK_BYTES]);
    let chunks = futures::stream::repeat(chunk).take((mib << 20) / CHUNK_BYTES);
    let frames = chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    Response::new(body::boxed(StreamBody::new(frames)))
}
