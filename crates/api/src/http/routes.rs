//! The table of routes: all of the contract, built or not.
//!
//! A route that the contract knows and this server has not built answers with an error that says so, in the contract's
//! shape. Only what the contract does not know is a 404.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, on, post};
use http::StatusCode;
use utoipa::openapi::HttpMethod;
use utoipa_axum::{PathItemExt as _, routes};

use super::auth::{Operator, Reader};
use super::document::{Callers, NotSupported, Table};
use super::{border, document, rate};
use crate::accounts::{admin, keys, teams};
use crate::control::Control;
use crate::failure::Failure;
use crate::{health, identity, nodes, sandboxes, templates, usage};

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

const GET: HttpMethod = HttpMethod::Get;
const POST: HttpMethod = HttpMethod::Post;
const PUT: HttpMethod = HttpMethod::Put;
const PATCH: HttpMethod = HttpMethod::Patch;
const DELETE: HttpMethod = HttpMethod::Delete;

/// A route of the contract that this server does not have (yet).
struct Unbuilt {
    method: HttpMethod,
    path: &'static str,
    what: &'static str,
    answer: Answer,
}

const fn unbuilt(method: HttpMethod, path: &'static str, what: &'static str, answer: Answer) -> Unbuilt {
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

impl Answer {
    fn parts(self) -> (Callers, StatusCode) {
        match self {
            Self::Keyed(status) => (Callers::Team, status),
            Self::Operated(status) => (Callers::Operators, status),
            Self::Open(status) => (Callers::Anybody, status),
        }
    }
}

impl Unbuilt {
    fn handler(&self) -> MethodRouter<Arc<Control>> {
        let Self { what, answer, .. } = *self;
        let method = self.method.to_method_filter();
        match answer {
            Answer::Keyed(status) => on(method, move |_: Reader| async move { Failure::unsupported(status, what) }),
            Answer::Operated(status) => {
                on(method, move |_: Operator| async move { Failure::unsupported(status, what) })
            }
            Answer::Open(status) => on(method, move || async move { Failure::unsupported(status, what) }),
        }
    }

    fn add_to(&self, table: Table) -> Table {
        let Self { path, what, answer, .. } = *self;
        let (callers, status) = answer.parts();
        let described = NotSupported { method: self.method.clone(), path, what, status };
        table.add(callers, described.route(self.handler()))
    }
}

/// All routes, each with who may call it. A handler that does not describe itself is refused by the compiler.
pub(crate) fn table() -> Table {
    use Callers::{Anybody, Members, Operators, People, Team, Users};
    let built = Table::new()
        .add(Anybody, routes!(health::check))
        .add(Anybody, routes!(document::as_json))
        .add(Anybody, routes!(document::as_yaml))
        .add(Team, routes!(sandboxes::list::all))
        .add(Team, routes!(sandboxes::create::first_generation))
        .add(Team, routes!(sandboxes::list::page))
        .add(Team, routes!(sandboxes::create::second_generation))
        .add(Team, routes!(sandboxes::detail::get))
        .add(Team, routes!(sandboxes::kill::kill))
        .add(Team, routes!(sandboxes::end::set_timeout))
        .add(Team, routes!(sandboxes::end::refresh))
        .add(Team, routes!(sandboxes::connect::first_generation))
        .add(Team, routes!(sandboxes::connect::second_generation))
        .add(Team, routes!(sandboxes::metrics::of_several))
        .add(Team, routes!(sandboxes::metrics::of_one))
        .add(Team, routes!(usage::metrics::list))
        .add(Team, routes!(usage::metrics::max))
        .add(Team, routes!(sandboxes::logs::first_generation))
        .add(Team, routes!(sandboxes::logs::second_generation))
        .add(Team, routes!(templates::find_alias))
        .add(Users, routes!(teams::list))
        .add(People, routes!(keys::list))
        .add(Members, routes!(keys::create))
        .add(People, routes!(keys::rename))
        .add(People, routes!(keys::delete))
        .add(Operators, routes!(nodes::operate::list))
        .add(Operators, routes!(nodes::operate::get))
        .add(Operators, routes!(nodes::operate::change))
        .add(Operators, routes!(admin::kill_sandboxes))
        .add(Operators, routes!(admin::running_counts))
        .add(Operators, routes!(admin::create_key))
        .add(Operators, routes!(admin::revoke_key));
    UNBUILT.iter().fold(built, |table, unbuilt| unbuilt.add_to(table))
}

/// The router. What programs call is in the [`table`]; pages for browsers, which need no description, may join here.
/// Matching is on the raw path, so that an encoded slash does not end a segment.
pub(crate) fn router(control: Arc<Control>) -> Router {
    let (routes, _) = table().into_parts();
    let api = routes
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
