//! Table that registers routes together with their descriptions.

use std::sync::Arc;

use axum::Router;
use axum::routing::MethodRouter;
use http::StatusCode;
use serde_json::json;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem, Paths,
};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Deprecated, OpenApi, RefOr, Required, ResponseBuilder};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use super::{Callers, empty, responses, tag};
use crate::control::Control;

/// OpenAPI extension that marks a route as not supported.
const NOT_SUPPORTED: &str = "x-not-supported";
/// Route without a rate limit, see [`rate`](crate::http::rate).
const UNLIMITED_PATH: &str = "/health";

/// Router and its document.
pub(crate) struct Table(OpenApiRouter<Arc<Control>>);

impl Table {
    pub(crate) fn new() -> Self {
        Self(OpenApiRouter::with_openapi(empty()))
    }

    /// Adds a route of `routes!`, which accepts only handlers with a description.
    pub(crate) fn add(self, callers: Callers, route: UtoipaMethodRouter<Arc<Control>>) -> Self {
        let (schemas, mut paths, handlers) = route;
        for (path, item) in &mut paths.paths {
            for operation in operations(item) {
                let is_supported = operation.extensions.as_ref().is_none_or(|found| !found.contains_key(NOT_SUPPORTED));
                responses::add_common(operation, callers, path != UNLIMITED_PATH, is_supported);
            }
        }
        Self(self.0.routes((schemas, paths, handlers)))
    }

    pub(crate) fn into_parts(self) -> (Router<Arc<Control>>, OpenApi) {
        self.0.split_for_parts()
    }
}

/// Description of a contract route that this server does not implement (yet).
pub(crate) struct NotSupported {
    pub(crate) method: HttpMethod,
    pub(crate) path: &'static str,
    /// Name of the feature in the summary.
    pub(crate) feature: &'static str,
    /// Status of the reply.
    pub(crate) status: StatusCode,
}

impl NotSupported {
    /// Combines the description with the handler of the route.
    pub(crate) fn route(self, handler: MethodRouter<Arc<Control>>) -> UtoipaMethodRouter<Arc<Control>> {
        let Self { method, path, feature, status } = self;
        let is_retired = status == StatusCode::GONE;
        let (summary, about) = if is_retired {
            let about = "Removed from the E2B API. Replies with the error code `feature_not_supported`.";
            (format!("Removed: {feature}"), about)
        } else {
            let about = "This server does not support this route of the E2B API. Replies with the error code \
                         `feature_not_supported`.";
            (format!("Not supported: {feature}"), about)
        };
        let mut operation = OperationBuilder::new()
            .operation_id(Some(operation_id(&method, path)))
            .tag(group(path))
            .summary(Some(summary))
            .description(Some(about))
            .response(status.as_str(), ResponseBuilder::new().description("Not supported."))
            .extensions(Some(ExtensionsBuilder::new().add(NOT_SUPPORTED, json!(true)).build()))
            .build();
        operation.parameters = Some(parameters(path)).filter(|parameters| !parameters.is_empty());
        operation.deprecated = is_retired.then_some(Deprecated::True);
        let mut paths = Paths::new();
        paths.paths.insert(path.to_owned(), PathItem::new(method, operation));
        (Vec::new(), paths, handler)
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [get, put, post, delete, patch].into_iter().flatten()
}

/// Joins the words of a method and a path, for example to `postSandboxesSandboxIDPause`.
fn operation_id(method: &HttpMethod, path: &str) -> String {
    let words = path.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words = words.map(|word| word[..1].to_uppercase() + &word[1..]);
    method_name(method).to_owned() + &words.collect::<String>()
}

fn method_name(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "get",
        HttpMethod::Put => "put",
        HttpMethod::Post => "post",
        HttpMethod::Delete => "delete",
        HttpMethod::Options => "options",
        HttpMethod::Head => "head",
        HttpMethod::Patch => "patch",
        HttpMethod::Trace => "trace",
    }
}

/// Returns the route group of a path.
fn group(path: &str) -> &'static str {
    let mut words = path.split('/').filter(|word| !matches!(*word, "" | "v2" | "v3"));
    match words.next() {
        Some("templates" | "default-templates") => tag::TEMPLATES,
        Some("volumes" | "volumecontent") => tag::VOLUMES,
        Some("secrets") => tag::SECRETS,
        Some("access-tokens") => tag::KEYS,
        Some("nodes" | "admin") => tag::OPERATORS,
        _ => tag::SANDBOXES,
    }
}

/// Returns the names in braces in a path as text parameters.
fn parameters(path: &str) -> Vec<RefOr<Parameter>> {
    let names = path.split('/').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| {
            let text = ObjectBuilder::new().schema_type(Type::String);
            let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path);
            RefOr::T(parameter.required(Required::True).schema(Some(text)).build())
        })
        .collect()
}
