//! What routes may answer besides what is their own: refusals of credentials, bodies and paths, too many requests,
//! deadlines, and the headers of all that.

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

/// The media type of all bodies but few.
const JSON: &str = "application/json";

/// Answers that are not a success, by their names in the document. Routes that have more to say about one add a text.
const FAILURES: [(StatusCode, &str, &str); 14] = [
    (StatusCode::BAD_REQUEST, "BadRequest", "The path, the query or the body is not what is described here."),
    (StatusCode::UNAUTHORIZED, "Unauthorized", "No credentials that this route takes, or none that are valid."),
    (StatusCode::FORBIDDEN, "Forbidden", "The team is banned, or is blocked and may only look and delete."),
    (StatusCode::NOT_FOUND, "NotFound", "An operator named a team that there is not."),
    (StatusCode::REQUEST_TIMEOUT, "RequestTimeout", "The body did not arrive in time."),
    (StatusCode::CONFLICT, "Conflict", "It is in the wrong state."),
    (StatusCode::GONE, "Gone", "Clients use this route no more."),
    (StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge", "The body is larger than this server reads."),
    (StatusCode::UNPROCESSABLE_ENTITY, "UnprocessableEntity", "It contradicts an earlier request."),
    (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "The team or the address calls too often."),
    (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", "Something went wrong: the server's log has more."),
    (StatusCode::NOT_IMPLEMENTED, "NotImplemented", "This server does not support it."),
    (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The server cannot do it now."),
    (StatusCode::GATEWAY_TIMEOUT, "GatewayTimeout", "It took too long. What was asked for may still happen."),
];

const LIMIT: &str = "RateLimit-Limit";
const REMAINING: &str = "RateLimit-Remaining";
const RESET: &str = "RateLimit-Reset";
const RETRY_AFTER: &str = "Retry-After";
const SHOULD_RETRY: &str = "Should-Retry";

/// Describes what a handler does not know of: what surrounds it.
pub(super) fn surround(operation: &mut Operation, callers: Callers, is_counted: bool, is_supported: bool) {
    operation.security = Some(callers.credentials());
    let has_parameters = operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty());
    let has_body = operation.request_body.is_some();
    let asks_somebody = callers != Callers::Anybody;
    let possible = [
        (is_supported && (has_parameters || has_body), StatusCode::BAD_REQUEST),
        (asks_somebody, StatusCode::UNAUTHORIZED),
        (callers.speak_for_a_team(), StatusCode::FORBIDDEN),
        (callers.may_name_any_team(), StatusCode::NOT_FOUND),
        (has_body, StatusCode::REQUEST_TIMEOUT),
        (has_body, StatusCode::PAYLOAD_TOO_LARGE),
        (is_counted, StatusCode::TOO_MANY_REQUESTS),
        (callers.are_looked_up(), StatusCode::INTERNAL_SERVER_ERROR),
        (callers.are_looked_up(), StatusCode::GATEWAY_TIMEOUT),
    ];
    let answers = &mut operation.responses.responses;
    for (_, status) in possible.into_iter().filter(|(is_possible, _)| *is_possible) {
        answers.entry(status.as_str().to_owned()).or_insert_with(|| RefOr::T(Response::default()));
    }
    for (status, answer) in answers {
        let RefOr::T(described) = answer else { continue };
        match FAILURES.iter().find(|(failure, ..)| failure.as_str() == status) {
            Some((_, name, _)) => {
                let mut reference = Ref::from_response_name(*name);
                reference.description = std::mem::take(&mut described.description);
                *answer = RefOr::Ref(reference);
            }
            None if is_counted => refer_to_headers(described, &[LIMIT, REMAINING, RESET]),
            None => {}
        }
    }
}

fn refer_to_headers(answer: &mut Response, names: &[&str]) {
    for name in names {
        let reference = Ref::new(format!("#/components/headers/{name}"));
        answer.headers.insert((*name).to_owned(), RefOr::Ref(reference));
    }
}

/// What answers that are not a success are.
pub(super) fn failures() -> BTreeMap<String, RefOr<Response>> {
    let described = |(status, name, about): (StatusCode, &str, &str)| {
        let error = Ref::from_schema_name(ErrorBody::name());
        let body = ContentBuilder::new().schema(Some(error)).build();
        let mut answer = ResponseBuilder::new().description(about).content(JSON, body).build();
        refer_to_headers(&mut answer, &[LIMIT, REMAINING, RESET]);
        // A request with an idempotency key that is being done may be sent again, too.
        if is_retried_by_default(status) || status == StatusCode::CONFLICT {
            refer_to_headers(&mut answer, &[SHOULD_RETRY, RETRY_AFTER]);
        }
        (name.to_owned(), RefOr::T(answer))
    };
    FAILURES.into_iter().map(described).collect()
}

/// Headers that many answers have.
pub(super) fn headers() -> BTreeMap<String, RefOr<Header>> {
    let number = |least| ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least));
    let yes_or_no = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["true", "false"]));
    [
        (LIMIT, number(1), "How many requests there may be at once. Absent if there is no limit."),
        (REMAINING, number(0), "How many of them are left."),
        (RESET, number(0), "Seconds until all of them are there again."),
        (RETRY_AFTER, number(1), "Seconds after which the same request may be sent again."),
        (SHOULD_RETRY, yes_or_no, "Whether the same request may be sent again."),
    ]
    .into_iter()
    .map(|(name, schema, about)| {
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(about)).build();
        (name.to_owned(), RefOr::T(header))
    })
    .collect()
}

/// The body of all errors: no handler names it.
pub(super) fn add_error_schema(components: &mut Components) {
    components.schemas.insert(ErrorBody::name().into_owned(), ErrorBody::schema());
}
