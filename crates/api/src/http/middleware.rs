//! Middleware of every request: the tracing span, the deadline and CORS.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderName, Method, StatusCode, header};
use tower_http::cors::{Any, CorsLayer};
use tracing::Instrument as _;

use super::rate;
use crate::control::Control;
use crate::failure::{Failure, SHOULD_RETRY};
use crate::sandboxes::list::{NEXT_TOKEN, TOTAL_RUNNING};

/// Time for which a browser may cache a preflight response.
const PREFLIGHT_AGE: Duration = Duration::from_secs(60 * 60);

/// Request headers that scripts of any origin may set.
const REQUEST_HEADERS: [&str; 20] = [
    "origin",
    "content-length",
    "content-type",
    "user-agent",
    "authorization",
    "x-api-key",
    "x-team-id",
    "x-admin-token",
    "browser",
    "lang",
    "lang_version",
    "machine",
    "os",
    "package_version",
    "processor",
    "publisher",
    "release",
    "sdk_runtime",
    "system",
    "idempotency-key",
];

/// Returns the CORS layer, which allows any origin.
///
/// That is safe, because credentials are in headers that browsers do not add by themselves.
pub(super) fn cors() -> CorsLayer {
    let rate_limit = [rate::LIMIT, rate::REMAINING, rate::RESET];
    let exposed = [NEXT_TOKEN, TOTAL_RUNNING, header::RETRY_AFTER, SHOULD_RETRY].into_iter().chain(rate_limit);
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS])
        .allow_headers(REQUEST_HEADERS.map(HeaderName::from_static))
        .expose_headers(exposed.collect::<Vec<_>>())
        .max_age(PREFLIGHT_AGE)
}

/// Opens the request's span and applies the deadline.
///
/// A request that exceeds the deadline leaves no partial change, because separate tasks perform all changes.
pub(super) async fn span_and_deadline(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request",
        id = %uuid::Uuid::new_v4(), %method, route,
        team = tracing::field::Empty, sandbox = tracing::field::Empty, status = tracing::field::Empty
    );
    let deadline = control.config.request_deadline;
    async {
        let response = match tokio::time::timeout(deadline, next.run(request)).await {
            Ok(response) => response,
            Err(_) => deadline_exceeded(&method, deadline),
        };
        tracing::Span::current().record("status", response.status().as_u16());
        tracing::debug!("request answered");
        response
    }
    .instrument(span)
    .await
}

fn deadline_exceeded(method: &Method, deadline: Duration) -> Response {
    tracing::warn!("request exceeded its deadline");
    let failure =
        Failure::new(StatusCode::GATEWAY_TIMEOUT, format!("the request took longer than {} s", deadline.as_secs()));
    // The requested change may still happen, so only a request with a safe method may be retried.
    let failure = if method.is_safe() { failure.worth_retrying_after(Duration::from_secs(1)) } else { failure };
    failure.into_response()
}
