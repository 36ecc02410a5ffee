//! Cross-origin requests: browsers use the JavaScript SDK.

use ::http::{HeaderValue, Method, StatusCode, header};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT";
/// Time for which a browser may cache a preflight, in seconds.
const MAX_AGE_SECONDS: &str = "600";

/// Answers preflights, and allows every origin to read replies.
pub(super) async fn cors(request: Request, next: Next) -> Response {
    let headers = request.headers();
    if !headers.contains_key(header::ORIGIN) {
        return next.run(request).await;
    }
    let is_preflight =
        request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if is_preflight { preflight(&request) } else { next.run(request).await };
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

fn preflight(request: &Request) -> Response {
    let fixed = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS),
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::VARY, "Origin"),
    ];
    let mut response = (StatusCode::OK, fixed, "OK").into_response();
    if let Some(requested) = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_HEADERS, requested.clone());
    }
    response
}
