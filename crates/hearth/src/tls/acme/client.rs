//! HTTP towards the issuer: encrypted, and bounded in time and size.

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

/// How long the issuer may take for one answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer: a chain of certificates has some KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Whom we trust, and how we connect.
pub(super) struct Client(HttpsConnector<HttpConnector>);

impl Client {
    /// One that trusts the authorities of this host, and those in `root`.
    pub(super) fn new(root: Option<&Path>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        // Whatever of the host's list cannot be read is not trusted, as everywhere else.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = root {
            let name = || format!("--acme-root {}", path.display());
            let more = CertificateDer::pem_file_iter(path).with_context(name)?;
            let more: Vec<_> = more.collect::<Result<_, _>>().with_context(name)?;
            if more.is_empty() {
                bail!("{}: there is no certificate in it", name());
            }
            for certificate in more {
                roots.add(certificate).with_context(name)?;
            }
        }
        if roots.is_empty() {
            bail!("this host trusts no authority: install the package ca-certificates, or name one with --acme-root");
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        Ok(Self(connector))
    }

    /// Connections for one attempt: those of the last one, weeks ago, are of no use.
    pub(super) fn session(&self) -> Session {
        Session(legacy::Client::builder(TokioExecutor::new()).build(self.0.clone()))
    }
}

/// Connections that are used again.
pub(super) struct Session(legacy::Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>);

impl HttpClient for Session {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = self.0.request(request);
        Box::pin(async move {
            let whole = async {
                let (parts, body) = answer.await?.into_parts();
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
                let body = body.map_err(|error| anyhow::anyhow!(error).context("reading the answer"))?.to_bytes();
                Ok(BytesResponse { parts, body: Box::new(body) })
            };
            let answer: Result<_> = match tokio::time::timeout(ANSWER_PATIENCE, whole).await {
                Ok(answer) => answer,
                Err(_) => Err(anyhow::anyhow!("there was no answer within {ANSWER_PATIENCE:?}")),
            };
            answer.map_err(|error| Error::Other(error.context(what).into()))
        })
    }
}
