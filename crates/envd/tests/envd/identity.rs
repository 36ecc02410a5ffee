//! `/init`, the token, CORS, and the small routes.

use http::Method;
use serde_json::json;

use crate::daemon::Daemon;
use crate::http::{get, post, post_json, send, whole};

const TOKEN: (&str, &str) = ("x-access-token", "secret");
const JSON: (&str, &str) = ("content-type", "application/json");
const UNAUTHORIZED: &str = "{\"code\":401,\"message\":\"unauthorized access, please provide a valid access token or method signing if supported\"}\n";

#[tokio::test]
async fn a_restarted_daemon_rejects_requests_until_init() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hearth-envd"));
    command.arg("-restarted");
    let daemon = Daemon::spawn(command).await;
    assert_eq!(daemon.get("/health").await.status, 204);
    for path in ["/files?path=/etc/passwd", "/envs", "/metrics", "/nope"] {
        let reply = daemon.get(path).await;
        assert_eq!(
            (reply.status, reply.text()),
            (401, "{\"code\":401,\"message\":\"envd not initialized\"}\n"),
            "{path}"
        );
    }
    let reply = post_json(&daemon, "/process.Process/List", &json!({})).await;
    assert_eq!(reply.status, 401);
    assert_eq!(daemon.init(json!({ "accessToken": "" })).await.status, 400);
    assert_eq!(daemon.get("/envs").await.status, 401, "a rejected /init does not initialize the daemon");
    assert_eq!(daemon.init(json!({ "accessToken": "secret" })).await.status, 204);
    assert_eq!(get(&daemon, "/envs", &[TOKEN]).await.status, 200);
}

// envd: X8
#[tokio::test]
async fn small_routes() {
    let daemon = Daemon::start().await;
    let reply = daemon.get("/health").await;
    assert_eq!((reply.status, reply.text(), reply.header("cache-control")), (204, "", Some("no-store")));
    let reply = daemon.get("/envs").await;
    assert_eq!((reply.status, reply.json()), (200, json!({ "E2B_SANDBOX": "false" })));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let reply = daemon.get("/metrics").await;
    assert_eq!((reply.status, reply.header("cache-control")), (200, Some("no-store")));
    let metrics = reply.json();
    for key in [
        "ts",
        "cpu_count",
        "mem_total",
        "mem_used",
        "mem_cache",
        "mem_total_mib",
        "mem_used_mib",
        "disk_used",
        "disk_total",
    ] {
        assert!(metrics[key].as_u64().is_some(), "{key} is not an integer in {metrics}");
    }
    let percent = metrics["cpu_used_pct"].as_f64().expect("a number");
    assert!((0.0..=100.0).contains(&percent));
    assert_eq!(metrics.as_object().expect("an object").len(), 10);
    for (method, path, status) in [
        (Method::GET, "/nope", 404),
        (Method::GET, "/files/", 404),
        (Method::GET, "/health/", 404),
        (Method::HEAD, "/health", 405),
        (Method::HEAD, "/files?path=/etc/passwd", 405),
        (Method::POST, "/health", 405),
        (Method::GET, "/init", 405),
        (Method::PUT, "/files", 405),
        (Method::POST, "/upgrade", 501),
    ] {
        let reply = send(&daemon, method.clone(), path, &[], whole("")).await;
        assert_eq!(reply.status, status, "{method} {path}");
        match status {
            404 => assert_eq!(reply.text(), "404 page not found\n"),
            405 => assert_eq!(reply.text(), ""),
            _ => {
                assert_eq!(reply.json()["code"], 501);
                assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
            }
        }
    }
}

// envd: S1, S8
#[tokio::test]
async fn the_token_protects_routes() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.init(json!({ "accessToken": "secret" })).await.status, 204);
    for headers in [&[][..], &[("x-access-token", "wrong")], &[("x-access-token", "")]] {
        for (method, path) in [
            (Method::GET, "/metrics"),
            (Method::GET, "/envs"),
            (Method::GET, "/nope"),
            (Method::POST, "/health"),
            (Method::GET, "/files/"),
            (Method::GET, "/init"),
            (Method::POST, "/files/compose"),
            (Method::POST, "/freeze"),
            (Method::POST, "/process.Process/List"),
        ] {
            let headers = [headers, &[JSON]].concat();
            let reply = send(&daemon, method.clone(), path, &headers, whole("{}")).await;
            assert_eq!((reply.status, reply.text()), (401, UNAUTHORIZED), "{method} {path}");
            assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        }
    }
    assert_eq!(get(&daemon, "/health", &[]).await.status, 204);
    assert_eq!(get(&daemon, "/envs", &[TOKEN]).await.status, 200);
    assert_eq!(post(&daemon, "/process.Process/List", &[JSON, TOKEN], "{}").await.status, 200);
}

// envd: X9
#[tokio::test]
async fn init_sets_and_confirms_the_identity() {
    let daemon = Daemon::start().await;
    let version = Some("0.6.13");
    for (body, status, text) in [
        ("", 204, ""),
        ("{}", 204, ""),
        ("{\"unknown\":1}", 204, ""),
        ("{", 400, ""),
        ("[]", 400, ""),
        ("{\"timestamp\":\"yesterday\"}", 400, ""),
        ("{\"accessToken\":\"\"}", 400, ""),
        ("{\"accessToken\":\"a\\\\b\"}", 400, ""),
        ("{\"accessToken\":\"secret\"}", 204, ""),
        ("{\"accessToken\":\"secret\"}", 204, ""),
        ("{\"accessToken\":\"other\"}", 401, "access token validation failed"),
        ("{}", 401, "access token reset not authorized"),
    ] {
        let reply = post(&daemon, "/init", &[JSON], body).await;
        assert_eq!((reply.status, reply.text()), (status, text), "{body}");
        assert_eq!(reply.header("x-envd-version"), version, "{body}");
    }
    let reply = post(&daemon, "/init", &[JSON], vec![b' '; 5 << 20]).await;
    assert_eq!((reply.status, reply.header("x-envd-version")), (400, version));
    let envs = async || get(&daemon, "/envs", &[TOKEN]).await.json();
    let init = async |body| assert_eq!(daemon.init(body).await.status, 204);
    init(json!({ "accessToken": "secret", "envVars": { "A": "1", "E2B_SANDBOX": "forged" }, "sandboxId": "s", "templateId": "t" })).await;
    let known = json!({ "A": "1", "E2B_SANDBOX": "false", "E2B_SANDBOX_ID": "s", "E2B_TEMPLATE_ID": "t" });
    assert_eq!(envs().await, known);
    init(json!({ "accessToken": "secret" })).await;
    assert_eq!(envs().await, known, "an absent field is unchanged");
    init(json!({ "accessToken": "secret", "envVars": {} })).await;
    assert_eq!(envs().await["A"], json!(null), "a present field replaces");
    // A request older than an applied one is acknowledged and ignored.
    let at = |time: &str, value: &str| json!({ "accessToken": "secret", "timestamp": time, "envVars": { "A": value } });
    for (time, value, expected) in [
        ("2026-01-01T00:00:00.000000002Z", "new", "new"),
        ("2026-01-01T00:00:00.000000001Z", "old", "new"),
        ("2026-01-01T00:00:00.000000002Z", "same", "same"),
        ("2026-01-01T01:00:00.000000003+01:00", "newer", "newer"),
    ] {
        init(at(time, value)).await;
        assert_eq!(envs().await["A"], expected);
    }
}

#[tokio::test]
async fn concurrent_inits() {
    let daemon = Daemon::start().await;
    let inits = (0..40).map(|_| daemon.init(json!({ "accessToken": "secret", "envVars": { "A": "b" } })));
    for reply in futures::future::join_all(inits).await {
        assert_eq!(reply.status, 204);
    }
}

#[tokio::test]
async fn browsers_are_allowed_by_cors() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.init(json!({ "accessToken": "secret" })).await.status, 204);
    let origin = ("origin", "https://example.org");
    let wants = ("access-control-request-method", "POST");
    let names = ("access-control-request-headers", "x-access-token,connect-protocol-version");
    for path in ["/process.Process/Start", "/files?path=x", "/nope"] {
        let reply = send(&daemon, Method::OPTIONS, path, &[origin, wants, names], whole("")).await;
        assert_eq!(reply.status, 204, "{path}");
        for (name, value) in [
            ("access-control-allow-origin", Some("*")),
            ("access-control-allow-methods", Some("POST")),
            ("access-control-allow-headers", Some(names.1)),
            ("access-control-max-age", Some("7200")),
            ("access-control-allow-credentials", None),
            ("vary", Some("Origin, Access-Control-Request-Method, Access-Control-Request-Headers")),
        ] {
            assert_eq!(reply.header(name), value, "{name} of {path}");
        }
    }
    let odd = [origin, ("access-control-request-method", "TRACE")];
    let reply = send(&daemon, Method::OPTIONS, "/health", &odd, whole("")).await;
    assert_eq!((reply.status, reply.header("access-control-allow-methods")), (204, None));
    // Not a preflight, so it needs the token.
    assert_eq!(send(&daemon, Method::OPTIONS, "/envs", &[origin], whole("")).await.status, 401);
    for (headers, status) in [(&[origin][..], 401), (&[origin, TOKEN], 200)] {
        let reply = get(&daemon, "/envs", headers).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (status, Some("*")));
        assert_eq!(reply.header("vary"), Some("Origin"));
        let exposed = reply.header("access-control-expose-headers").expect("the header is set");
        assert_eq!(
            exposed,
            "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, X-Content-Type-Options"
        );
    }
    assert_eq!(get(&daemon, "/envs", &[TOKEN]).await.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn a_rejected_field_is_named() {
    let daemon = Daemon::start().await;
    let reply = post_json(&daemon, "/init", &json!({ "volumeMounts": [{ "nfs_target": "a", "path": "/b" }] })).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("volumeMounts"), "{reply:?}");
}
