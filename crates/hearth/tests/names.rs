//! Names of the domain of a real `hearth up`, with a client that trusts only the instance's own authority.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hearth_sdk::NewSandbox;
use hearth_testkit::{Instance, PreparedDataDir, until};
use hearth_types::Secret;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hearth"))
}

/// Runs a command on this data directory, and returns its output.
fn run(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(binary()).args(arguments).arg("--data-dir").arg(folder).output()?;
    ensure!(output.status.success(), "hearth {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// HTTP/2 connection to the port of `domain`, for requests to any of its names.
struct Names {
    scheme: &'static str,
    domain: String,
    sender: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
}

impl Names {
    async fn connect(domain: &str, ca: &str) -> Result<Self> {
        let (host, port) = domain.split_once(':').context("a port")?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(format!("api.{host}"))?;
        let stream = TcpStream::connect(("127.0.0.1", port.parse()?)).await?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { scheme: "https", domain: domain.to_owned(), sender })
    }

    async fn connect_in_clear(domain: &str) -> Result<Self> {
        let (_, port) = domain.split_once(':').context("a port")?;
        let stream = TcpStream::connect(("127.0.0.1", port.parse()?)).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { scheme: "http", domain: domain.to_owned(), sender })
    }

    /// Sends a GET request to the domain itself.
    async fn get_apex(&mut self, path: &str) -> Result<(u16, String)> {
        self.send(http::Request::get(format!("https://{}{path}", self.domain)), "").await
    }

    async fn get(&mut self, label: &str, path: &str, key: &str) -> Result<(u16, String)> {
        self.send(http::Request::get(self.uri(label, path)).header("x-api-key", key), "").await
    }

    fn uri(&self, label: &str, path: &str) -> String {
        format!("{}://{label}.{}{path}", self.scheme, self.domain)
    }

    async fn send(&mut self, request: http::request::Builder, body: &str) -> Result<(u16, String)> {
        let request = request.body(Full::from(body.to_owned()))?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        Ok((status, String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_serves_the_api_and_every_sandbox() -> Result<()> {
    let instance = Instance::start(&PreparedDataDir::ensure(binary())?, &[]).await?;
    let folder = instance.folder().to_owned();
    let endpoints: Value = serde_json::from_str(&run(&folder, &["env", "--json"])?)?;
    let domain = endpoints["domain"].as_str().context("names are served")?.to_owned();
    assert!(domain.starts_with("hearth.localhost:"), "{domain}");
    let exports = run(&folder, &["env", "--by", "names"])?;
    for part in [
        format!("export E2B_DOMAIN={domain}\n"),
        "unset E2B_API_URL E2B_SANDBOX_URL E2B_DOCS_BASE\n".to_owned(),
        format!("export NODE_EXTRA_CA_CERTS={}/tls/hearth.localhost/ca.pem\n", folder.display()),
        format!("export SSL_CERT_FILE={}/tls/hearth.localhost/bundle.pem\n", folder.display()),
    ] {
        assert!(exports.contains(&part), "{part} in {exports}");
    }
    assert!(run(&folder, &["env", "--by", "addresses"])?.contains("export E2B_SANDBOX_URL=http://127.0.0.1:"));

    let ca = run(&folder, &["tls", "export"])?;
    let copy = folder.join("copy.pem");
    run(&folder, &["tls", "export", &copy.to_string_lossy()])?;
    assert_eq!(std::fs::read_to_string(&copy)?, ca);

    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    let mut names = Names::connect(&domain, &ca).await?;
    let key = instance.key().expose().to_owned();
    let (status, body) = names.get("api", &format!("/sandboxes/{}", sandbox.id()), &key).await?;
    assert_eq!(status, 200, "{body}");
    assert_eq!(serde_json::from_str::<Value>(&body)?["domain"], domain);
    assert_eq!(names.get("api", "/v2/sandboxes", "e2b_00").await?.0, 401);
    assert_eq!(names.get(&format!("49983-{}", sandbox.id()), "/health", "").await?.0, 204);
    let (status, page) = names.get(&format!("8080-{}", sandbox.id()), "/", "").await?;
    assert!(status == 502 && page.contains("port is not open"), "{status}: {page}");
    let (status, page) = names.get_apex("/docs/api/cli?next=http://localhost:1").await?;
    assert!(status == 200 && page.contains("Log in to Hearth"), "{status}: {page}");
    assert_eq!(names.get("sandbox", "/", "").await?, (400, "Invalid host".to_owned()));
    // The same port without TLS: some clients use plain HTTP if the domain has an explicit port.
    let mut clear = Names::connect_in_clear(&domain).await?;
    assert_eq!(clear.get("api", &format!("/sandboxes/{}", sandbox.id()), &key).await?.0, 200);
    assert_eq!(clear.get(&format!("49983-{}", sandbox.id()), "/health", "").await?.0, 204);
    sandbox.kill().await?;

    // After another start the port differs, and the authority is the same.
    let (_, folder) = instance.terminate().await?;
    let instance = Instance::start_in(binary(), folder, &[]).await?;
    let endpoints: Value = serde_json::from_str(&run(instance.folder(), &["env", "--json"])?)?;
    let domain = endpoints["domain"].as_str().context("names are served")?;
    assert_eq!(Names::connect(domain, &ca).await?.get("api", "/health", "").await?.0, 200);
    let (status, _) = instance.terminate().await?;
    ensure!(status.success(), "hearth failed: {status}");
    Ok(())
}

/// Guest command that starts a TLS server with a self-signed certificate.
const TLS_SERVER: &str =
    "cd /tmp && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key \
    -out cert -subj /CN=nobody 2>/dev/null && (setsid nohup python3 -c \"
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.headers['host'].encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(('0.0.0.0', 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('cert', 'key')
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
\" >/dev/null 2>&1 </dev/null &)";

#[tokio::test(flavor = "multi_thread")]
async fn a_private_https_port_requires_the_traffic_token() -> Result<()> {
    let instance = Instance::start(&PreparedDataDir::ensure(binary())?, &[]).await?;
    let endpoints: Value = serde_json::from_str(&run(instance.folder(), &["env", "--json"])?)?;
    let domain = endpoints["domain"].as_str().context("names are served")?;
    let mut names = Names::connect(domain, &run(instance.folder(), &["tls", "export"])?).await?;
    let body = r#"{"templateID":"base","network":{"allowPublicTraffic":false,"httpsPorts":[8443],
        "maskRequestHost":"localhost:${PORT}"}}"#;
    let create = http::Request::post(names.uri("api", "/v2/sandboxes")).header("x-api-key", instance.key().expose());
    let (status, created) = names.send(create, body).await?;
    ensure!(status == 201, "{status}: {created}");
    let created: Value = serde_json::from_str(&created)?;
    let text = |name: &str| created[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
    let (id, token) = (text("sandboxID")?, text("trafficAccessToken")?);
    let sandbox = instance.client().attach(&id, Some(Secret::new(text("envdAccessToken")?)));
    let started = sandbox.run(TLS_SERVER).await?;
    ensure!(started.exit_code == 0, "{}", String::from_utf8_lossy(&started.stderr));

    let label = format!("8443-{id}");
    let (status, page) = names.get(&label, "/", "").await?;
    assert!(status == 403 && page.contains("header is missing"), "{status}: {page}");
    let names = tokio::sync::Mutex::new(names);
    until("the server in the guest replies", || async {
        let mut names = names.lock().await;
        let visit = http::Request::get(names.uri(&label, "/")).header("e2b-traffic-access-token", &token);
        let (status, body) = names.send(visit, "").await?;
        ensure!([200, 502].contains(&status), "{status}: {body}");
        Ok((status == 200).then(|| assert_eq!(body, "localhost:8443")))
    })
    .await?;
    sandbox.kill().await?;
    let (status, _) = instance.terminate().await?;
    ensure!(status.success(), "hearth failed: {status}");
    Ok(())
}

#[test]
fn tls_commands_fail_before_the_first_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for arguments in [&["tls", "export"][..], &["tls", "trust"]] {
        let output = Command::new(binary()).args(arguments).arg("--data-dir").arg(folder.path()).output()?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && text.contains("start `hearth up` once"), "{arguments:?}: {text}");
    }
    Ok(())
}

#[test]
fn tls_commands_fail_with_a_given_certificate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for command in ["export", "trust", "untrust"] {
        let arguments = ["tls", command, "--tls-cert", "/chain.pem", "--tls-key", "/key.pem"];
        let output = Command::new(binary()).args(arguments).arg("--data-dir").arg(folder.path()).output()?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && text.contains("no certificate authority of its own"), "{command}: {text}");
    }
    Ok(())
}
