//! Keys that an issuer publishes at an address. Issuers change them, so they are fetched again from time to time, and soon
//! after a token names a key that is not known. What was fetched last counts until something better comes.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;

/// How long the issuer may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest set that is read: keys with certificates have a few KiB each.
const SET_BYTES_MAX: usize = 1 << 20;

/// Why keys were not fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the issuer did not answer in time")]
    TimedOut,
    #[error("asking the issuer")]
    Request(#[source] hyper_util::client::legacy::Error),
    #[error("the issuer answered {0}")]
    Status(StatusCode),
    #[error("reading the issuer's answer")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where an issuer publishes its keys.
pub(super) struct Publisher {
    address: Uri,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl Publisher {
    /// # Errors
    /// The host has no certificates that could be trusted.
    pub(super) fn new(address: Uri) -> io::Result<Self> {
        // The host's own: an issuer inside of a company has a certificate of that company.
        let tls = HttpsConnectorBuilder::new().with_provider_and_native_roots(ring::default_provider())?;
        let connector = tls.https_or_http().enable_http1().build();
        Ok(Self { address, client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    pub(super) fn address(&self) -> &Uri {
        &self.address
    }

    /// The text of the set. Cancel safe.
    pub(super) async fn fetch(&self) -> Result<Bytes, FetchError> {
        tokio::time::timeout(FETCH_TIMEOUT, self.ask()).await.unwrap_or(Err(FetchError::TimedOut))
    }

    async fn ask(&self) -> Result<Bytes, FetchError> {
        let response = self.client.get(self.address.clone()).await.map_err(FetchError::Request)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), SET_BYTES_MAX);
        Ok(body.collect().await.map_err(FetchError::Body)?.to_bytes())
    }
}

/// Whether keys can be fetched from there.
pub(super) fn parse(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_known && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}
