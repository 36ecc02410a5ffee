//! Contexts: creation, isolation, restart, deletion, and death of their kernels.

use std::fs;

use http::StatusCode;
use serde_json::json;

use crate::server::{Server, errors, output, text, wait_until};

#[tokio::test]
async fn contexts_are_listed_isolated_and_removed() {
    let Some(server) = Server::start().await else { return };
    let home = server.folder.path().join("home").display().to_string();
    let elsewhere = server.folder.path().join("elsewhere").display().to_string();
    let first = server.get("/contexts").await.json();
    assert_eq!(first.as_array().expect("a list").len(), 1, "there is no JavaScript kernel: {first}");
    assert_eq!((first[0]["language"].as_str(), first[0]["cwd"].as_str()), (Some("python"), Some(home.as_str())));
    let created = server.post("/contexts", &json!({ "language": null, "cwd": elsewhere })).await.json();
    let all = server.get("/contexts").await.json();
    assert_eq!(all[1], created);
    let id = created["id"].as_str().expect("an id");
    server.python("x = 1").await;
    let run = async |code: &str| server.execute(json!({ "code": code, "context_id": id, "language": null })).await;
    assert_eq!(errors(&run("x").await), [("NameError", "name 'x' is not defined")]);
    assert_eq!(text(&run("import os; os.getcwd()").await), elsewhere);
    run("x = 5").await;
    let restarted = server.post(&format!("/contexts/{id}/restart"), &json!(null)).await;
    assert_eq!((restarted.status, restarted.text.as_str()), (StatusCode::OK, "null"));
    let events = run("x").await;
    assert_eq!(errors(&events), [("NameError", "name 'x' is not defined")]);
    assert_eq!(events[0]["execution_count"], 1);
    assert_eq!(text(&run("import os; os.getcwd()").await), elsewhere, "a restart keeps the directory");
    assert_eq!(server.delete(&format!("/contexts/{id}")).await.text, "null");
    assert_eq!(server.get("/contexts").await.json(), first);
    for reply in [
        server.post("/execute", &json!({ "code": "1", "context_id": id })).await,
        server.delete(&format!("/contexts/{id}")).await,
        server.post(&format!("/contexts/{id}/restart"), &json!(null)).await,
    ] {
        assert_eq!((reply.status, reply.text), (StatusCode::NOT_FOUND, format!("Context {id} not found")));
    }
}

#[tokio::test]
async fn a_missing_directory_is_ignored_by_python_and_kernels_are_named() {
    let Some(server) = Server::start().await else { return };
    let odd = "/nonexistent/it's \"q\" \\ \u{2028}";
    let id = server.create(json!({ "language": "Python ", "cwd": odd })).await;
    let events = server.execute(json!({ "code": "import os; os.getcwd()", "context_id": id })).await;
    assert_eq!(text(&events), server.folder.path().join("home").display().to_string());
    let reply = server.post("/contexts", &json!({ "language": "x\"y" })).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = reply.text.strip_prefix("Failed to create context: ").expect("the contract's text");
    let message: serde_json::Value = serde_json::from_str(message).expect("JSON");
    assert_eq!(message["short_message"], "xy not found");
    let reply = server.post("/execute", &json!({ "code": "1", "language": "cobol" })).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    // A kernel by its own name is a language of its own.
    assert_eq!(text(&server.execute(json!({ "code": "1", "language": "python3" })).await), "1");
    assert_eq!(server.get("/contexts").await.json()[2]["language"], "python3");
}

#[tokio::test]
async fn a_kernel_of_a_template_is_a_language_by_its_name() {
    let Some(server) = Server::start().await else { return };
    let elsewhere = server.folder.path().join("elsewhere").display().to_string();
    let id = server.create(json!({ "language": "science", "cwd": elsewhere })).await;
    let code = "import os; (os.getcwd(), os.environ.get('OWN'))";
    let events = server.execute(json!({ "code": code, "context_id": id, "env_vars": { "OWN": "1" } })).await;
    assert_eq!(text(&events), format!("('{elsewhere}', '1')"), "prepared as Python");
    let pid = text(&server.execute(json!({ "code": "os.getpid()", "context_id": id })).await).to_owned();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix")).expect("readable");
    assert!(sockets.contains(&format!("run/{id}/s-1")), "on Unix sockets");
    let killed = server.execute(json!({ "code": "os._exit(1)", "context_id": id })).await;
    assert_eq!(errors(&killed), [("ContextRestarting", "Context was restarted")]);
    let events = server.execute(json!({ "code": "1", "context_id": id })).await;
    assert_eq!(text(&events), "1");
}

#[tokio::test]
async fn the_default_context_has_an_alias_and_is_recreated() {
    let Some(server) = Server::start().await else { return };
    server.python("x = 1").await;
    let alias = async || server.execute(json!({ "code": "x", "context_id": "default" })).await;
    assert_eq!(text(&alias().await), "1");
    assert_eq!(server.post("/contexts/default/restart", &json!(null)).await.text, "null");
    assert_eq!(errors(&alias().await).len(), 1);
    let before = server.get("/contexts").await.json();
    assert_eq!(server.delete("/contexts/default").await.text, "null");
    assert_eq!(server.get("/contexts").await.json(), json!([]));
    let (first, second) = tokio::join!(server.python("1"), server.python("2"));
    assert_eq!((text(&first), text(&second)), ("1", "2"));
    let after = server.get("/contexts").await.json();
    assert_eq!(after.as_array().expect("a list").len(), 1, "one default for two requests");
    assert_ne!(before[0]["id"], after[0]["id"]);
}

// interpreter: F1
#[tokio::test]
async fn a_kernel_that_dies_is_replaced() {
    let Some(server) = Server::start().await else { return };
    for death in ["import os; os.kill(os.getpid(), 9)", "import os; os._exit(3)"] {
        server.python("x = 1").await;
        let events = server.python(death).await;
        assert_eq!(errors(&events), [("ContextRestarting", "Context was restarted")], "{death}");
        let events = server.python("1+1").await;
        assert_eq!((text(&events), &events[0]["execution_count"]), ("2", &json!(1)), "{death}");
    }
    server.python("x = 1").await;
    let events = server.python("exit()").await;
    assert!(errors(&events).is_empty(), "quietly: {events:?}");
    assert_eq!(errors(&server.python("x").await).len(), 1);
    // While it is idle.
    let pid = text(&server.python("import os; os.getpid()").await).to_owned();
    let status = std::process::Command::new("kill").args(["-9", &pid]).status();
    assert!(status.expect("it runs").success());
    wait_until("the kernel is gone", || !fs::exists(format!("/proc/{pid}")).unwrap_or(true)).await;
    assert_eq!(text(&server.python("1+1").await), "2");
}

#[tokio::test]
async fn restart_and_deletion_end_a_running_execution() {
    let Some(server) = Server::start().await else { return };
    let lost = ("WebSocketError", "The connections was lost, rerun the code to get the results");
    let closed =
        ("UnexpectedEndOfExecution", "Connection to the execution was closed before the execution was finished");
    let id = server.create(json!({})).await;
    let endless = json!({ "code": "import time\nwhile True: time.sleep(1)", "context_id": id });
    let mut running = server.open(&endless).await;
    running.until("number_of_executions").await;
    let mut waiting = server.open(&json!({ "code": "3", "context_id": id })).await;
    assert_eq!(server.post(&format!("/contexts/{id}/restart"), &json!(null)).await.status, StatusCode::OK);
    assert_eq!(errors(&running.rest().await), [lost, closed]);
    assert_eq!(text(&waiting.rest().await), "3", "a waiting execution runs in the new kernel");
    let mut running = server.open(&endless).await;
    running.until("number_of_executions").await;
    let mut waiting = server.open(&json!({ "code": "3", "context_id": id })).await;
    assert_eq!(server.delete(&format!("/contexts/{id}")).await.status, StatusCode::OK);
    assert_eq!(errors(&running.rest().await), [closed]);
    assert_eq!(errors(&waiting.rest().await), [closed]);
}

#[tokio::test]
async fn contexts_run_at_the_same_time() {
    let Some(server) = Server::start().await else { return };
    let id = server.create(json!({})).await;
    let meet = |own: &str, other: &str| {
        let at = |name: &str| server.folder.path().join(name).display().to_string();
        format!(
            "import os, time\nopen({:?}, 'w')\nwhile not os.path.exists({:?}): time.sleep(0.01)\nprint('met')",
            at(own),
            at(other)
        )
    };
    let (first, second) = tokio::join!(
        server.execute(json!({ "code": meet("a", "b") })),
        server.execute(json!({ "code": meet("b", "a"), "context_id": id })),
    );
    assert_eq!((output(&first, "stdout"), output(&second, "stdout")), ("met\n".into(), "met\n".into()));
}

#[tokio::test]
async fn kernels_do_not_survive_a_killed_server() {
    let Some(mut server) = Server::start().await else { return };
    let pid = text(&server.python("import os; os.getpid()").await).to_owned();
    assert!(fs::exists(format!("/proc/{pid}")).expect("readable"));
    server.replace().await;
    wait_until("the kernel of the first server is gone", || !fs::exists(format!("/proc/{pid}")).unwrap_or(true)).await;
    assert_eq!(text(&server.python("1+1").await), "2");
    let folders = fs::read_dir(server.folder.path().join("run")).expect("a folder").count();
    assert_eq!(folders, 1, "only the new kernel's");
}
