//! The guest's log as the host reads it, and the effects of a restore.

use bytes::BytesMut;
use hearth_envd_api::process::Signal;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::daemon::{Daemon, test_user, within};
use crate::http::{open, whole};
use crate::process::shell;

/// The stream of log lines.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    async fn after(daemon: &Daemon, number: u64) -> Self {
        let path = format!("/logs?after={number}");
        let response = within("the log", open(daemon, Method::GET, &path, &[], whole(""))).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"application/x-ndjson".parse().expect("valid"))
        );
        Self { body: response.into_body(), buffer: BytesMut::new() }
    }

    /// Returns the next line, or `None` when the connection is closed.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Some(serde_json::from_slice(&line).expect("JSON"));
            }
            let frame = within("a line", self.body.frame()).await?.ok()?;
            self.buffer.extend_from_slice(frame.data_ref()?);
        }
    }

    /// Returns the next line with this event type.
    async fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let line = self.next().await.expect("another line");
            if line["event_type"] == kind {
                return line;
            }
        }
    }
}

#[tokio::test]
async fn processes_are_logged_and_their_output_if_enabled() {
    let daemon = Daemon::start().await;
    let mut lines = Lines::after(&daemon, 0).await;
    daemon.run(&shell("echo secret; exit 3")).await;
    let start = lines.next_of("process_start").await;
    assert_eq!((&start["level"], &start["logger"]), (&json!("info"), &json!("process")));
    assert_eq!(start["message"], "/bin/sh -c echo secret; exit 3");
    let end = lines.next().await.expect("another line");
    assert_eq!(
        (&end["event_type"], &end["pid"], &end["exit_code"], &end["output_bytes"], &end["message"]),
        (&json!("process_end"), &start["pid"], &json!(3), &json!(7), &json!("exit status 3")),
        "no output line in between"
    );
    assert!(end["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
    let before = end["seq"].as_u64().expect("a number");

    assert_eq!(daemon.init(json!({ "logOutput": true })).await.status, 204);
    daemon.run(&shell("echo one; printf two >&2")).await;
    let mut again = Lines::after(&daemon, before).await;
    let start = again.next_of("process_start").await;
    assert_eq!(start["seq"], before + 1, "no line is lost or repeated");
    let mut heard = [again.next_of("process_output").await, again.next_of("process_output").await]
        .map(|line| format!("{} {}", line["stream"], line["message"]));
    heard.sort();
    assert_eq!(heard, [r#""stderr" "two""#, r#""stdout" "one""#]);
}

#[tokio::test]
async fn a_restore_drops_connections_and_log_lines() {
    let daemon = Daemon::start().await;
    let seed = |seed: &str| json!({ "randomSeed": seed, "defaultUser": test_user() });
    assert_eq!(daemon.init(seed("aa")).await.status, 204);
    daemon.run(&shell("echo before")).await;
    let mut lines = Lines::after(&daemon, 0).await;
    lines.next_of("process_end").await;
    let mut running = daemon.launch(&shell("exec sleep 1000")).await;
    let pid = running.pid().await;
    // The same seed is a retry and changes nothing.
    assert_eq!(daemon.init(seed("aa")).await.status, 204);
    lines.next_of("process_start").await;

    assert_eq!(daemon.init(seed("bb")).await.status, 204);
    assert_eq!(lines.next().await, None, "the connection was dropped");
    assert!(running.is_broken().await);
    // The process continues, and the log is empty.
    let mut lines = Lines::after(&daemon, 0).await;
    daemon.run(&shell("echo after")).await;
    let first = lines.next().await.expect("another line");
    assert_eq!(first["message"], "/bin/sh -c echo after");
    let mut follower = daemon.follow(crate::connect::by_pid(pid)).await;
    assert_eq!(follower.pid().await, pid);
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("kill");
}
