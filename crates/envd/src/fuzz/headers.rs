//! A request's headers, and every judgement that is made of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::middleware;
use base64::Engine as _;
use connectrpc::RequestContext;
use hearth_types::{Secret, guest};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use tower::ServiceExt as _;

use super::frames::{self, CONNECT, LIST};
use super::settle;
use crate::connections::Connection;
use crate::files;
use crate::guard::guard;
use crate::rpc;
use crate::state::{State, Surroundings, basic_user};
use crate::users::User;

/// The token of a daemon that has one. Seeds know it.
pub(super) const TOKEN: &str = "token";
/// As many as the server takes.
const HEADERS_MAX: usize = 512;
/// What the route behind the guard answers. The guard itself has no such answer.
const PASSED: StatusCode = StatusCode::IM_A_TEAPOT;

/// A request without its body.
#[derive(Debug)]
struct Asked {
    method: Method,
    uri: Uri,
    /// The size of the file that ranges are for.
    size: u64,
    /// From a program of the guest, as far as the connection tells.
    is_inside: bool,
    headers: HeaderMap,
}

impl Asked {
    /// Lines of `name: value`. `:method`, `:path`, `:size` and `:inside` are the rest of the request. What is none of it is
    /// left out.
    fn read(data: &[u8]) -> Self {
        let mut asked = Self {
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
                b":method" => asked.method = Method::from_bytes(value).unwrap_or(asked.method),
                b":path" => asked.uri = text.parse().ok().filter(|uri: &Uri| is_path(uri)).unwrap_or(asked.uri),
                b":size" => asked.size = text.parse().unwrap_or(asked.size),
                b":inside" => asked.is_inside = true,
                _ => {
                    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
                        && asked.headers.len() < HEADERS_MAX
                    {
                        asked.headers.append(name, value);
                    }
                }
            }
        }
        asked
    }

    fn text(&self, name: impl header::AsHeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Servers are asked for paths.
fn is_path(uri: &Uri) -> bool {
    uri.authority().is_none() && uri.path().starts_with('/')
}

pub(super) fn run(data: &[u8]) {
    let asked = Asked::read(data);
    let secured = State::new(Surroundings::default());
    secured.set_access_token(Some(Secret::new(TOKEN)));
    let restarted = State::new(Surroundings { is_restart: true, ..Surroundings::default() });

    user(&asked);
    for state in [State::new(Surroundings::default()), Arc::clone(&secured), restarted] {
        guarded(&asked, &state);
    }
    called(&asked);
    files::fuzz::headers(&secured, &asked.headers, &asked.uri, asked.size);
}

/// The user of Basic credentials, read once more in another way.
fn user(asked: &Asked) {
    let expected = asked.text(header::AUTHORIZATION).split_once(' ').and_then(|(scheme, credentials)| {
        let decoded = base64::engine::general_purpose::STANDARD.decode(credentials.trim()).ok()?;
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        std::str::from_utf8(&decoded).ok()?;
        scheme.eq_ignore_ascii_case("basic").then(|| String::from_utf8_lossy(&decoded[..colon]).into_owned())
    });
    assert_eq!(basic_user(&asked.headers), expected);
}

/// What the guard has to decide, in the contract's order (sections 2.2, 2.4, 5.1, 5.2).
fn expected(asked: &Asked, state: &State) -> StatusCode {
    let Asked { method, headers, .. } = asked;
    let route = (method.as_str(), asked.uri.path());
    if method == Method::OPTIONS
        && headers.contains_key("origin")
        && headers.contains_key("access-control-request-method")
    {
        return StatusCode::NO_CONTENT;
    }
    if state.is_closed() && route != ("GET", "/health") && route != ("POST", "/init") {
        return StatusCode::UNAUTHORIZED;
    }
    let open = [("GET", "/health"), ("GET", "/files"), ("POST", "/files"), ("POST", "/init")];
    let is_open = open.contains(&route) || (asked.is_inside && route == ("GET", "/me"));
    let token = headers.get("x-access-token").map(HeaderValue::as_bytes);
    if state.access_token().is_some() && !is_open && token != Some(TOKEN.as_bytes()) {
        return StatusCode::UNAUTHORIZED;
    }
    match basic_user(headers) {
        Some(name) if User::find(&name).is_none() => {
            let is_stream = asked.text("content-type").starts_with("application/connect+");
            if is_stream { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
        }
        _ => PASSED,
    }
}

fn guarded(asked: &Asked, state: &Arc<State>) {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = asked.method.clone();
    *request.uri_mut() = asked.uri.clone();
    *request.headers_mut() = asked.headers.clone();
    let host = if asked.is_inside { Ipv4Addr::LOCALHOST } else { guest::ADDRESS };
    let (connection, _entry): (Connection, _) =
        state.connections.enter(SocketAddr::from((host, guest::DAEMON_PORT)), SocketAddr::from((host, 1)));
    request.extensions_mut().insert(connection);
    let router = axum::Router::new()
        .fallback(|| async { PASSED })
        .layer(middleware::from_fn_with_state(Arc::clone(state), guard));
    let response = settle(router.oneshot(request));
    let response = response.unwrap_or_else(|never| match never {});

    assert_eq!(response.status(), expected(asked, state), "{asked:?}");
    let answered = response.headers();
    let is = |name: &str, value: &str| answered.get(name).is_some_and(|found| found == value);
    assert!(!answered.contains_key("access-control-allow-credentials"));
    if response.status() == StatusCode::NO_CONTENT {
        let wanted = asked.headers.get("access-control-request-method");
        let allowed = ["HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"];
        let allows = wanted.is_some_and(|wanted| allowed.iter().any(|method| wanted == method));
        assert_eq!(is("access-control-allow-origin", "*"), allows);
        assert_eq!(answered.get("access-control-allow-methods"), wanted.filter(|_| allows));
        let names = asked.headers.get("access-control-request-headers");
        assert_eq!(answered.get("access-control-allow-headers"), names.filter(|_| allows));
    } else {
        assert_eq!(is("access-control-allow-origin", "*"), asked.headers.contains_key("origin"));
        assert_eq!(answered.contains_key("access-control-expose-headers"), asked.headers.contains_key("origin"));
    }
}

/// The headers of the Connect protocol, on two harmless calls of different kinds.
fn called(asked: &Asked) {
    let mut headers = asked.headers.clone();
    assert!(!rpc::keepalive(&RequestContext::new(headers.clone())).is_zero());
    for (procedure, body, kind) in
        [(LIST, b"{}".to_vec(), "application/json"), (CONNECT, frames::envelope(0, b"{}"), "application/connect+json")]
    {
        // The content type as given, and one that gets through.
        for content_type in [None, Some(HeaderValue::from_static(kind))] {
            if let Some(content_type) = content_type {
                headers.insert(header::CONTENT_TYPE, content_type);
            }
            let answer = frames::ask(procedure, &Method::POST, &headers, Body::from(body.clone()));
            frames::check(procedure, &Method::POST, &headers, &answer);
        }
        headers.clone_from(&asked.headers);
    }
}
