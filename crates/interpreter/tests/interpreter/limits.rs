//! Large and many outputs, slow clients, and full queues.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use crate::server::{Server, output, text, wait_until};

/// Growth of the server's memory that no amount of output may exceed, in KiB.
const GROWTH_MAX_KIB: u64 = 20 << 10;

// interpreter: F3
#[tokio::test]
async fn a_hundred_megabytes_of_output_arrive_without_growth() {
    let Some(server) = Server::start().await else { return };
    let before = server.memory_kib();
    for code in ["for i in range(100): print('x' * 1_000_000)", "print('y' * 100_000_000)"] {
        let mut execution = server.open(&json!({ "code": code })).await;
        let (mut bytes, mut peak) = (0, 0);
        while let Some(event) = execution.next().await {
            bytes += event["text"].as_str().map_or(0, str::len);
            peak = peak.max(server.memory_kib());
        }
        assert!(bytes > 100_000_000 && bytes <= 100_000_100, "{bytes}");
        assert!(peak < before + GROWTH_MAX_KIB, "{before} KiB before, {peak} KiB at most: {code}");
    }
    assert_eq!(text(&server.python("1+1").await), "2");
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_kernel_and_loses_nothing() {
    let Some(server) = Server::start().await else { return };
    let before = server.memory_kib();
    let done = server.folder.path().join("done").display().to_string();
    let code = format!("for i in range(60): print('z' * 1_000_000)\nopen({done:?}, 'w')");
    let mut slow = server.open(&json!({ "code": code })).await;
    slow.until("stdout").await;
    // Longer than the server waits for a kernel's lost messages. The code may finish, because the kernel holds its own
    // output; the server does not.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let blocked = server.memory_kib();
    assert!(blocked < before + GROWTH_MAX_KIB, "{before} KiB before, {blocked} KiB with a blocked client");
    let events = slow.rest().await;
    assert!(output(&events, "stdout").len() > 59_000_000);
    assert!(std::fs::exists(done).expect("readable"));
    // A client that leaves instead.
    let mut slow = server.open(&json!({ "code": code })).await;
    slow.until("stdout").await;
    drop(slow);
    assert_eq!(text(&server.python("1+1").await), "2");
}

// interpreter: F4
#[tokio::test]
async fn ten_thousand_small_outputs_arrive_in_order() {
    let Some(server) = Server::start().await else { return };
    let events = server.python("for i in range(10_000): print(i, flush=True)").await;
    let expected: String = (0..10_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(output(&events, "stdout"), expected);
    let events = server.python("for i in range(2_000): display(i)").await;
    let texts: Vec<_> = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(texts, (0..2_000).map(|number: u32| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_queue_is_refused() {
    let Some(server) = Server::start().await else { return };
    let mut running = server.open(&json!({ "code": "import time; time.sleep(300)" })).await;
    running.until("number_of_executions").await;
    let mut waiting = Vec::new();
    for _ in 0..128 {
        waiting.push(server.open(&json!({ "code": "1" })).await);
    }
    let reply = server.post("/execute", &json!({ "code": "1" })).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS, "{}", reply.text);
    drop(running);
    for execution in &mut waiting {
        assert_eq!(text(&execution.rest().await), "1");
    }
}

#[tokio::test]
async fn waiting_code_is_limited_in_bytes() {
    let Some(server) = Server::start().await else { return };
    let fake = |script: &str| json!({ "code": script, "language": "fake" });
    let mut running = server.open(&fake("busy(); accept(); import time; time.sleep(300)")).await;
    running.until("number_of_executions").await;
    let large = fake(&format!("busy(); accept(); finish()\n#{}", "x".repeat(30 << 20)));
    let waiting = [server.open(&large).await, server.open(&large).await];
    let reply = server.post("/execute", &large).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS, "{}", reply.text);
    drop((running, waiting));
    server.fake("busy(); accept(); finish()").await;
    drop(server.open(&large).await);
}

// interpreter: F6
#[tokio::test]
async fn the_number_of_contexts_is_limited() {
    let Some(server) = Server::start().await else { return };
    // The fake kernel is small; one place belongs to Python.
    for _ in 0..63 {
        server.create(json!({ "language": "fake" })).await;
    }
    let reply = server.post("/contexts", &json!({ "language": "fake" })).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(reply.text.starts_with("Failed to create context: 64 contexts exist"), "{}", reply.text);
    let all = server.get("/contexts").await.json();
    let last = all[63]["id"].as_str().expect("an id").to_owned();
    server.delete(&format!("/contexts/{last}")).await;
    server.create(json!({ "language": "fake" })).await;
    assert_eq!(text(&server.python("1+1").await), "2");
}

#[tokio::test]
async fn an_idle_server_is_small_and_does_nothing() {
    let Some(server) = Server::start().await else { return };
    server.python("1+1").await;
    let stat = || std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let switches = || {
        let stat = stat();
        let count = stat.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).map(str::trim);
        count.and_then(|count| count.parse::<u64>().ok()).expect("a number")
    };
    // The connection for variables is closed a while after its last use.
    let mut last = switches();
    let mut quiet = 0;
    wait_until("the server is quiet for two seconds", || {
        std::thread::sleep(Duration::from_millis(90));
        let now = switches();
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        quiet >= 20
    })
    .await;
    assert!(stat().contains("Threads:\t1\n"));
}
