//! Latency that edge and node add to a request, in clear and over TLS.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hearth_sdk::NewSandbox;
use hearth_testkit::Instance;
use hearth_types::guest::DAEMON_PORT;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Rounds;
use crate::bare::BareDriver;
use crate::report::Report;
use crate::statistics::{Percentiles, milliseconds};

/// Requests for each command of the other series. A request takes a fraction of the time of a command.
const REQUESTS_PER_COMMAND: usize = 10;

/// Keep-alive connection for health requests to the guest daemon.
struct HealthClient {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
}

impl HealthClient {
    async fn over<S>(stream: S, host: &str) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: host.to_owned() })
    }

    /// Sends a request and returns the time until the end of the reply.
    async fn request(&mut self) -> Result<Duration> {
        let request = Request::get("/health").header("host", &self.host).body(Empty::new())?;
        let start = Instant::now();
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        let took = start.elapsed();
        ensure!(status == 204, "the guest daemon replied with {status}");
        Ok(took)
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn address_of(url: &str) -> Result<SocketAddr> {
    let address = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    address.parse().with_context(|| format!("no address in {url}"))
}

/// The instance's TLS endpoint, and a connector that trusts its certificate authority.
struct TlsEndpoint {
    domain: String,
    address: SocketAddr,
    connector: TlsConnector,
}

impl TlsEndpoint {
    fn of(instance: &Instance) -> Result<Self> {
        let endpoints: Value = serde_json::from_slice(&fs::read(instance.folder().join("run/endpoints.json"))?)?;
        let text = |name: &str| endpoints[name].as_str().with_context(|| format!("no {name} in endpoints.json"));
        let domain = text("domain")?.to_owned();
        let port = domain.rsplit_once(':').context("no port in the domain")?.1.parse()?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(text("ca_file")?)?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Self { domain, address, connector: TlsConnector::from(Arc::new(config)) })
    }

    async fn connect(&self, sandbox_id: &str) -> Result<HealthClient> {
        let host = format!("{DAEMON_PORT}-{sandbox_id}.{}", self.domain);
        let name = host.split(':').next().unwrap_or_default().to_owned();
        let stream = self.connector.connect(ServerName::try_from(name)?, connect(self.address).await?).await?;
        HealthClient::over(stream, &host).await
    }
}

/// Measures a small request on a keep-alive connection, in turns: directly to a guest, through edge and node, over TLS.
pub(crate) async fn requests(
    report: &mut Report,
    bare: &BareDriver,
    instance: &Instance,
    rounds: Rounds,
) -> Result<()> {
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    let (vm, _) = bare.restore(4000).await?;
    let endpoint = TlsEndpoint::of(instance)?;
    let host = format!("{DAEMON_PORT}-{}.example.com", sandbox.id());
    let mut direct = HealthClient::over(connect(address_of(&vm.url())?).await?, "guest").await?;
    let mut clear = HealthClient::over(connect(address_of(instance.sandbox_url())?).await?, &host).await?;
    let mut encrypted = endpoint.connect(sandbox.id()).await?;
    let (mut bounds, mut in_clear, mut over_tls, mut handshakes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..rounds.commands * REQUESTS_PER_COMMAND {
        bounds.push(direct.request().await?);
        in_clear.push(clear.request().await?);
        over_tls.push(encrypted.request().await?);
        if number % REQUESTS_PER_COMMAND == 0 {
            let start = Instant::now();
            endpoint.connect(sandbox.id()).await?.request().await?;
            handshakes.push(start.elapsed());
        }
    }
    bare.discard(vm).await;
    sandbox.kill().await?;
    let bounds = Percentiles::of(bounds);
    for (way, series) in [("in clear", in_clear), ("over TLS", over_tls)] {
        let series = Percentiles::of(series);
        for (name, measured, bound) in [("p50", series.p50, bounds.p50), ("p99", series.p99, bounds.p99)] {
            let name = format!("request through edge and node, {way}, {name}");
            report.bounded(&name, "ms", milliseconds(measured), milliseconds(bound), None);
        }
    }
    let first_reply = milliseconds(Percentiles::of(handshakes).p50);
    report.plain("new TLS connection to first reply, p50", "ms", first_reply, None);
    Ok(())
}
