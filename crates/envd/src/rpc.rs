//! Entry of Connect calls: checks of the protocol before a service is called.
//!
//! connectrpc implements the protocol; this module adds the contract's rules that it leaves open: only POST, only the
//! two content types of a method's kind, a well-formed deadline (zero means none) with the contract's text when it
//! passes, and a closed connection when a call ends before its request has been read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State as Extract};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use connectrpc::{ConnectError, ConnectRpcService, Dispatcher, Limits, MethodKind, RequestContext, Router};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use tower::Service;

use crate::server::not_found;

/// Default interval of keepalives.
const KEEPALIVE_DEFAULT: Duration = Duration::from_secs(90);
/// The protocol's limit for a deadline in digits of milliseconds; ten digits are a third of a year.
const TIMEOUT_DIGITS_MAX: usize = 10;
const TIMEOUT: &str = "connect-timeout-ms";
const VERSION: &str = "connect-protocol-version";
const KEEPALIVE: &str = "keepalive-ping-interval";
const STREAM_ACCEPT: &str = "connect-accept-encoding";

/// Deadline of a call, counted from its arrival.
#[derive(Debug, Clone, Copy)]
struct Deadline(Instant);

/// Dispatcher of the services' procedures.
pub(crate) type Procedures = ConnectRpcService<Router>;

/// Builds the dispatcher of the services.
///
/// The contract has no limit on messages: the daemon serves a single tenant, in that tenant's own machine.
pub(crate) fn services(router: Router) -> Procedures {
    ConnectRpcService::new(router).with_limits(Limits::unlimited())
}

/// Handles a call.
pub(crate) async fn serve(Extract(mut services): Extract<Procedures>, mut request: Request) -> Response {
    let kind = services.dispatcher().lookup(request.uri().path().trim_start_matches('/')).map(|method| method.kind);
    let Some(kind) = kind else { return not_found() };
    if request.method() != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")]).into_response();
    }
    let accepted = content_types(kind);
    let essence = essence(request.headers());
    let Some(content_type) = accepted.into_iter().find(|accepted| *accepted == essence) else {
        let accept_post = [("accept-post", accepted.join(", "))];
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, accept_post).into_response();
    };
    // connectrpc compares the content type literally to detect a stream, so it gets the canonical form.
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    let deadline = match check(request.headers()) {
        Ok(deadline) => deadline,
        Err(error) => return error.into_http_response(request.headers()).map(Body::new),
    };
    let (mut parts, body) = request.into_parts();
    // This module enforces the deadline: the library's own has a different text and treats zero as already expired.
    parts.headers.remove(TIMEOUT);
    if kind != MethodKind::Unary {
        // The library would treat a compressed request as a request for compressed replies.
        parts.headers.entry(STREAM_ACCEPT).or_insert(HeaderValue::from_static("identity"));
    }
    if let Some(deadline) = deadline {
        parts.extensions.insert(Deadline(deadline));
    }
    let headers = parts.headers.clone();
    let ended = Arc::new(AtomicBool::new(body.is_end_stream()));
    let body = TrackedBody { body, ended: Arc::clone(&ended) };
    let call = services.call(http::Request::from_parts(parts, body));
    // Cancelling a call is safe: the work that it started continues, or was not begun.
    let mut response = tokio::select! {
        Ok(response) = call => response.map(Body::new),
        () = deadline_passed(deadline) => deadline_exceeded().into_http_response(&headers).map(Body::new),
    };
    if !ended.load(Ordering::Acquire) {
        // A client that is still sending must learn that its body is no longer read.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Returns the call's deadline, if it has one.
pub(crate) fn deadline(context: &RequestContext) -> Option<Instant> {
    context.extensions().get::<Deadline>().map(|deadline| deadline.0)
}

/// Returns the interval of keepalives that the client requested, or the default.
pub(crate) fn keepalive(context: &RequestContext) -> Duration {
    let seconds = context.header(KEEPALIVE).and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.filter(|seconds: &u64| *seconds > 0).map_or(KEEPALIVE_DEFAULT, Duration::from_secs)
}

/// Waits until the deadline has passed; forever without one. Cancel safe.
pub(crate) async fn deadline_passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn deadline_exceeded() -> ConnectError {
    ConnectError::deadline_exceeded("context deadline exceeded")
}

fn content_types(kind: MethodKind) -> [&'static str; 2] {
    match kind {
        MethodKind::Unary => ["application/json", "application/proto"],
        // Streaming, in either direction.
        _ => ["application/connect+json", "application/connect+proto"],
    }
}

/// Returns the content type without its parameters.
fn essence(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Checks the protocol's headers and returns the deadline.
fn check(headers: &HeaderMap) -> Result<Option<Instant>, ConnectError> {
    if headers.get(VERSION).is_some_and(|version| version != "1") {
        return Err(ConnectError::invalid_argument("connect-protocol-version must be \"1\""));
    }
    let Some(text) = headers.get(TIMEOUT) else { return Ok(None) };
    let text = text.to_str().unwrap_or_default();
    let digits = (1..=TIMEOUT_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(0) if digits => Ok(None),
        Ok(milliseconds) if digits => Ok(Instant::now().checked_add(Duration::from_millis(milliseconds))),
        _ => Err(ConnectError::invalid_argument(format!("{TIMEOUT} must be at most 10 digits, not `{text}`"))),
    }
}

/// A request's body that records when its end was reached.
struct TrackedBody {
    body: Body,
    ended: Arc<AtomicBool>,
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.ended.store(true, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).parse().expect("a header name"), value.parse().expect("a header value")))
            .collect()
    }

    #[test]
    fn deadlines() {
        let check = |value: &str| check(&headers(&[(TIMEOUT, value)]));
        for none in ["0", "0000000000"] {
            assert_eq!(check(none).expect("well-formed"), None, "{none}");
        }
        for some in ["1", "60000", "9999999999"] {
            assert!(check(some).expect("well-formed").is_some(), "{some}");
        }
        for odd in ["", "-1", "+5", "1.5", "abc", "10000000000", "1 "] {
            assert!(check(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn only_one_protocol_version() {
        assert!(check(&headers(&[(VERSION, "1")])).is_ok());
        assert!(check(&headers(&[(VERSION, "2")])).is_err());
        assert!(check(&headers(&[])).is_ok());
    }

    #[test]
    fn keepalives() {
        let interval = |value: &str| keepalive(&RequestContext::new(headers(&[(KEEPALIVE, value)]))).as_secs();
        for (value, seconds) in [("50", 50), ("1", 1), ("0", 90), ("-3", 90), ("soon", 90), ("", 90)] {
            assert_eq!(interval(value), seconds, "{value:?}");
        }
        assert_eq!(keepalive(&RequestContext::new(HeaderMap::new())), KEEPALIVE_DEFAULT);
    }

    #[test]
    fn content_types_are_compared_without_parameters() {
        for (given, expected) in [
            ("application/json; charset=utf-8", "application/json"),
            ("Application/Connect+JSON", "application/connect+json"),
        ] {
            assert_eq!(essence(&headers(&[("content-type", given)])), expected);
        }
        assert_eq!(essence(&HeaderMap::new()), "");
    }
}
