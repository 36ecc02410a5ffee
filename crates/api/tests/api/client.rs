//! HTTP client that sends exactly the request that a test specifies.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::document;

/// Maximum duration of an exchange, longer than any intended wait of a test.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// Returns a text member of the JSON body.
    pub(crate) fn text_of(&self, member: &str) -> String {
        self.json()[member].as_str().unwrap_or_else(|| panic!("no text `{member}` in {self:?}")).to_owned()
    }

    #[track_caller]
    pub(crate) fn assert_status(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    /// Asserts that the reply is an error in the contract's format, with `message` in its message.
    #[track_caller]
    pub(crate) fn assert_error(self, status: u16, message: &str) -> Self {
        let reply = self.assert_status(status);
        assert_eq!(reply.header("content-type"), Some("application/json"), "{reply:?}");
        let json = reply.json();
        assert_eq!(json["code"], status, "{reply:?}");
        assert!(json["message"].as_str().is_some_and(|text| text.contains(message)), "{message}: {reply:?}");
        let is_retried_by_default = [429, 502, 503, 504].contains(&status);
        assert_eq!(reply.header("should-retry").is_some(), is_retried_by_default, "{reply:?}");
        reply
    }
}

/// Client with an optional API key. It panics on a reply that does not match the OpenAPI document.
#[derive(Clone)]
pub(crate) struct Client {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    key: Option<String>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, key: Option<String>) -> Self {
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        Self { http, address, key }
    }

    pub(crate) fn key(&self) -> &str {
        self.key.as_deref().expect("a client with a key")
    }

    /// Returns the URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = Request::builder()
            .method(method.parse::<Method>().expect("a method"))
            .uri(format!("http://{}{path}", self.address));
        if let Some(key) = &self.key {
            request = request.header("X-API-KEY", key);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let exchange = async {
            let response = self.http.request(request).await.expect("a reply");
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.expect("a whole reply").to_bytes();
            Reply {
                status: parts.status,
                headers: parts.headers,
                text: String::from_utf8(bytes.to_vec()).expect("text"),
            }
        };
        let reply =
            tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| panic!("{method} {path} timed out"));
        document::check(method, path, &reply);
        reply
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.send("POST", path, &[("content-type", "application/json")], body.to_owned()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[], "").await
    }

    /// Sends raw bytes and returns the connection.
    pub(crate) async fn raw(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("connecting");
        stream.write_all(text.as_bytes()).await.expect("sending");
        stream
    }

    /// Sends raw bytes and returns all received bytes until the server closes the connection.
    pub(crate) async fn raw_exchange(&self, text: &str) -> String {
        let mut stream = self.raw(text).await;
        let mut bytes = Vec::new();
        let reading = stream.read_to_end(&mut bytes);
        tokio::time::timeout(TIMEOUT, reading).await.expect("a reply in time").expect("a reply");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
