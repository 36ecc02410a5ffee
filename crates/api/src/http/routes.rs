//! Table of all routes of the contract, implemented or not.
//!
//! A route that this server does not implement replies with an error body of the contract that names the feature. Only
//! a route that the contract does not have replies 404.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, on, post};
use http::StatusCode;
use utoipa::openapi::HttpMethod;
use utoipa_axum::{PathItemExt as _, routes};

use super::auth::{Operator, UnbannedTeam};
use super::document::{Callers, NotSupported, Table};
use super::{document, middleware, rate};
use crate::accounts::{admin, keys, teams};
use crate::control::Control;
use crate::failure::Failure;
use crate::{health, identity, nodes, sandboxes, templates, usage};

/// Required credentials and status of a route that is not implemented.
#[derive(Clone, Copy)]
enum Reply {
    /// Requires a team that is not banned.
    Team(StatusCode),
    /// Requires an operator.
    Operator(StatusCode),
    /// Requires no credentials, because the route takes credentials that this server does not issue.
    Anyone(StatusCode),
}

/// Not implemented yet.
const LATER: Reply = Reply::Team(StatusCode::NOT_IMPLEMENTED);
/// Not implemented yet, for operators.
const LATER_OPERATOR: Reply = Reply::Operator(StatusCode::NOT_IMPLEMENTED);
/// Feature that a server may disable. Clients handle this status.
const DISABLED: Reply = Reply::Team(StatusCode::FORBIDDEN);
/// Feature that a server may disable, with credentials of its own.
const DISABLED_ANYONE: Reply = Reply::Anyone(StatusCode::FORBIDDEN);
/// Removed from the contract.
const REMOVED: Reply = Reply::Anyone(StatusCode::GONE);

const GET: HttpMethod = HttpMethod::Get;
const POST: HttpMethod = HttpMethod::Post;
const PUT: HttpMethod = HttpMethod::Put;
const PATCH: HttpMethod = HttpMethod::Patch;
const DELETE: HttpMethod = HttpMethod::Delete;

/// Route of the contract that this server does not implement (yet).
struct Unimplemented {
    method: HttpMethod,
    path: &'static str,
    /// Name of the feature in the message.
    feature: &'static str,
    reply: Reply,
}

const fn unimplemented(method: HttpMethod, path: &'static str, feature: &'static str, reply: Reply) -> Unimplemented {
    Unimplemented { method, path, feature, reply }
}

const UNIMPLEMENTED: &[Unimplemented] = &[
    unimplemented(POST, "/sandboxes/{sandboxID}/pause", "pausing sandboxes", LATER),
    unimplemented(POST, "/sandboxes/{sandboxID}/resume", "resuming sandboxes", LATER),
    unimplemented(POST, "/sandboxes/{sandboxID}/fork", "forking sandboxes", LATER),
    unimplemented(POST, "/sandboxes/{sandboxID}/snapshots", "snapshots", LATER),
    unimplemented(GET, "/snapshots", "snapshots", LATER),
    unimplemented(PUT, "/sandboxes/{sandboxID}/network", "changing network rules", LATER),
    unimplemented(GET, "/templates", "listing templates", LATER),
    unimplemented(GET, "/v2/templates", "listing templates", LATER),
    unimplemented(GET, "/default-templates", "listing templates", LATER),
    unimplemented(GET, "/templates/{templateID}", "template details", LATER),
    unimplemented(DELETE, "/templates/{templateID}", "deleting templates", LATER),
    unimplemented(PATCH, "/templates/{templateID}", "changing templates", LATER),
    unimplemented(PATCH, "/v2/templates/{templateID}", "changing templates", LATER),
    unimplemented(POST, "/v3/templates", "building templates", LATER),
    unimplemented(GET, "/templates/{templateID}/files/{hash}", "building templates", LATER),
    unimplemented(POST, "/v2/templates/{templateID}/builds/{buildID}", "building templates", LATER),
    unimplemented(GET, "/templates/{templateID}/builds/{buildID}/status", "building templates", LATER),
    unimplemented(GET, "/templates/{templateID}/builds/{buildID}/logs", "building templates", LATER),
    unimplemented(POST, "/templates/tags", "template tags", LATER),
    unimplemented(DELETE, "/templates/tags", "template tags", LATER),
    unimplemented(GET, "/templates/{templateID}/tags", "template tags", LATER),
    unimplemented(GET, "/templates/{templateID}/tags/count", "template tags", LATER),
    unimplemented(GET, "/templates/{templateID}/tags/exists", "template tags", LATER),
    unimplemented(GET, "/templates/{templateID}/tags/groups", "template tags", LATER),
    unimplemented(GET, "/templates/{templateID}/tags/{tag}/assignments", "template tags", LATER),
    unimplemented(POST, "/templates", "builds of the first generation", REMOVED),
    unimplemented(POST, "/templates/{templateID}", "builds of the first generation", REMOVED),
    unimplemented(POST, "/templates/{templateID}/builds/{buildID}", "builds of the first generation", REMOVED),
    unimplemented(POST, "/v2/templates", "builds of the second generation", REMOVED),
    unimplemented(POST, "/access-tokens", "personal access tokens", REMOVED),
    unimplemented(DELETE, "/access-tokens/{accessTokenID}", "personal access tokens", REMOVED),
    unimplemented(GET, "/volumes", "volumes", DISABLED),
    unimplemented(POST, "/volumes", "volumes", DISABLED),
    unimplemented(GET, "/volumes/{volumeID}", "volumes", DISABLED),
    unimplemented(DELETE, "/volumes/{volumeID}", "volumes", DISABLED),
    unimplemented(GET, "/volumecontent/{volumeID}/path", "volumes", DISABLED_ANYONE),
    unimplemented(PATCH, "/volumecontent/{volumeID}/path", "volumes", DISABLED_ANYONE),
    unimplemented(DELETE, "/volumecontent/{volumeID}/path", "volumes", DISABLED_ANYONE),
    unimplemented(GET, "/volumecontent/{volumeID}/dir", "volumes", DISABLED_ANYONE),
    unimplemented(POST, "/volumecontent/{volumeID}/dir", "volumes", DISABLED_ANYONE),
    unimplemented(GET, "/volumecontent/{volumeID}/file", "volumes", DISABLED_ANYONE),
    unimplemented(PUT, "/volumecontent/{volumeID}/file", "volumes", DISABLED_ANYONE),
    unimplemented(GET, "/secrets", "secrets", DISABLED),
    unimplemented(POST, "/secrets", "secrets", DISABLED),
    unimplemented(GET, "/secrets/{secretID}", "secrets", DISABLED),
    unimplemented(POST, "/secrets/{secretID}", "secrets", DISABLED),
    unimplemented(DELETE, "/secrets/{secretID}", "secrets", DISABLED),
    unimplemented(POST, "/admin/teams/{teamID}/builds/cancel", "building templates", LATER_OPERATOR),
];

impl Reply {
    fn parts(self) -> (Callers, StatusCode) {
        match self {
            Self::Team(status) => (Callers::Team, status),
            Self::Operator(status) => (Callers::Operators, status),
            Self::Anyone(status) => (Callers::Anyone, status),
        }
    }
}

impl Unimplemented {
    fn handler(&self) -> MethodRouter<Arc<Control>> {
        let Self { feature, reply, .. } = *self;
        let method = self.method.to_method_filter();
        match reply {
            Reply::Team(status) => {
                on(method, move |_: UnbannedTeam| async move { Failure::unsupported(status, feature) })
            }
            Reply::Operator(status) => {
                on(method, move |_: Operator| async move { Failure::unsupported(status, feature) })
            }
            Reply::Anyone(status) => on(method, move || async move { Failure::unsupported(status, feature) }),
        }
    }

    fn add_to(&self, table: Table) -> Table {
        let Self { path, feature, reply, .. } = *self;
        let (callers, status) = reply.parts();
        let described = NotSupported { method: self.method.clone(), path, feature, status };
        table.add(callers, described.route(self.handler()))
    }
}

/// Returns all routes, each with its callers. The compiler rejects a handler without an OpenAPI description.
pub(crate) fn table() -> Table {
    use Callers::{Anyone, Managers, Members, Operators, Team, Users};
    let implemented = Table::new()
        .add(Anyone, routes!(health::check))
        .add(Anyone, routes!(document::as_json))
        .add(Anyone, routes!(document::as_yaml))
        .add(Team, routes!(sandboxes::list::all))
        .add(Team, routes!(sandboxes::create::first_generation))
        .add(Team, routes!(sandboxes::list::page))
        .add(Team, routes!(sandboxes::create::second_generation))
        .add(Team, routes!(sandboxes::detail::get))
        .add(Team, routes!(sandboxes::kill::kill))
        .add(Team, routes!(sandboxes::timeout::set_timeout))
        .add(Team, routes!(sandboxes::timeout::refresh))
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
        .add(Managers, routes!(keys::list))
        .add(Members, routes!(keys::create))
        .add(Managers, routes!(keys::rename))
        .add(Managers, routes!(keys::delete))
        .add(Operators, routes!(nodes::operate::list))
        .add(Operators, routes!(nodes::operate::get))
        .add(Operators, routes!(nodes::operate::change))
        .add(Operators, routes!(admin::kill_sandboxes))
        .add(Operators, routes!(admin::running_counts))
        .add(Operators, routes!(admin::create_key))
        .add(Operators, routes!(admin::revoke_key));
    UNIMPLEMENTED.iter().fold(implemented, |table, route| route.add_to(table))
}

/// Returns the router of the API and the login pages.
///
/// All API routes come from the [`table`]. Login pages are for browsers and need no description, so they are added
/// here. Routes are matched on the raw path, so an encoded slash does not end a segment.
pub(crate) fn router(control: Arc<Control>) -> Router {
    let (routes, _) = table().into_parts();
    let api = routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&control), rate::limit_requests))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&control), middleware::span_and_deadline))
        .layer(middleware::cors());
    // No CORS layer here: browsers then hide these replies from scripts of other origins.
    let identity = Router::new()
        .route(identity::PAGE, get(identity::cli::show).post(identity::cli::submit))
        .route(identity::START, get(identity::provider::start))
        .route(identity::CALLBACK, get(identity::provider::callback))
        .route(identity::TOKEN, post(identity::oauth::token))
        .route(identity::REVOKE, post(identity::oauth::revoke))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&control), rate::limit_requests))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&control), middleware::span_and_deadline));
    api.merge(identity).with_state(control)
}

async fn unknown_route() -> Response {
    Failure::not_found("there is no such route").into_response()
}

async fn method_not_allowed() -> Response {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not have such a method").into_response()
}
