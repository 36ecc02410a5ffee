//! A request's headers, and every decision based on them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::middleware;
use base64::Engine as _;
use connectrpc::RequestContext;
use hearth_types::{Secret, guest};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use tower::ServiceExt as _;

use super::complete;
use super::frames::{self, CONNECT, LIST};
use crate::connections::Connection;
use crate::files;
use crate::guard::guard;
use crate::rpc;
use crate::state::{DaemonConfig, State, basic_user};
use crate::users::User;

/// Access token of a secured daemon. Seeds contain it.
pub(super) const TOKEN: &str = "token";
/// The server's limit of headers.
const HEADERS_MAX: usize = 512;
/// Status of the route behind the guard. The guard itself never sends it.
const PASSED: StatusCode = StatusCode::IM_A_TEAPOT;

/// A request without its body.
#[derive(Debug)]
struct RequestHead {
    method: Method,
    uri: Uri,
    /// Size of the file to which ranges apply.
    size: u64,
    /// The connection comes from a program inside the guest.
    is_inside: bool,
    headers: HeaderMap,
}

impl RequestHead {
    /// Parses lines of `name: value`.
    ///
    /// `:method`, `:path`, `:size` and `:inside` set the other parts of the request. Other lines are ignored.
    fn read(data: &[u8]) -> Self {
        let mut head = Self {
            method: Method::GET,
            uri: Uri::from_static("/"),
            size: 100,
            is_inside: false,
            headers: HeaderMap::new(),
        };
        for line in data.split(|byte| *byte == b'\n') {
            let start = usize::from(line.starts_with(b":"));
            let Some(colon) = line[start..].iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (&line[..start + colon], line[start + colon + 1..].trim_ascii());
            let text = std::str::from_utf8(value).unwrap_or_default();
            match name {
                b":method" => head.method = Method::from_bytes(value).unwrap_or(head.method),
                b":path" => head.uri = text.parse().ok().filter(|uri: &Uri| is_path(uri)).unwrap_or(head.uri),
                b":size" => head.size = text.parse().unwrap_or(head.size),
                b":inside" => head.is_inside = true,
                _ => {
                    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
                        && head.headers.len() < HEADERS_MAX
                    {
                        head.headers.append(name, value);
                    }
                }
            }
        }
        head
    }

    fn text(&self, name: impl header::AsHeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Returns true for a URI in origin form, as servers receive it.
fn is_path(uri: &Uri) -> bool {
    uri.authority().is_none() && uri.path().starts_with('/')
}

pub(super) fn run(data: &[u8]) {
    let head = RequestHead::read(data);
    let secured = State::new(DaemonConfig::default());
    secured.set_access_token(Some(Secret::new(TOKEN)));
    let restarted = State::new(DaemonConfig { is_restart: true, ..DaemonConfig::default() });

    check_user(&head);
    for state in [State::new(DaemonConfig::default()), Arc::clone(&secured), restarted] {
        check_guard(&head, &state);
    }
    check_calls(&head);
    files::fuzz::headers(&secured, &head.headers, &head.uri, head.size);
}

/// Checks the user of Basic credentials with a second implementation.
fn check_user(head: &RequestHead) {
    let expected = head.text(header::AUTHORIZATION).split_once(' ').and_then(|(scheme, credentials)| {
        let decoded = base64::engine::general_purpose::STANDARD.decode(credentials.trim()).ok()?;
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        std::str::from_utf8(&decoded).ok()?;
        scheme.eq_ignore_ascii_case("basic").then(|| String::from_utf8_lossy(&decoded[..colon]).into_owned())
    });
    assert_eq!(basic_user(&head.headers), expected);
}

/// Returns the guard's decision, by the contract's order of checks (sections 2.2, 2.4, 5.1, 5.2).
fn expected(head: &RequestHead, state: &State) -> StatusCode {
    let RequestHead { method, headers, .. } = head;
    let route = (method.as_str(), head.uri.path());
    if method == Method::OPTIONS
        && headers.contains_key("origin")
        && headers.contains_key("access-control-request-method")
    {
        return StatusCode::NO_CONTENT;
    }
    if state.is_awaiting_init() && route != ("GET", "/health") && route != ("POST", "/init") {
        return StatusCode::UNAUTHORIZED;
    }
    let open = [("GET", "/health"), ("GET", "/files"), ("POST", "/files"), ("POST", "/init")];
    let is_open = open.contains(&route) || (head.is_inside && route == ("GET", "/me"));
    let token = headers.get("x-access-token").map(HeaderValue::as_bytes);
    if state.access_token().is_some() && !is_open && token != Some(TOKEN.as_bytes()) {
        return StatusCode::UNAUTHORIZED;
    }
    match basic_user(headers) {
        Some(name) if User::find(&name).is_none() => {
            let is_stream = head.text("content-type").starts_with("application/connect+");
            if is_stream { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
        }
        _ => PASSED,
    }
}

fn check_guard(head: &RequestHead, state: &Arc<State>) {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    let host = if head.is_inside { Ipv4Addr::LOCALHOST } else { guest::ADDRESS };
    let (connection, _registration): (Connection, _) =
        state.connections.register(SocketAddr::from((host, guest::DAEMON_PORT)), SocketAddr::from((host, 1)));
    request.extensions_mut().insert(connection);
    let router = axum::Router::new()
        .fallback(|| async { PASSED })
        .layer(middleware::from_fn_with_state(Arc::clone(state), guard));
    let response = complete(router.oneshot(request));
    let response = response.unwrap_or_else(|never| match never {});

    assert_eq!(response.status(), expected(head, state), "{head:?}");
    let reply_headers = response.headers();
    let is = |name: &str, value: &str| reply_headers.get(name).is_some_and(|found| found == value);
    assert!(!reply_headers.contains_key("access-control-allow-credentials"));
    if response.status() == StatusCode::NO_CONTENT {
        let wanted = head.headers.get("access-control-request-method");
        let allowed = ["HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"];
        let allows = wanted.is_some_and(|wanted| allowed.iter().any(|method| wanted == method));
        assert_eq!(is("access-control-allow-origin", "*"), allows);
        assert_eq!(reply_headers.get("access-control-allow-methods"), wanted.filter(|_| allows));
        let names = head.headers.get("access-control-request-headers");
        assert_eq!(reply_headers.get("access-control-allow-headers"), names.filter(|_| allows));
    } else {
        assert_eq!(is("access-control-allow-origin", "*"), head.headers.contains_key("origin"));
        assert_eq!(reply_headers.contains_key("access-control-expose-headers"), head.headers.contains_key("origin"));
    }
}

/// Sends the headers of the Connect protocol with two harmless calls of different kinds.
fn check_calls(head: &RequestHead) {
    let mut headers = head.headers.clone();
    assert!(!rpc::keepalive(&RequestContext::new(headers.clone())).is_zero());
    for (procedure, body, kind) in
        [(LIST, b"{}".to_vec(), "application/json"), (CONNECT, frames::envelope(0, b"{}"), "application/connect+json")]
    {
        // The given content type, then one that is accepted.
        for content_type in [None, Some(HeaderValue::from_static(kind))] {
            if let Some(content_type) = content_type {
                headers.insert(header::CONTENT_TYPE, content_type);
            }
            let reply = frames::call_procedure(procedure, &Method::POST, &headers, Body::from(body.clone()));
            frames::check(procedure, &Method::POST, &headers, &reply);
        }
        headers.clone_from(&head.headers);
    }
}
