//! Comparison of replies with the OpenAPI document.
//!
//! The tests' client compares every reply with the document, so all tests are tests of the document too.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex, PoisonError};

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;

use crate::client::Reply;

/// Base URL of the document, for references into it.
const ADDRESS: &str = "https://hearth.test/openapi.json";

pub(crate) static DOCUMENT: LazyLock<Document> =
    LazyLock::new(|| Document::new(serde_json::from_str(hearth_api::openapi_json()).expect("JSON")));

/// Operations and statuses of all replies in this process.
static OBSERVED: Mutex<BTreeSet<(String, u16)>> = Mutex::new(BTreeSet::new());

/// Parts of the document that tests use.
pub(crate) struct Document {
    pub(crate) json: Value,
    pub(crate) operations: Vec<Operation>,
}

/// Operation of the document: a method of a path.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) id: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) json: Value,
    /// Responses by status, with resolved references.
    pub(crate) responses: BTreeMap<u16, Value>,
}

impl Document {
    fn new(json: Value) -> Self {
        let mut operations = Vec::new();
        for (path, item) in json["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("methods") {
                let responses = operation["responses"].as_object().expect("responses").iter();
                let responses = responses
                    .map(|(status, reply)| (status.parse().expect("a status"), resolved(&json, reply).clone()));
                operations.push(Operation {
                    id: operation["operationId"].as_str().expect("a name").to_owned(),
                    method: method.to_uppercase(),
                    path: path.clone(),
                    json: operation.clone(),
                    responses: responses.collect(),
                });
            }
        }
        Self { json, operations }
    }

    /// Returns the operation of a request. Of several matches, it is the one with the fewest path parameters.
    pub(crate) fn find(&self, method: &str, path: &str) -> Option<&Operation> {
        let path = path.split('?').next().unwrap_or_default();
        let matching = self.operations.iter().filter(|operation| operation.method == method && operation.matches(path));
        matching.min_by_key(|operation| operation.path.matches('{').count())
    }

    /// Returns the target of a reference, or the value itself if it is not a reference.
    pub(crate) fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        resolved(&self.json, value)
    }
}

fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap_or_else(|| panic!("nothing at {reference}")),
        None => value,
    }
}

impl Operation {
    pub(crate) fn is_supported(&self) -> bool {
        self.json["x-not-supported"] != true
    }

    pub(crate) fn takes_a_body(&self) -> bool {
        !self.json["requestBody"].is_null()
    }

    /// Returns the sets of credentials. A request needs one of the sets.
    pub(crate) fn credentials(&self) -> Vec<BTreeSet<String>> {
        let any_of = self.json["security"].as_array().expect("each operation has the member").iter();
        any_of.map(|all_of| all_of.as_object().expect("names").keys().cloned().collect()).collect()
    }

    fn matches(&self, path: &str) -> bool {
        let (pattern, path): (Vec<_>, Vec<_>) = (self.path.split('/').collect(), path.split('/').collect());
        let matches =
            |(pattern, word): (&&str, &&str)| pattern == word || (pattern.starts_with('{') && !word.is_empty());
        pattern.len() == path.len() && pattern.iter().zip(&path).all(matches)
    }
}

/// Panics if a reply does not match the document.
#[track_caller]
pub(crate) fn check(method: &str, path: &str, reply: &Reply) {
    let Some(operation) = DOCUMENT.find(method, path) else { return };
    let status = reply.status.as_u16();
    // `find` returns `None` for a path without this method, whose reply is not documented.
    let Some(described) = operation.responses.get(&status) else {
        panic!("{} {status} is not in the document: {reply:?}", operation.id)
    };
    OBSERVED.lock().unwrap_or_else(PoisonError::into_inner).insert((operation.id.clone(), status));
    check_headers(described, reply);
    let media_type = reply.header("content-type").map(|text| text.split(';').next().unwrap_or_default().trim());
    let Some(content) = described["content"].as_object() else {
        assert!(reply.text.is_empty() && media_type.is_none(), "a body that is not in the document: {reply:?}");
        return;
    };
    let media_type = media_type.unwrap_or_else(|| panic!("no media type: {reply:?}"));
    assert!(content.contains_key(media_type), "{media_type} is not in the document: {reply:?}");
    if media_type == "application/json" {
        let escaped = |text: &str| text.replace('~', "~0").replace('/', "~1");
        let replies = match operation.json["responses"][status.to_string()]["$ref"].as_str() {
            Some(reference) => reference.to_owned(),
            None => {
                format!("#/paths/{}/{}/responses/{status}", escaped(&operation.path), operation.method.to_lowercase())
            }
        };
        check_value(&format!("{replies}/content/application~1json/schema"), &reply.json());
    }
}

/// Returns the operations and statuses of all replies in this process.
pub(crate) fn observed() -> BTreeSet<(String, u16)> {
    OBSERVED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Records a reply that was not received by the tests' client.
pub(crate) fn record(operation: &Operation, status: u16) {
    assert!(operation.responses.contains_key(&status), "{} {status} is not in the document", operation.id);
    OBSERVED.lock().unwrap_or_else(PoisonError::into_inner).insert((operation.id.clone(), status));
}

/// Panics if a header that is specific to this API is not documented, or does not match its schema.
#[track_caller]
fn check_headers(described: &Value, reply: &Reply) {
    let empty = serde_json::Map::new();
    let headers = described["headers"].as_object().unwrap_or(&empty);
    for name in reply.headers.keys().map(http::HeaderName::as_str) {
        let is_specific =
            ["x-", "ratelimit-", "retry-after", "should-retry"].iter().any(|start| name.starts_with(start));
        let header = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        assert!(!is_specific || header.is_some(), "the header {name} is not in the document: {reply:?}");
        let Some((_, header)) = header else { continue };
        let text = reply.header(name).expect("the header exists");
        let value = match DOCUMENT.resolve(header)["schema"]["type"].as_str() {
            Some("integer") => {
                text.parse().map(Value::Number).unwrap_or_else(|error| panic!("{name}: {text}: {error}"))
            }
            _ => Value::String(text.to_owned()),
        };
        if let Some(reference) = header["$ref"].as_str() {
            check_value(&format!("{reference}/schema"), &value);
        }
    }
}

/// Panics if a value does not match a schema of the document.
#[track_caller]
pub(crate) fn check_value(reference: &str, value: &Value) {
    thread_local! {
        /// One per thread, because a compiler cannot be shared between threads.
        static COMPILED: RefCell<Compiled> = RefCell::new(Compiled::new());
    }
    let mismatch = COMPILED.with_borrow_mut(|compiled| {
        let index = compiled.schema(reference);
        compiled.schemas.validate(value, index).err().map(|error| format!("{error:#}"))
    });
    assert!(mismatch.is_none(), "{reference}: {}: {value}", mismatch.unwrap_or_default());
}

struct Compiled {
    compiler: Compiler,
    schemas: Schemas,
}

impl Compiled {
    fn new() -> Self {
        let mut compiler = Compiler::new();
        compiler.enable_format_assertions();
        compiler.add_resource(ADDRESS, DOCUMENT.json.clone()).expect("a document");
        Self { compiler, schemas: Schemas::new() }
    }

    fn schema(&mut self, reference: &str) -> SchemaIndex {
        let Self { compiler, schemas } = self;
        let compiled = compiler.compile(&format!("{ADDRESS}{reference}"), schemas);
        compiled.unwrap_or_else(|error| panic!("{reference}: {error:#}"))
    }
}

#[test]
fn the_document_is_complete() {
    let mut names = BTreeSet::new();
    let tags: BTreeSet<&str> =
        DOCUMENT.json["tags"].as_array().expect("a list").iter().filter_map(|tag| tag["name"].as_str()).collect();
    for operation in &DOCUMENT.operations {
        let Operation { id, path, json, .. } = operation;
        assert!(names.insert(id), "duplicate operation ID {id}");
        assert!(json["summary"].as_str().is_some_and(|text| !text.is_empty()), "{id} has no summary");
        let tag = json["tags"][0].as_str();
        assert!(tag.is_some_and(|tag| tags.contains(tag)), "{id} is in the group {tag:?}");
        let in_path: BTreeSet<&str> =
            path.split('/').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}')).collect();
        let parameters = json["parameters"].as_array().cloned().unwrap_or_default();
        let described: BTreeSet<&str> = parameters
            .iter()
            .filter(|parameter| parameter["in"] == "path")
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        assert_eq!(described, in_path, "{id}");
    }
    check_references(&DOCUMENT.json);
    // Every schema compiles and is used.
    let text = DOCUMENT.json.to_string();
    for name in DOCUMENT.json["components"]["schemas"].as_object().expect("schemas").keys() {
        let reference = format!("#/components/schemas/{name}");
        let outcome = std::panic::catch_unwind(|| check_value(&reference, &Value::Null));
        let panic = outcome.expect_err("no schema accepts null");
        let message = panic.downcast_ref::<String>().expect("a text");
        assert!(message.contains("validation failed"), "{message}");
        assert!(text.contains(&format!("\"{reference}\"")), "{name} is not used");
    }
}

fn check_references(value: &Value) {
    match value {
        Value::Object(members) => {
            if members.contains_key("$ref") {
                DOCUMENT.resolve(value);
            }
            members.values().for_each(check_references);
        }
        Value::Array(items) => items.iter().for_each(check_references),
        _ => {}
    }
}
