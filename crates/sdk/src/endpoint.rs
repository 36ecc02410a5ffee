//! HTTP client for one server, with a connection pool.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::Error;

/// Maximum size of a response that is read into memory. The largest is a list of a hundred sandboxes.
const RESPONSE_BYTES_MAX: usize = 16 << 20;
/// Maximum length of a response body that is quoted in an error.
const QUOTE_CHARS_MAX: usize = 300;

/// A server. Cheap to clone; clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    authority: Authority,
    pool: Pool<HttpConnector, Full<Bytes>>,
}

pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: &'a str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
    pub(crate) timeout: Duration,
}

impl Endpoint {
    pub(crate) fn new(url: &str) -> Result<Self, Error> {
        let invalid = || Error::Url { url: url.to_owned() };
        let uri: Uri = url.trim_end_matches('/').parse().map_err(|_| invalid())?;
        let plain = uri.scheme() == Some(&Scheme::HTTP) && matches!(uri.path(), "" | "/");
        let authority = uri.into_parts().authority.filter(|_| plain).ok_or_else(invalid)?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Self { authority, pool: Pool::builder(TokioExecutor::new()).build(connector) })
    }

    /// Returns the server's URL, for error messages.
    pub(crate) fn name(&self) -> String {
        format!("http://{}", self.authority)
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Sends a request and returns the response if its status is a success.
    pub(crate) async fn send(&self, call: Call<'_>) -> Result<Response<Incoming>, Error> {
        let uri = format!("{}{}", self.name(), call.path);
        let mut request = Request::builder().method(call.method).uri(&uri);
        if !call.body.is_empty() && !call.headers.iter().any(|(name, _)| *name == header::CONTENT_TYPE.as_str()) {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(call.body)).map_err(|_| Error::Url { url: uri })?;
        let result = tokio::time::timeout(call.timeout, self.pool.request(request)).await;
        let timeout = || Error::Timeout { peer: self.name(), seconds: call.timeout.as_secs() };
        let response = result.map_err(|_| timeout())?.map_err(|error| self.transport(io::Error::other(error)))?;
        if response.status().is_success() { Ok(response) } else { Err(self.rejection(response).await) }
    }

    /// Reads the whole body of a response.
    pub(crate) async fn read(&self, response: Response<Incoming>, bytes_max: usize) -> Result<Bytes, Error> {
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.transport(io::Error::other(error)))
    }

    /// Sends a request and parses the JSON of its response.
    pub(crate) async fn json<T: serde::de::DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let response = self.send(call).await?;
        let body = self.read(response, RESPONSE_BYTES_MAX).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::InvalidResponse { peer: self.name(), reason: error.to_string() })
    }

    fn transport(&self, source: io::Error) -> Error {
        Error::Transport { peer: self.name(), source }
    }

    async fn rejection(&self, response: Response<Incoming>) -> Error {
        #[derive(serde::Deserialize)]
        struct Body {
            message: String,
        }
        let status: StatusCode = response.status();
        let body = self.read(response, RESPONSE_BYTES_MAX).await.unwrap_or_default();
        let message = match serde_json::from_slice::<Body>(&body) {
            Ok(body) => body.message,
            Err(_) => String::from_utf8_lossy(&body).trim().chars().take(QUOTE_CHARS_MAX).collect(),
        };
        Error::Rejected { status, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_base_urls_are_accepted() {
        for url in ["http://127.0.0.1:3000", "http://localhost:3000/"] {
            assert!(Endpoint::new(url).is_ok(), "{url}");
        }
        for url in ["", "127.0.0.1:3000", "https://example.com", "http://a/b", "ftp://a"] {
            assert!(matches!(Endpoint::new(url), Err(Error::Url { .. })), "{url}");
        }
    }
}
