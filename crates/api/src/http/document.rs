//! The API as programs read it: an OpenAPI 3.1 document, served, printed by `hearth openapi`, and committed as
//! `spec/openapi.yaml`.
//!
//! ```text
//!   handlers ── #[utoipa::path]: parameters, body, answers of their own ─┐
//!   routes ──── who may call ──▶ callers: credentials, and what is       ├─▶ Table ──▶ the router, and the document
//!                                answered without them                   │
//!   border, rate, body ────────▶ answers: what every route may answer ───┘
//! ```
//!
//! [`Table`] is the only way to register a route, and takes none without its description. What surrounds every request is
//! described once, here; handlers describe only what is their own.

mod answers;
mod callers;
mod table;

use std::sync::LazyLock;

use http::header::{CONTENT_TYPE, HeaderName};
use utoipa::openapi::tag::{Tag, TagBuilder};
use utoipa::openapi::{Info, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

pub(crate) use self::callers::Callers;
pub(crate) use self::table::{NotSupported, Table};
use super::routes;

/// Names of groups of routes.
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
    (tag::SANDBOXES, "Create, find, use and end sandboxes; what they said and used."),
    (tag::TEMPLATES, "What sandboxes are made from."),
    (tag::VOLUMES, "Files that outlive sandboxes."),
    (tag::SECRETS, "Values that are put into what sandboxes send."),
    (tag::TEAMS, "Tenants and what they use."),
    (tag::KEYS, "Credentials of teams."),
    (tag::OPERATORS, "For whoever runs this server."),
    (tag::SERVER, "About the server itself."),
];

const DESCRIPTION: &str = "\
The control plane of Hearth, which the official E2B SDKs and CLI drive unchanged. Members of a request that are not \
described here are ignored. Every answer that is not a success has the body `Error`, whose `code` is the HTTP status. \
Routes of the contract that this server does not have are marked `x-not-supported` and say so when they are called.";

/// Both forms of the document, made when the first is asked for.
struct Texts {
    json: String,
    yaml: String,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| {
    let document = document();
    Texts {
        json: document.to_pretty_json().expect("a document is plain data"),
        yaml: document.to_yaml().expect("a document is plain data"),
    }
});

/// The document as JSON.
#[must_use]
pub fn json() -> &'static str {
    &TEXTS.json
}

/// The document as YAML.
#[must_use]
pub fn yaml() -> &'static str {
    &TEXTS.yaml
}

/// Read this document as JSON
#[utoipa::path(
    get, path = "/openapi.json", tag = tag::SERVER, operation_id = "getOpenApiJson",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Object, content_type = "application/json"))
)]
pub(crate) async fn as_json() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(CONTENT_TYPE, "application/json")], json())
}

/// Read this document as YAML
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
    components.responses = answers::failures();
    components.headers = answers::headers();
    answers::add_error_schema(components);
    described
}

/// A document without routes.
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
