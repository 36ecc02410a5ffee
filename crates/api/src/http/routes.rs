//! The table of routes: all of the contract, built or not.
//!
//! A route that the contract knows and this server has not built answers with an error that says so, in the contract's
//! shape. Only what the contract does not know is a 404.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, delete, get, on, patch, post};
use http::StatusCode;

use super::auth::{Operator, Reader};
use super::{border, rate};
use crate::accounts::{admin, keys, teams};
use crate::control::Control;
use crate::failure::Failure;
use crate::{health, identity, nodes, sandboxes, templates, usage};

/// A route of the contract that this server does not have (yet).
struct Unbuilt {
    method: MethodFilter,
    path: &'static str,
    what: &'static str,
    answer: Answer,
}

/// How an unbuilt route answers.
#[derive(Clone, Copy)]
enum Answer {
    /// With this status, to those who present an API key.
    Keyed(StatusCode),
    /// With this status, to operators.
    Operated(StatusCode),
    /// With this status, to everybody: it takes credentials that this server does not have either.
    Open(StatusCode),
}

/// Not built yet.
const LATER: Answer = Answer::Keyed(StatusCode::NOT_IMPLEMENTED);
/// Not built yet, for operators.
const LATER_OPERATED: Answer = Answer::Operated(StatusCode::NOT_IMPLEMENTED);
/// A feature that servers may have switched off; clients know what that means.
const OFF: Answer = Answer::Keyed(StatusCode::FORBIDDEN);
/// The same, with credentials of the feature's own.
const OFF_OPEN: Answer = Answer::Open(StatusCode::FORBIDDEN);
/// Will not come back.
const REMOVED: Answer = Answer::Open(StatusCode::GONE);

const GET: MethodFilter = MethodFilter::GET;
const POST: MethodFilter = MethodFilter::POST;
const PUT: MethodFilter = MethodFilter::PUT;
const PATCH: MethodFilter = MethodFilter::PATCH;
const DELETE: MethodFilter = MethodFilter::DELETE;

const fn unbuilt(method: MethodFilter, path: &'static str, what: &'static str, answer: Answer) -> Unbuilt {
    Unbuilt { method, path, what, answer }
}

const UNBUILT: &[Unbuilt] = &[
    unbuilt(POST, "/sandboxes/{sandboxID}/pause", "pausing sandboxes", LATER),
    unbuilt(POST, "/sandboxes/{sandboxID}/resume", "resuming sandboxes", LATER),
    unbuilt(POST, "/sandboxes/{sandboxID}/fork", "forking sandboxes", LATER),
    unbuilt(POST, "/sandboxes/{sandboxID}/snapshots", "snapshots", LATER),
    unbuilt(GET, "/snapshots", "snapshots", LATER),
    unbuilt(PUT, "/sandboxes/{sandboxID}/network", "changing network rules", LATER),
    unbuilt(GET, "/templates", "listing templates", LATER),
    unbuilt(GET, "/v2/templates", "listing templates", LATER),
    unbuilt(GET, "/default-templates", "listing templates", LATER),
    unbuilt(GET, "/templates/{templateID}", "template details", LATER),
    unbuilt(DELETE, "/templates/{templateID}", "deleting templates", LATER),
    unbuilt(PATCH, "/templates/{templateID}", "changing templates", LATER),
    unbuilt(PATCH, "/v2/templates/{templateID}", "changing templates", LATER),
    unbuilt(POST, "/v3/templates", "building templates", LATER),
    unbuilt(GET, "/templates/{templateID}/files/{hash}", "building templates", LATER),
    unbuilt(POST, "/v2/templates/{templateID}/builds/{buildID}", "building templates", LATER),
    unbuilt(GET, "/templates/{templateID}/builds/{buildID}/status", "building templates", LATER),
    unbuilt(GET, "/templates/{templateID}/builds/{buildID}/logs", "building templates", LATER),
    unbuilt(POST, "/templates/tags", "template tags", LATER),
    unbuilt(DELETE, "/templates/tags", "template tags", LATER),
    unbuilt(GET, "/templates/{templateID}/tags", "template tags", LATER),
    unbuilt(GET, "/templates/{templateID}/tags/count", "template tags", LATER),
    unbuilt(GET, "/templates/{templateID}/tags/exists", "template tags", LATER),
    unbuilt(GET, "/templates/{templateID}/tags/groups", "template tags", LATER),
    unbuilt(GET, "/templates/{templateID}/tags/{tag}/assignments", "template tags", LATER),
    unbuilt(POST, "/templates", "builds of the first generation", REMOVED),
    unbuilt(POST, "/templates/{templateID}", "builds of the first generation", REMOVED),
    unbuilt(POST, "/templates/{templateID}/builds/{buildID}", "builds of the first generation", REMOVED),
    unbuilt(POST, "/v2/templates", "builds of the second generation", REMOVED),
    unbuilt(POST, "/access-tokens", "personal access tokens", REMOVED),
    unbuilt(DELETE, "/access-tokens/{accessTokenID}", "personal access tokens", REMOVED),
    unbuilt(GET, "/volumes", "volumes", OFF),
    unbuilt(POST, "/volumes", "volumes", OFF),
    unbuilt(GET, "/volumes/{volumeID}", "volumes", OFF),
    unbuilt(DELETE, "/volumes/{volumeID}", "volumes", OFF),
    unbuilt(GET, "/volumecontent/{volumeID}/path", "volumes", OFF_OPEN),
    unbuilt(PATCH, "/volumecontent/{volumeID}/path", "volumes", OFF_OPEN),
    unbuilt(DELETE, "/volumecontent/{volumeID}/path", "volumes", OFF_OPEN),
    unbuilt(GET, "/volumecontent/{volumeID}/dir", "volumes", OFF_OPEN),
    unbuilt(POST, "/volumecontent/{volumeID}/dir", "volumes", OFF_OPEN),
    unbuilt(GET, "/volumecontent/{volumeID}/file", "volumes", OFF_OPEN),
    unbuilt(PUT, "/volumecontent/{volumeID}/file", "volumes", OFF_OPEN),
    unbuilt(GET, "/secrets", "secrets", OFF),
    unbuilt(POST, "/secrets", "secrets", OFF),
    unbuilt(GET, "/secrets/{secretID}", "secrets", OFF),
    unbuilt(POST, "/secrets/{secretID}", "secrets", OFF),
    unbuilt(DELETE, "/secrets/{secretID}", "secrets", OFF),
    unbuilt(POST, "/admin/teams/{teamID}/builds/cancel", "building templates", LATER_OPERATED),
];

impl Unbuilt {
    fn route(&self) -> MethodRouter<Arc<Control>> {
        let Self { method, what, answer, .. } = *self;
        match answer {
            Answer::Keyed(status) => on(method, move |_: Reader| async move { Failure::unsupported(status, what) }),
            Answer::Operated(status) => {
                on(method, move |_: Operator| async move { Failure::unsupported(status, what) })
            }
            Answer::Open(status) => on(method, move || async move { Failure::unsupported(status, what) }),
        }
    }
}

/// All routes. Matching is on the raw path, so that an encoded slash does not end a segment.
pub(crate) fn router(control: Arc<Control>) -> Router {
    let built = Router::new()
        .route("/health", get(health::check))
        .route("/sandboxes", get(sandboxes::list::all).post(sandboxes::create::first_generation))
        .route("/v2/sandboxes", get(sandboxes::list::page).post(sandboxes::create::second_generation))
        .route("/sandboxes/{sandboxID}", get(sandboxes::detail::get))
        .route("/sandboxes/{sandboxID}", delete(sandboxes::kill::kill))
        .route("/sandboxes/{sandboxID}/timeout", post(sandboxes::end::set_timeout))
        .route("/sandboxes/{sandboxID}/refreshes", post(sandboxes::end::refresh))
        .route("/sandboxes/{sandboxID}/connect", post(sandboxes::connect::first_generation))
        .route("/v2/sandboxes/{sandboxID}/connect", post(sandboxes::connect::second_generation))
        .route("/sandboxes/metrics", get(sandboxes::metrics::of_several))
        .route("/sandboxes/{sandboxID}/metrics", get(sandboxes::metrics::of_one))
        .route("/teams/{teamID}/metrics", get(usage::metrics::list))
        .route("/teams/{teamID}/metrics/max", get(usage::metrics::max))
        .route("/sandboxes/{sandboxID}/logs", get(sandboxes::logs::first_generation))
        .route("/v2/sandboxes/{sandboxID}/logs", get(sandboxes::logs::second_generation))
        .route("/templates/aliases/{alias}", get(templates::find_alias))
        .route("/teams", get(teams::list))
        .route("/api-keys", get(keys::list).post(keys::create))
        .route("/api-keys/{apiKeyID}", patch(keys::rename).delete(keys::delete))
        .route("/nodes", get(nodes::operate::list))
        .route("/nodes/{nodeID}", get(nodes::operate::get).post(nodes::operate::change))
        .route("/admin/teams/{teamID}/sandboxes/kill", post(admin::kill_sandboxes))
        .route("/admin/sandboxes/running-counts", get(admin::running_counts))
        .route("/admin/teams/{teamID}/api-keys", post(admin::create_key))
        .route("/admin/teams/{teamID}/api-keys/{apiKeyID}", delete(admin::revoke_key));
    let api = UNBUILT
        .iter()
        .fold(built, |router, unbuilt| router.route(unbuilt.path, unbuilt.route()))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&control), rate::surround))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&control), border::surround))
        .layer(border::cors());
    // Scripts of other origins have nothing to do with passwords: the browser keeps these answers from them.
    let identity = Router::new()
        .route(identity::PAGE, get(identity::cli::show).post(identity::cli::submit))
        .route(identity::START, get(identity::provider::start))
        .route(identity::CALLBACK, get(identity::provider::callback))
        .route(identity::TOKEN, post(identity::oauth::token))
        .route(identity::REVOKE, post(identity::oauth::revoke))
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&control), rate::surround))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&control), border::surround));
    api.merge(identity).with_state(control)
}

async fn unknown() -> Response {
    Failure::not_found("there is no such route").into_response()
}

async fn wrong_method() -> Response {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not have such a method").into_response()
}
