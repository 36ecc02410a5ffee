//! Routes, bodies and their errors, as the contract has them.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::Server;

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_as_the_reference_does() {
    let Some(server) = Server::start().await else { return };
    let health = server.get("/health?source=ci").await;
    assert_eq!((health.status, health.text.as_str()), (StatusCode::OK, "\"OK\""));
    let unknown = server.get("/nope").await;
    assert_eq!((unknown.status, unknown.json()), (StatusCode::NOT_FOUND, json!({ "detail": "Not Found" })));
    for (method, path, allowed) in [
        (Method::HEAD, "/health", "GET"),
        (Method::POST, "/health", "GET"),
        (Method::GET, "/execute", "POST"),
        (Method::PUT, "/contexts", "GET, POST"),
        (Method::GET, "/contexts/x", "DELETE"),
        (Method::GET, "/contexts/x/restart", "POST"),
    ] {
        let reply = server.request(method.clone(), path, &[], "").await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(reply.headers["allow"], allowed, "{method} {path}");
        if method != Method::HEAD {
            assert_eq!(reply.json(), json!({ "detail": "Method Not Allowed" }));
        }
    }
}

#[tokio::test]
async fn bodies_are_validated_field_by_field() {
    let Some(server) = Server::start().await else { return };
    let both = server.post("/execute", &json!({ "code": "1", "context_id": "x", "language": "python" })).await;
    assert_eq!(both.status, StatusCode::BAD_REQUEST);
    assert_eq!(both.text, "Only one of context_id or language can be provided");
    assert_eq!(both.headers["content-type"], "text/plain; charset=utf-8");
    for (path, body, kind, place) in [
        ("/execute", r#"{"code":5}"#, "string_type", json!(["body", "code"])),
        ("/execute", "{}", "missing", json!(["body", "code"])),
        ("/execute", "", "missing", json!(["body"])),
        ("/execute", "[]", "model_attributes_type", json!(["body"])),
        ("/execute", "{", "json_invalid", json!(["body"])),
        ("/execute", r#"{"code":"\ud800"}"#, "json_invalid", json!(["body"])),
        ("/execute", r#"{"code":"","env_vars":[]}"#, "dict_type", json!(["body", "env_vars"])),
        ("/execute", r#"{"code":"","env_vars":{"A":1}}"#, "string_type", json!(["body", "env_vars", "A"])),
        ("/execute", r#"{"code":"","env_vars":{"A":"\u0000"}}"#, "value_error", json!(["body", "env_vars", "A"])),
        ("/execute", r#"{"code":"","env_vars":{"A=B":""}}"#, "value_error", json!(["body", "env_vars", "A=B"])),
        ("/execute", r#"{"code":"","language":1}"#, "string_type", json!(["body", "language"])),
        ("/contexts", r#"{"cwd":{}}"#, "string_type", json!(["body", "cwd"])),
        ("/contexts", "", "missing", json!(["body"])),
    ] {
        let reply = server.request(Method::POST, path, &[JSON], body).await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{path} {body}");
        let detail = &reply.json()["detail"][0];
        assert_eq!((&detail["type"], &detail["loc"]), (&json!(kind), &place), "{path} {body}");
    }
    let exact = server.request(Method::POST, "/execute", &[JSON], r#"{"code":5}"#).await;
    let expected: Value = json!({
        "detail": [
            { "type": "string_type", "loc": ["body", "code"], "msg": "Input should be a valid string", "input": 5 }
        ]
    });
    assert_eq!(exact.json(), expected);
    let text = server.request(Method::POST, "/execute", &[("content-type", "text/plain")], r#"{"code":""}"#).await;
    assert_eq!(text.json()["detail"][0]["type"], "model_attributes_type");
    let large = format!("{{\"code\":\"{}\"}}", "x".repeat(33 << 20));
    let reply = server.request(Method::POST, "/execute", &[JSON], &large).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn browsers_may_send_requests() {
    let Some(server) = Server::start().await else { return };
    let origin = ("origin", "https://example.com");
    let simple = server.request(Method::GET, "/contexts", &[origin], "").await;
    assert_eq!(simple.headers["access-control-allow-origin"], "*");
    let headers = [
        origin,
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,x-access-token"),
    ];
    let preflight = server.request(Method::OPTIONS, "/execute", &headers, "").await;
    assert_eq!((preflight.status, preflight.text.as_str()), (StatusCode::OK, "OK"));
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
        ("access-control-allow-headers", "content-type,x-access-token"),
        ("access-control-max-age", "600"),
    ] {
        assert_eq!(preflight.headers[name], value);
    }
}
