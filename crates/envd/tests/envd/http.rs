//! Plain HTTP requests to the daemon.

use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::daemon::Daemon;

/// A complete reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("UTF-8"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }
}

pub(crate) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of unknown length, sent in chunks as they arrive.
pub(crate) fn chunked(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    use futures::StreamExt as _;

    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// Sends a request on its own connection, which is closed when the reply is dropped.
pub(crate) async fn open(
    daemon: &Daemon,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Response<Incoming> {
    let stream = TcpStream::connect(("127.0.0.1", daemon.port)).await.expect("the daemon listens");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "guest");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(body).expect("a request")).await.expect("a reply")
}

pub(crate) async fn send(daemon: &Daemon, method: Method, path: &str, headers: &[(&str, &str)], body: Body) -> Reply {
    Reply::read(open(daemon, method, path, headers, body).await).await
}

pub(crate) async fn get(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Reply {
    send(daemon, Method::GET, path, headers, whole("")).await
}

pub(crate) async fn post(daemon: &Daemon, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    send(daemon, Method::POST, path, headers, whole(body)).await
}

pub(crate) async fn post_json(daemon: &Daemon, path: &str, body: &serde_json::Value) -> Reply {
    post(daemon, path, &[("content-type", "application/json")], body.to_string()).await
}

/// Percent-encodes a path for a query.
pub(crate) fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
