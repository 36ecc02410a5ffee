//! Responses that are common to many routes.
//!
//! They are the errors for credentials, bodies, paths, rate limits and deadlines, and their headers.

use std::collections::BTreeMap;

use hearth_api_types::ErrorBody;
use http::StatusCode;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{Components, ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{PartialSchema as _, ToSchema as _};

use super::Callers;
use crate::failure::is_retried_by_default;

const JSON: &str = "application/json";

/// Error responses, with their names in the document. A route may override the description.
const FAILURES: [(StatusCode, &str, &str); 14] = [
    (StatusCode::BAD_REQUEST, "BadRequest", "The path, query or body is invalid."),
    (StatusCode::UNAUTHORIZED, "Unauthorized", "The credentials are missing or invalid."),
    (StatusCode::FORBIDDEN, "Forbidden", "The team is banned, or is blocked and may only read and delete."),
    (StatusCode::NOT_FOUND, "NotFound", "The team that an operator named does not exist."),
    (StatusCode::REQUEST_TIMEOUT, "RequestTimeout", "The request body did not arrive in time."),
    (StatusCode::CONFLICT, "Conflict", "The resource is in a state that does not allow the request."),
    (StatusCode::GONE, "Gone", "The route was removed from the API."),
    (StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge", "The request body is too large."),
    (StatusCode::UNPROCESSABLE_ENTITY, "UnprocessableEntity", "The request contradicts an earlier request."),
    (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "The team or the client address exceeded its rate limit."),
    (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", "Internal error. The server's log has the cause."),
    (StatusCode::NOT_IMPLEMENTED, "NotImplemented", "The server does not support this feature."),
    (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The server cannot process the request now."),
    (StatusCode::GATEWAY_TIMEOUT, "GatewayTimeout", "The request timed out. Its effect is unknown."),
];

const LIMIT: &str = "RateLimit-Limit";
const REMAINING: &str = "RateLimit-Remaining";
const RESET: &str = "RateLimit-Reset";
const RETRY_AFTER: &str = "Retry-After";
const SHOULD_RETRY: &str = "Should-Retry";

/// Adds the credentials and the common responses to the description of a handler.
pub(super) fn add_common(operation: &mut Operation, callers: Callers, is_rate_limited: bool, is_supported: bool) {
    operation.security = Some(callers.credentials());
    let has_parameters = operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty());
    let has_body = operation.request_body.is_some();
    let needs_credentials = callers != Callers::Anyone;
    let possible = [
        (is_supported && (has_parameters || has_body), StatusCode::BAD_REQUEST),
        (needs_credentials, StatusCode::UNAUTHORIZED),
        (callers.select_a_team(), StatusCode::FORBIDDEN),
        (callers.may_name_any_team(), StatusCode::NOT_FOUND),
        (has_body, StatusCode::REQUEST_TIMEOUT),
        (has_body, StatusCode::PAYLOAD_TOO_LARGE),
        (is_rate_limited, StatusCode::TOO_MANY_REQUESTS),
        (callers.need_the_store(), StatusCode::INTERNAL_SERVER_ERROR),
        (callers.need_the_store(), StatusCode::GATEWAY_TIMEOUT),
    ];
    let responses = &mut operation.responses.responses;
    for (_, status) in possible.into_iter().filter(|(is_possible, _)| *is_possible) {
        responses.entry(status.as_str().to_owned()).or_insert_with(|| RefOr::T(Response::default()));
    }
    for (status, response) in responses {
        let RefOr::T(described) = response else { continue };
        match FAILURES.iter().find(|(failure, ..)| failure.as_str() == status) {
            Some((_, name, _)) => {
                let mut reference = Ref::from_response_name(*name);
                reference.description = std::mem::take(&mut described.description);
                *response = RefOr::Ref(reference);
            }
            None if is_rate_limited => refer_to_headers(described, &[LIMIT, REMAINING, RESET]),
            None => {}
        }
    }
}

fn refer_to_headers(response: &mut Response, names: &[&str]) {
    for name in names {
        let reference = Ref::new(format!("#/components/headers/{name}"));
        response.headers.insert((*name).to_owned(), RefOr::Ref(reference));
    }
}

/// Returns the error responses by name.
pub(super) fn failures() -> BTreeMap<String, RefOr<Response>> {
    let described = |(status, name, about): (StatusCode, &str, &str)| {
        let error = Ref::from_schema_name(ErrorBody::name());
        let body = ContentBuilder::new().schema(Some(error)).build();
        let mut response = ResponseBuilder::new().description(about).content(JSON, body).build();
        refer_to_headers(&mut response, &[LIMIT, REMAINING, RESET]);
        // 409 is also the reply for an idempotency key in progress, which may be retried.
        if is_retried_by_default(status) || status == StatusCode::CONFLICT {
            refer_to_headers(&mut response, &[SHOULD_RETRY, RETRY_AFTER]);
        }
        (name.to_owned(), RefOr::T(response))
    };
    FAILURES.into_iter().map(described).collect()
}

/// Returns the common response headers by name.
pub(super) fn headers() -> BTreeMap<String, RefOr<Header>> {
    let number = |minimum| ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(minimum));
    let boolean_text = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["true", "false"]));
    [
        (LIMIT, number(1), "Maximum number of requests in a burst. Absent without a rate limit."),
        (REMAINING, number(0), "Number of requests that are still allowed now."),
        (RESET, number(0), "Seconds until the full limit is available again."),
        (RETRY_AFTER, number(1), "Seconds to wait before a retry."),
        (SHOULD_RETRY, boolean_text, "`true` if the same request may be retried."),
    ]
    .into_iter()
    .map(|(name, schema, about)| {
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(about)).build();
        (name.to_owned(), RefOr::T(header))
    })
    .collect()
}

/// Adds the schema of error bodies, which no handler refers to.
pub(super) fn add_error_schema(components: &mut Components) {
    components.schemas.insert(ErrorBody::name().into_owned(), ErrorBody::schema());
}
