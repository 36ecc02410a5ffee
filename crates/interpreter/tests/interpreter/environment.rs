//! Variables of the sandbox and of one execution, and fresh random numbers after a restore.

use std::fs;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::server::{Server, output, text};

/// Guest daemon with variables and a token.
#[derive(Clone, Default)]
struct Daemon(Arc<Mutex<(Value, usize)>>);

impl Daemon {
    /// Starts it and returns its URL.
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let router = axum::Router::new().route("/envs", axum::routing::get(envs)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    fn set(&self, variables: Value) {
        self.0.lock().expect("sound").0 = variables;
    }

    fn requests(&self) -> usize {
        self.0.lock().expect("sound").1
    }
}

async fn envs(State(Daemon(state)): State<Daemon>, headers: HeaderMap) -> Response {
    let mut state = state.lock().expect("sound");
    state.1 += 1;
    if headers.get("x-access-token").is_none_or(|token| token != "secret") {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "code": "401", "message": "no" }))).into_response();
    }
    Json(state.0.clone()).into_response()
}

const TOKEN: (&str, &str) = ("x-access-token", "secret");

async fn run(server: &Server, body: Value) -> Vec<Value> {
    server.open_with(&body, &[TOKEN]).await.rest().await
}

#[tokio::test]
async fn variables_are_set_overridden_and_restored() {
    let daemon = Daemon::default();
    daemon.set(json!({ "SANDBOX": "it's \"mine\" \\ \u{2028}😀\n$X", "BOTH": "sandbox" }));
    let url = daemon.start().await;
    let Some(server) = Server::start_with(&["--envd", &url]).await else { return };
    let environment =
        "import os, json; print(json.dumps([os.environ.get(k) for k in ('SANDBOX', 'BOTH', 'OWN', 'code')]))";
    let python = async |variables: Value, headers: &[(&str, &str)]| {
        let body = json!({ "code": environment, "env_vars": variables });
        let events = server.open_with(&body, headers).await.rest().await;
        serde_json::from_str::<Value>(&output(&events, "stdout")).expect("JSON")
    };
    let sandbox = "it's \"mine\" \\ \u{2028}😀\n$X";
    assert_eq!(python(json!(null), &[]).await, json!([null, null, null, null]), "without the token");
    assert_eq!(python(json!({}), &[TOKEN]).await, json!([sandbox, "sandbox", null, null]), "with it, later");
    let own = "a'b\"\\\n\u{2028}😀\u{85}";
    assert_eq!(python(json!({ "BOTH": "own", "OWN": own }), &[TOKEN]).await, json!([sandbox, "own", own, null]));
    assert_eq!(python(json!(null), &[]).await, json!([sandbox, "sandbox", null, null]));
    daemon.set(json!({ "BOTH": "changed" }));
    assert_eq!(python(json!(null), &[TOKEN]).await, json!([null, "changed", null, null]), "removed and changed");
    server.post("/contexts/default/restart", &json!(null)).await;
    assert_eq!(python(json!(null), &[TOKEN]).await, json!([null, "changed", null, null]), "after a restart");
    let bash = async |variables: Value| {
        let body = json!({ "code": "printf '%s|%s' \"$BOTH\" \"$OWN\"", "language": "bash", "env_vars": variables });
        output(&run(&server, body).await, "stdout")
    };
    let printed = bash(json!({ "BOTH": "own", "OWN": own, "no name": "x" })).await;
    assert_eq!(printed.trim_end(), format!("own|{own}").trim_end());
    assert_eq!(bash(json!(null)).await.trim_end(), "changed|");
    let path = text(&server.python("os.environ['PATH']").await).to_owned();
    let events = run(&server, json!({ "code": "os.environ['PATH']", "env_vars": { "PATH": "/own" } })).await;
    assert_eq!(text(&events), "/own");
    assert_eq!(text(&server.python("os.environ['PATH']").await), path, "the kernel's own value is back");
    let line = "1/0";
    let events = run(&server, json!({ "code": line, "env_vars": { "OWN": "x" } })).await;
    assert!(events[1]["traceback"].as_str().expect("text").contains("line 1\n"), "line numbers are the user's");
    let events = run(&server, json!({ "code": "%%bash\necho $OWN", "env_vars": { "OWN": "x" } })).await;
    assert_eq!(output(&events, "stdout"), "x\n", "magics work with variables");
}

#[tokio::test]
async fn variables_are_requested_again_only_after_a_restore() {
    let daemon = Daemon::default();
    daemon.set(json!({ "A": "1" }));
    let url = daemon.start().await;
    let Some(server) = Server::start_with(&["--envd", &url]).await else { return };
    let generation = server.folder.path().join("generation");
    fs::write(&generation, "first").expect("written");
    let python = async || text(&run(&server, json!({ "code": "import os; os.environ['A']" })).await).to_owned();
    assert_eq!((python().await, python().await, daemon.requests()), ("1".into(), "1".into(), 1));
    daemon.set(json!({ "A": "2" }));
    assert_eq!((python().await, daemon.requests()), ("1".into(), 1), "nothing was restored");
    fs::write(&generation, "second").expect("written");
    assert_eq!((python().await, daemon.requests()), ("2".into(), 2));
}

// interpreter: U2
#[tokio::test]
async fn random_numbers_are_fresh_after_a_restore() {
    let Some(server) = Server::start().await else { return };
    let generation = server.folder.path().join("generation");
    let draw = "random.seed(7); first = random.random()";
    server.python(&format!("import random, tempfile\n{draw}")).await;
    server.python("random.seed(7)").await;
    let events = server.python("random.random() == first").await;
    assert_eq!((text(&events), &events[0]["execution_count"]), ("True", &json!(3)));
    server.python("random.seed(7)").await;
    fs::write(&generation, "restored").expect("written");
    let events = server.python("random.random() == first").await;
    assert_eq!((text(&events), &events[0]["execution_count"]), ("False", &json!(5)), "reseeded, and not counted");
    server.python("random.seed(7)").await;
    assert_eq!(text(&server.python("random.random() == first").await), "True", "once only");
    assert_eq!(text(&server.python("[name for name in dir() if 'hearth' in name]").await), "[]");
    // Bash's own generator.
    let bash = async |code: &str| output(&server.execute(json!({ "code": code, "language": "bash" })).await, "stdout");
    bash("RANDOM=7").await;
    let first = bash("echo $RANDOM $RANDOM $RANDOM").await;
    bash("RANDOM=7").await;
    fs::write(&generation, "again").expect("written");
    assert_ne!(bash("echo $RANDOM $RANDOM $RANDOM").await, first);
}

#[tokio::test]
async fn the_first_contexts_are_warmed_up_silently() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("warm-up.py"), "import fractions\nprint('hidden')\nwarm = 1").expect("written");
    let path = folder.path().display().to_string();
    let Some(server) = Server::start_with(&["--warm-up-dir", &path]).await else { return };
    let events = server.python("import sys; 'fractions' in sys.modules, warm").await;
    assert_eq!((text(&events), &events[0]["execution_count"]), ("(True, 1)", &json!(1)));
    let id = server.create(json!({})).await;
    let events = server.execute(json!({ "code": "import sys; 'fractions' in sys.modules", "context_id": id })).await;
    assert_eq!(text(&events), "False", "only the first contexts");
}
