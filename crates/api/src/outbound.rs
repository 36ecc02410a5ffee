//! HTTP client for requests of this server to token issuers.
//!
//! Requests have limits for time and size. Redirects are not followed, so a reply cannot direct the server to another
//! address.

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

/// Maximum duration of one exchange.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a response body. Key sets with certificates have a few KiB per key.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// Failure of a request to an issuer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the issuer did not respond in time")]
    TimedOut,
    #[error("sending the request to the issuer")]
    Request(#[source] hyper_util::client::legacy::Error),
    #[error("the issuer responded with status {0}")]
    Status(StatusCode),
    #[error("reading the issuer's response")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("parsing the issuer's configuration")]
    Configuration(#[source] serde_json::Error),
    #[error("the configuration belongs to another issuer: `{0}`")]
    OtherIssuer(String),
    #[error("`{0}` is not a valid address for the issuer's configuration or keys")]
    Address(String),
}

/// HTTP client for token issuers.
pub(crate) struct IssuerClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl IssuerClient {
    /// Creates a client that trusts the certificates of the host.
    ///
    /// # Errors
    /// The trusted certificates of the host cannot be read.
    pub(crate) fn new() -> io::Result<Self> {
        // An issuer inside a company may have a certificate of that company, which only the host trusts.
        let tls = HttpsConnectorBuilder::new().with_provider_and_native_roots(ring::default_provider())?;
        let connector = tls.https_or_http().enable_http1().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Sends a request and returns the response with any status. Cancel safe.
    pub(crate) async fn exchange(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, FetchError> {
        let exchange = async {
            let response = self.client.request(request.map(Full::from)).await.map_err(FetchError::Request)?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, RESPONSE_BYTES_MAX).collect().await.map_err(FetchError::Body)?;
            Ok(Response::from_parts(parts, body.to_bytes().to_vec()))
        };
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or(Err(FetchError::TimedOut))
    }

    /// Fetches the body at an address, and returns an error for any status except 200. Cancel safe.
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
