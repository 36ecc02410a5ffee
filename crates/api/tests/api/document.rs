//! What the server says of itself, and whether what it does fits.
//!
//! Every answer that a test's client gets is compared with the document, so all tests are tests of the document, too.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex, PoisonError};

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;

use crate::client::Answer;

/// Where the document is, for references into it.
const ADDRESS: &str = "https://hearth.test/openapi.json";

pub(crate) static DOCUMENT: LazyLock<Document> =
    LazyLock::new(|| Document::new(serde_json::from_str(hearth_api::openapi_json()).expect("JSON")));

/// What was answered in this process: operation and status.
static ANSWERED: Mutex<BTreeSet<(String, u16)>> = Mutex::new(BTreeSet::new());

/// The document, as far as tests look at it.
pub(crate) struct Document {
    pub(crate) json: Value,
    pub(crate) operations: Vec<Operation>,
}

/// A method of a path.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) id: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) json: Value,
    /// What it may answer, references resolved.
    pub(crate) answers: BTreeMap<u16, Value>,
}

impl Document {
    fn new(json: Value) -> Self {
        let mut operations = Vec::new();
        for (path, item) in json["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("methods") {
                let answers = operation["responses"].as_object().expect("answers").iter();
                let answers = answers
                    .map(|(status, answer)| (status.parse().expect("a status"), resolved(&json, answer).clone()));
                operations.push(Operation {
                    id: operation["operationId"].as_str().expect("a name").to_owned(),
                    method: method.to_uppercase(),
                    path: path.clone(),
                    json: operation.clone(),
                    answers: answers.collect(),
                });
            }
        }
        Self { json, operations }
    }

    /// The operation that a request is for: of several, the one with the fewest parameters in its path.
    pub(crate) fn find(&self, method: &str, path: &str) -> Option<&Operation> {
        let path = path.split('?').next().unwrap_or_default();
        let matching = self.operations.iter().filter(|operation| operation.method == method && operation.fits(path));
        matching.min_by_key(|operation| operation.path.matches('{').count())
    }

    /// What a reference refers to, or the value itself.
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

    /// The sets of credentials of which one is enough.
    pub(crate) fn credentials(&self) -> Vec<BTreeSet<String>> {
        let any_of = self.json["security"].as_array().expect("said of each").iter();
        any_of.map(|all_of| all_of.as_object().expect("names").keys().cloned().collect()).collect()
    }

    fn fits(&self, path: &str) -> bool {
        let (ours, theirs): (Vec<_>, Vec<_>) = (self.path.split('/').collect(), path.split('/').collect());
        let same = |(ours, theirs): (&&str, &&str)| ours == theirs || (ours.starts_with('{') && !theirs.is_empty());
        ours.len() == theirs.len() && ours.iter().zip(&theirs).all(same)
    }
}

/// Panics if an answer is not what the document says.
#[track_caller]
pub(crate) fn check(method: &str, path: &str, answer: &Answer) {
    let Some(operation) = DOCUMENT.find(method, path) else { return };
    let status = answer.status.as_u16();
    // Not an operation's answer: the path has no such method.
    let Some(described) = operation.answers.get(&status) else {
        panic!("{} {status} is not in the document: {answer:?}", operation.id)
    };
    ANSWERED.lock().unwrap_or_else(PoisonError::into_inner).insert((operation.id.clone(), status));
    check_headers(described, answer);
    let media_type = answer.header("content-type").map(|text| text.split(';').next().unwrap_or_default().trim());
    let Some(content) = described["content"].as_object() else {
        assert!(answer.text.is_empty() && media_type.is_none(), "a body that is not in the document: {answer:?}");
        return;
    };
    let media_type = media_type.unwrap_or_else(|| panic!("no media type: {answer:?}"));
    assert!(content.contains_key(media_type), "{media_type} is not in the document: {answer:?}");
    if media_type == "application/json" {
        let escaped = |text: &str| text.replace('~', "~0").replace('/', "~1");
        let answers = match operation.json["responses"][status.to_string()]["$ref"].as_str() {
            Some(reference) => reference.to_owned(),
            None => {
                format!("#/paths/{}/{}/responses/{status}", escaped(&operation.path), operation.method.to_lowercase())
            }
        };
        check_value(&format!("{answers}/content/application~1json/schema"), &answer.json());
    }
}

/// Operations and statuses that were answered in this process.
pub(crate) fn answered() -> BTreeSet<(String, u16)> {
    ANSWERED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// For answers that no client of ours saw.
pub(crate) fn note(operation: &Operation, status: u16) {
    assert!(operation.answers.contains_key(&status), "{} {status} is not in the document", operation.id);
    ANSWERED.lock().unwrap_or_else(PoisonError::into_inner).insert((operation.id.clone(), status));
}

/// What we send besides what every server does is described, and is what the description says.
#[track_caller]
fn check_headers(described: &Value, answer: &Answer) {
    let empty = serde_json::Map::new();
    let headers = described["headers"].as_object().unwrap_or(&empty);
    for name in answer.headers.keys().map(http::HeaderName::as_str) {
        let is_ours = ["x-", "ratelimit-", "retry-after", "should-retry"].iter().any(|start| name.starts_with(start));
        let header = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        assert!(!is_ours || header.is_some(), "the header {name} is not in the document: {answer:?}");
        let Some((_, header)) = header else { continue };
        let text = answer.header(name).expect("it is there");
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

/// Panics if a value is not what a schema in the document says.
#[track_caller]
pub(crate) fn check_value(reference: &str, value: &Value) {
    thread_local! {
        /// A compiler stays in its thread.
        static COMPILED: RefCell<Compiled> = RefCell::new(Compiled::new());
    }
    let wrong = COMPILED.with_borrow_mut(|compiled| {
        let index = compiled.schema(reference);
        compiled.schemas.validate(value, index).err().map(|error| format!("{error:#}"))
    });
    assert!(wrong.is_none(), "{reference}: {}: {value}", wrong.unwrap_or_default());
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
fn the_document_is_whole() {
    let mut names = BTreeSet::new();
    let tags: BTreeSet<&str> =
        DOCUMENT.json["tags"].as_array().expect("a list").iter().filter_map(|tag| tag["name"].as_str()).collect();
    for operation in &DOCUMENT.operations {
        let Operation { id, path, json, .. } = operation;
        assert!(names.insert(id), "{id} is there twice");
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
    // Every schema can be compiled, and all of them are used.
    let text = DOCUMENT.json.to_string();
    for name in DOCUMENT.json["components"]["schemas"].as_object().expect("schemas").keys() {
        let reference = format!("#/components/schemas/{name}");
        let wrong = std::panic::catch_unwind(|| check_value(&reference, &Value::Null));
        let said = wrong.expect_err("nothing is null");
        let said = said.downcast_ref::<String>().expect("a text");
        assert!(said.contains("validation failed"), "{said}");
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
