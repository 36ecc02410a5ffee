//! Bodies of requests, checked field by field with the errors of the reference's framework.

use ::http::{HeaderMap, StatusCode, header};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::environment::is_variable;
use crate::language::Variables;

/// Longest part of an input that an error repeats, in bytes.
const REPEATED_BYTES_MAX: usize = 1024;

/// Body of `POST /execute`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Execute {
    pub(super) code: String,
    pub(super) context_id: Option<String>,
    pub(super) language: Option<String>,
    pub(super) variables: Variables,
}

/// Body of `POST /contexts`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) language: Option<String>,
    pub(super) cwd: Option<String>,
}

/// Reason that a body is not accepted.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The body is too large, or did not arrive.
    Unreadable(BytesRejection),
    /// Errors of fields.
    Invalid(Vec<Value>),
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unreadable(rejection) => rejection.into_response(),
            Refusal::Invalid(errors) => {
                (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "detail": errors }))).into_response()
            }
        }
    }
}

impl Execute {
    pub(super) fn parse(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Self, Refusal> {
        let mut object = object(headers, body)?;
        let mut errors = Vec::new();
        let code = match object.get_mut("code").map(Value::take) {
            Some(Value::String(code)) => code,
            Some(other) => {
                errors.push(mistake("string_type", &["code"], "Input should be a valid string", other));
                String::new()
            }
            None => {
                errors.push(mistake("missing", &["code"], "Field required", Value::Object(object.clone())));
                String::new()
            }
        };
        let context_id = optional(&mut object, "context_id", &mut errors);
        let language = optional(&mut object, "language", &mut errors);
        let variables = variables(&mut object, &mut errors);
        refuse(errors)?;
        Ok(Self { code, context_id, language, variables })
    }
}

impl Create {
    pub(super) fn parse(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Self, Refusal> {
        let mut object = object(headers, body)?;
        let mut errors = Vec::new();
        let language = optional(&mut object, "language", &mut errors);
        let cwd = optional(&mut object, "cwd", &mut errors);
        if cwd.as_ref().is_some_and(|cwd| cwd.contains('\0')) {
            errors.push(mistake("value_error", &["cwd"], "Value error, a path has no NUL character", json!(cwd)));
        }
        refuse(errors)?;
        Ok(Self { language, cwd })
    }
}

/// Reads the body as a JSON object.
fn object(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Map<String, Value>, Refusal> {
    let body = body.map_err(Refusal::Unreadable)?;
    if body.is_empty() {
        return Err(Refusal::Invalid(vec![mistake("missing", &[], "Field required", Value::Null)]));
    }
    let parsed = if is_json(headers) { serde_json::from_slice(&body) } else { Ok(text(&body)) };
    match parsed {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let text = "Input should be a valid dictionary or object to extract fields from";
            Err(Refusal::Invalid(vec![mistake("model_attributes_type", &[], text, other)]))
        }
        Err(error) => {
            let mut invalid = mistake("json_invalid", &[], "JSON decode error", json!({}));
            invalid["ctx"] = json!({ "error": error.to_string() });
            Err(Refusal::Invalid(vec![invalid]))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json")
}

fn text(body: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(&body[..body.len().min(REPEATED_BYTES_MAX)]).into_owned())
}

fn optional(object: &mut Map<String, Value>, name: &str, errors: &mut Vec<Value>) -> Option<String> {
    match object.get_mut(name).map(Value::take) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => {
            errors.push(mistake("string_type", &[name], "Input should be a valid string", other));
            None
        }
    }
}

fn variables(object: &mut Map<String, Value>, errors: &mut Vec<Value>) -> Variables {
    let field = "env_vars";
    let mut variables = Variables::new();
    match object.get_mut(field).map(Value::take) {
        None | Some(Value::Null) => {}
        Some(Value::Object(values)) => {
            for (name, value) in values {
                match value {
                    Value::String(value) if is_variable(&name, &value) => drop(variables.insert(name, value)),
                    Value::String(value) => {
                        let text = "Value error, a variable has a name without '=', and no NUL character";
                        errors.push(mistake("value_error", &[field, &name], text, json!(value)));
                    }
                    other => {
                        errors.push(mistake("string_type", &[field, &name], "Input should be a valid string", other));
                    }
                }
            }
        }
        Some(other) => errors.push(mistake("dict_type", &[field], "Input should be a valid dictionary", other)),
    }
    variables
}

/// Error of one field. A large input is not repeated.
fn mistake(kind: &str, place: &[&str], text: &str, input: Value) -> Value {
    let place: Vec<_> = std::iter::once("body").chain(place.iter().copied()).collect();
    let is_large = input.to_string().len() > REPEATED_BYTES_MAX;
    let input = if is_large { Value::Null } else { input };
    json!({ "type": kind, "loc": place, "msg": text, "input": input })
}

fn refuse(errors: Vec<Value>) -> Result<(), Refusal> {
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}
