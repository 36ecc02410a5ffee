//! Requests of this server to issuers of tokens: bounded in time and size, and never redirected, so that nobody sends it
//! anywhere else.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;

/// How long an issuer may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read: sets of keys with certificates have a few KiB for each.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the issuer did not answer in time")]
    TimedOut,
    #[error("asking the issuer")]
    Request(#[source] hyper_util::client::legacy::Error),
    #[error("the issuer answered {0}")]
    Status(StatusCode),
    #[error("reading the issuer's answer")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("understanding the issuer's configuration")]
    Configuration(#[source] serde_json::Error),
    #[error("the issuer's configuration is that of `{0}`")]
    OtherIssuer(String),
    #[error("the issuer's configuration names `{0}` as the address of its keys")]
    Address(String),
}

/// Asks issuers.
pub(crate) struct Outbound {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Outbound {
    /// # Errors
    /// The host has no certificates that could be trusted.
    pub(crate) fn new() -> io::Result<Self> {
        // The host's own: an issuer inside of a company has a certificate of that company.
        let tls = HttpsConnectorBuilder::new().with_provider_and_native_roots(ring::default_provider())?;
        let connector = tls.https_or_http().enable_http1().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// The answer, whatever its status. Cancel safe.
    pub(crate) async fn exchange(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, FetchError> {
        let exchange = async {
            let response = self.client.request(request.map(Full::from)).await.map_err(FetchError::Request)?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(FetchError::Body)?;
            Ok(Response::from_parts(parts, body.to_bytes().to_vec()))
        };
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or(Err(FetchError::TimedOut))
    }

    /// What is there. Cancel safe.
    pub(crate) async fn get(&self, address: &Uri) -> Result<Vec<u8>, FetchError> {
        let mut request = Request::new(Vec::new());
        *request.uri_mut() = address.clone();
        let response = self.exchange(request).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(FetchError::Status(status)),
        }
    }
}
