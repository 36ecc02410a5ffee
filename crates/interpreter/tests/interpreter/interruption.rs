//! Clients that leave, and code that resists.

use serde_json::json;

use crate::server::{Server, errors, output, text, wait_until};

// interpreter: F5
#[tokio::test]
async fn a_client_that_leaves_interrupts_its_code() {
    let Some(server) = Server::start().await else { return };
    server.python("kept = 1").await;
    for code in [
        "import time; time.sleep(300)",
        "while True: pass",
        "!sleep 300",
        "__import__('subprocess').run(['sleep', '300'])",
    ] {
        let mut running = server.open(&json!({ "code": code, "env_vars": { "LEAKED": "1" } })).await;
        running.until("number_of_executions").await;
        drop(running);
        let events = server.python("import os; kept, os.environ.get('LEAKED')").await;
        assert_eq!(text(&events), "(1, None)", "{code}");
    }
}

// interpreter: F5
#[tokio::test]
async fn a_client_that_leaves_at_once_blocks_nobody() {
    let Some(server) = Server::start().await else { return };
    for _ in 0..10 {
        // Dropped before the first event.
        drop(server.open(&json!({ "code": "import time; time.sleep(300)" })).await);
        assert_eq!(text(&server.python("1+1").await), "2");
    }
    // A client that leaves while it waits: its code never runs.
    let folder = server.folder.path().join("ran").display().to_string();
    let mut running = server.open(&json!({ "code": "import time; time.sleep(0.5)" })).await;
    running.until("number_of_executions").await;
    drop(server.open(&json!({ "code": format!("open({folder:?}, 'w')") })).await);
    running.rest().await;
    assert_eq!(text(&server.python("1+1").await), "2");
    assert!(!std::fs::exists(folder).expect("readable"));
}

// interpreter: F5
#[tokio::test]
async fn code_that_resists_interrupts_loses_its_kernel() {
    let Some(server) = Server::start().await else { return };
    server.python("lost = 1").await;
    let code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(300)";
    let mut running = server.open(&json!({ "code": code })).await;
    running.until("stdout").await;
    drop(running);
    let events = server.python("lost").await;
    assert_eq!(errors(&events), [("NameError", "name 'lost' is not defined")]);
}

#[tokio::test]
async fn bash_is_interrupted_with_its_command() {
    let Some(server) = Server::start().await else { return };
    let bash = |code: &str| json!({ "code": code, "language": "bash" });
    server.execute(bash("kept=1")).await;
    let mut running = server.open(&bash("echo $BASHPID; sleep 300")).await;
    running.until("stdout").await;
    drop(running);
    assert_eq!(output(&server.execute(bash("echo $kept")).await, "stdout"), "1\n");
}

#[tokio::test]
async fn processes_of_a_replaced_kernel_end_with_it() {
    let Some(server) = Server::start().await else { return };
    let id = server.create(json!({})).await;
    let code = "import subprocess; subprocess.Popen(['sleep', '300']).pid";
    let pid = text(&server.execute(json!({ "code": code, "context_id": id })).await).to_owned();
    server.post(&format!("/contexts/{id}/restart"), &json!(null)).await;
    let is_gone = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    wait_until("the child is gone", is_gone).await;
}
