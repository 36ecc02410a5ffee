//! Load generators: sequential requests on one connection, and wrk.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::process::Command;

/// Keep-alive connection.
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr, host: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(Self { sender, host: host.to_owned() })
    }

    pub(super) async fn send(&mut self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status().as_u16() < 300, "{}", response.status());
        Ok(response)
    }

    /// Sends a request and returns the time until the end of the reply.
    pub(super) async fn request(&mut self, path: &str) -> Result<Duration> {
        let request = Request::get(path).header("host", &self.host).body(Empty::new())?;
        let start = Instant::now();
        self.send(request).await?.into_body().collect().await?;
        Ok(start.elapsed())
    }
}

/// wrk, limited to one thread to leave the other processors to the server.
pub(super) struct Wrk {
    pub(super) seconds: u64,
    pub(super) connections: usize,
}

impl Wrk {
    /// Runs wrk and returns the replies per second.
    pub(super) async fn run(&self, address: SocketAddr, host: &str) -> Result<f64> {
        let mut command = Command::new("wrk");
        command
            .args(["-t1", &format!("-c{}", self.connections), &format!("-d{}s", self.seconds)])
            .args(["-H", &format!("Host: {host}"), &format!("http://{address}/")])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = command.output().await.context("starting wrk (Debian's package of that name)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || text.contains("Non-2xx") || text.contains("Socket errors") {
            bail!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
        }
        let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
        rate.and_then(|rate| rate.trim().parse().ok()).with_context(|| format!("no rate in the output of wrk: {text}"))
    }
}
