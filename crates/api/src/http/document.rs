//! OpenAPI 3.1 document of the API.
//!
//! The document is served, printed by `hearth openapi`, and committed as `spec/openapi.yaml`.
//!
//! ```text
//!   handlers ── #[utoipa::path]: parameters, body, own responses ───┐
//!   routes ──── Callers ──▶ callers: credentials                    ├─▶ Table ──▶ router and document
//!   middleware, rate, body ──▶ responses: common to all routes ─────┘
//! ```
//!
//! [`Table`] is the only way to register a route, and it requires a description. Responses of the shared middleware are
//! described once, in [`responses`]; handlers describe only their own.

mod callers;
mod responses;
mod table;

use std::sync::LazyLock;

use http::header::{CONTENT_TYPE, HeaderName};
use utoipa::openapi::tag::{Tag, TagBuilder};
use utoipa::openapi::{Info, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

pub(crate) use self::callers::Callers;
pub(crate) use self::table::{NotSupported, Table};
use super::routes;

/// Names of the route groups.
pub(crate) mod tag {
    pub(crate) const SANDBOXES: &str = "sandboxes";
    pub(crate) const TEMPLATES: &str = "templates";
    pub(crate) const VOLUMES: &str = "volumes";
    pub(crate) const SECRETS: &str = "secrets";
    pub(crate) const TEAMS: &str = "teams";
    pub(crate) const KEYS: &str = "keys";
    pub(crate) const OPERATORS: &str = "operators";
    pub(crate) const SERVER: &str = "server";
}

const TAGS: [(&str, &str); 8] = [
    (tag::SANDBOXES, "Sandboxes, their logs and their metrics."),
    (tag::TEMPLATES, "Templates that sandboxes are created from."),
    (tag::VOLUMES, "Storage that outlives sandboxes."),
    (tag::SECRETS, "Secret values that are inserted into requests of sandboxes."),
    (tag::TEAMS, "Teams and their metrics."),
    (tag::KEYS, "API keys of teams."),
    (tag::OPERATORS, "Routes for the operators of this server."),
    (tag::SERVER, "Health and documentation of this server."),
];

const DESCRIPTION: &str = "\
REST API of Hearth, compatible with the official E2B SDKs and CLI. Request members that are not described here are \
ignored. Every error reply has the body `Error`, whose `code` equals the HTTP status. Routes of the E2B API that this \
server does not support are marked `x-not-supported` and reply with the error code `feature_not_supported`.";

/// Both formats of the document, generated on first use.
struct Texts {
    json: String,
    yaml: String,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| {
    let document = document();
    Texts {
        json: document.to_pretty_json().expect("the document serializes"),
        yaml: document.to_yaml().expect("the document serializes"),
    }
});

/// Returns the document as JSON.
#[must_use]
pub fn json() -> &'static str {
    &TEXTS.json
}

/// Returns the document as YAML.
#[must_use]
pub fn yaml() -> &'static str {
    &TEXTS.yaml
}

/// Return this document as JSON
#[utoipa::path(
    get, path = "/openapi.json", tag = tag::SERVER, operation_id = "getOpenApiJson",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Object, content_type = "application/json"))
)]
pub(crate) async fn as_json() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(CONTENT_TYPE, "application/json")], json())
}

/// Return this document as YAML
#[utoipa::path(
    get, path = "/openapi.yaml", tag = tag::SERVER, operation_id = "getOpenApiYaml",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Object, content_type = "application/yaml"))
)]
pub(crate) async fn as_yaml() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(CONTENT_TYPE, "application/yaml")], yaml())
}

fn document() -> OpenApi {
    let (_, mut described) = routes::table().into_parts();
    described.info = info();
    described.tags = Some(TAGS.iter().map(|(name, about)| group(name, about)).collect());
    let components = described.components.get_or_insert_default();
    components.security_schemes = callers::schemes();
    components.responses = responses::failures();
    components.headers = responses::headers();
    responses::add_error_schema(components);
    described
}

/// Returns a document without routes.
fn empty() -> OpenApi {
    OpenApiBuilder::new().info(info()).build()
}

fn info() -> Info {
    InfoBuilder::new()
        .title("Hearth")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build()
}

fn group(name: &str, about: &str) -> Tag {
    TagBuilder::new().name(name).description(Some(about)).build()
}
