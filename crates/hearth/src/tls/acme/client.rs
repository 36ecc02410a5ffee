//! HTTPS client for the issuer, with bounds on time and size.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Time limit for one reply of the issuer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a reply: a certificate chain has some KiB.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Connector with the trusted authorities.
pub(super) struct Client(HttpsConnector<HttpConnector>);

impl Client {
    /// Creates a client that trusts the authorities of this host, and those in the file `root`.
    ///
    /// # Errors
    /// `root` cannot be read or contains no certificate, or no authority is trusted at all.
    pub(super) fn new(root: Option<&Path>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        // Certificates of the host's list that cannot be parsed are skipped, as other programs do.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = root {
            let name = || format!("--acme-root {}", path.display());
            let more = CertificateDer::pem_file_iter(path).with_context(name)?;
            let more: Vec<_> = more.collect::<Result<_, _>>().with_context(name)?;
            if more.is_empty() {
                bail!("{}: the file contains no certificate", name());
            }
            for certificate in more {
                roots.add(certificate).with_context(name)?;
            }
        }
        if roots.is_empty() {
            bail!("this host trusts no authority: install the package ca-certificates, or pass one with --acme-root");
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        Ok(Self(connector))
    }

    /// Creates a connection pool for one attempt; connections of the previous attempt, weeks ago, are closed by now.
    pub(super) fn session(&self) -> Session {
        Session(legacy::Client::builder(TokioExecutor::new()).build(self.0.clone()))
    }
}

/// Connection pool.
pub(super) struct Session(legacy::Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>);

impl HttpClient for Session {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let context = format!("{} {}", request.method(), request.uri());
        let response = self.0.request(request);
        Box::pin(async move {
            let whole = async {
                let (parts, body) = response.await?.into_parts();
                let body = Limited::new(body, REPLY_BYTES_MAX).collect().await;
                let body = body.map_err(|error| anyhow::anyhow!(error).context("reading the reply"))?.to_bytes();
                Ok(BytesResponse { parts, body: Box::new(body) })
            };
            let reply: Result<_> = match tokio::time::timeout(REPLY_TIMEOUT, whole).await {
                Ok(reply) => reply,
                Err(_) => Err(anyhow::anyhow!("no reply within {REPLY_TIMEOUT:?}")),
            };
            reply.map_err(|error| Error::Other(error.context(context).into()))
        })
    }
}
