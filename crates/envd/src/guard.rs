//! Middleware in front of every route: CORS, then the token, then the user's existence.

use std::sync::Arc;

use axum::extract::{Request, State as Extract};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::json;

use crate::connections::Connection;
use crate::failure::Failure;
use crate::log::Level;
use crate::state::{State, basic_user};
use crate::users::User;

const TOKEN: HeaderName = HeaderName::from_static("x-access-token");
const ALLOWED_METHODS: [&str; 6] = ["HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"];
const EXPOSED: &str =
    "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, X-Content-Type-Options";

pub(crate) async fn guard(Extract(state): Extract<Arc<State>>, request: Request, next: Next) -> Response {
    if is_preflight(&request) {
        return preflight(request.headers());
    }
    let has_origin = request.headers().contains_key(header::ORIGIN);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let mut response = match rejection(&state, &request) {
        Some(rejection) => rejection,
        None => next.run(request).await,
    };
    if is_daemon_failure(response.status()) {
        // Without the query, which may contain a signature.
        let fields = [
            ("method", method.as_str().into()),
            ("path", uri.path().into()),
            ("status", response.status().as_u16().into()),
        ];
        state.log().write(Level::Error, "envd", "request failed", fields);
    }
    if has_origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
    response
}

/// Returns true for statuses that the host should see: neither a client error nor an unsupported operation.
fn is_daemon_failure(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED && status != StatusCode::GATEWAY_TIMEOUT
}

fn rejection(state: &State, request: &Request) -> Option<Response> {
    if state.is_awaiting_init()
        && !matches!((request.method().as_str(), request.uri().path()), ("GET", "/health") | ("POST", "/init"))
    {
        return Some(Failure::unauthorized("envd not initialized").into_response());
    }
    let given = request.headers().get(TOKEN).map(HeaderValue::as_bytes);
    if !is_exempt(request) && !state.admits(given) {
        let text = "unauthorized access, please provide a valid access token or method signing if supported";
        return Some(Failure::unauthorized(text).into_response());
    }
    let name = basic_user(request.headers())?;
    User::find(&name).is_none().then(|| unknown_user(request.headers(), &name))
}

/// Returns true for routes that check the token themselves or need none; paths must match exactly.
///
/// A program inside may request its sandbox's identity, which is also in its environment.
fn is_exempt(request: &Request) -> bool {
    match (request.method().as_str(), request.uri().path()) {
        ("GET", "/health") | ("GET" | "POST", "/files") | ("POST", "/init") => true,
        ("GET", "/me") => {
            request.extensions().get::<Connection>().is_some_and(|connection| connection.is_from_inside())
        }
        _ => false,
    }
}

/// Builds a Connect error: in the end-of-stream message of a streaming call, otherwise as the body.
fn unknown_user(headers: &HeaderMap, name: &str) -> Response {
    let error = json!({ "code": "unauthenticated", "message": format!("invalid username: '{name}'") });
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.to_ascii_lowercase().starts_with("application/connect+") {
        let message = json!({ "error": error }).to_string();
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let mut body = vec![2u8];
        body.extend(length.to_be_bytes());
        body.extend(message.as_bytes());
        return (StatusCode::OK, [(header::CONTENT_TYPE, content_type.to_owned())], body).into_response();
    }
    let json = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::UNAUTHORIZED, json, error.to_string()).into_response()
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(request: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
    headers.insert(header::VARY, HeaderValue::from_static(vary));
    let method = request.get(header::ACCESS_CONTROL_REQUEST_METHOD);
    let Some(method) = method.filter(|method| ALLOWED_METHODS.iter().any(|allowed| method == allowed)) else {
        return response;
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    if let Some(names) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    response
}
