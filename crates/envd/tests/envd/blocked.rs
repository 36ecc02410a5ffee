//! Calls that block forever, and clients that give up on them, must not affect other clients.

use std::fs;
use std::process::Command;
use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::connect::{Codec, Messages};
use crate::daemon::{Daemon, is_root, test_user, until, within};
use crate::filesystem::TestDirectory;
use crate::http::{escape, get, open, send, whole};
use crate::process::{START, command, shell};

/// Number of abandoned calls; more than the daemon has threads.
const ABANDONED: usize = 300;
/// Concurrent requests.
const CONCURRENT: usize = 50;
/// Time after which a client disconnects. Long enough for the daemon to have started the call.
const CLIENT_TIMEOUT: Duration = Duration::from_millis(500);

/// Sends requests, and disconnects from each before there is a reply.
async fn abandon(daemon: &Daemon, count: usize, method: &Method, path: &str, body: &str) {
    use futures::StreamExt as _;

    let json = [("content-type", "application/json")];
    let attempt = |_| async {
        let reply = open(daemon, method.clone(), path, &json, whole(body.to_owned()));
        assert!(tokio::time::timeout(CLIENT_TIMEOUT, reply).await.is_err(), "{path} was answered");
    };
    futures::stream::iter(0..count).map(attempt).buffer_unordered(CONCURRENT).collect::<Vec<()>>().await;
}

/// Checks that the daemon still serves every kind of request.
async fn check_daemon_serves(daemon: &Daemon, directory: &TestDirectory) {
    assert_eq!(daemon.get("/health").await.status, 204);
    assert_eq!(daemon.get("/metrics").await.status, 200);
    let outcome = within("a command", daemon.run(&shell("echo works"))).await;
    assert_eq!(outcome.stdout(), "works\n");
    directory.write("file", "text");
    let path = format!("/files?path={}", escape(&directory.path("file")));
    assert_eq!(within("a file", daemon.get(&path)).await.text(), "text");
    let entry = within("an entry", daemon.stat(Codec::Json, &directory.path("file"))).await;
    assert_eq!(entry.expect("exists").size, 4);
}

#[tokio::test]
async fn abandoned_reads_of_a_pipe_release_everything() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    assert!(Command::new("mkfifo").arg(directory.path("pipe")).status().expect("run").success());
    let (threads, files) = (daemon.threads(), daemon.open_files().len());
    let path = format!("/files?path={}", escape(&directory.path("pipe")));
    abandon(&daemon, ABANDONED, &Method::GET, &path, "").await;
    check_daemon_serves(&daemon, &directory).await;
    until("the pipes to be closed", || async { (daemon.open_files().len() <= files).then_some(()) }).await;
    until("the threads to exit", || async { (daemon.threads() <= threads).then_some(()) }).await;
    // The same for a compressed download.
    let reply = tokio::time::timeout(CLIENT_TIMEOUT, get(&daemon, &path, &[("accept-encoding", "gzip")]));
    assert!(reply.await.is_err());
    check_daemon_serves(&daemon, &directory).await;
}

#[tokio::test]
async fn pipes_and_sockets_accept_or_reject_an_upload_immediately() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    assert!(Command::new("mkfifo").arg(directory.path("pipe")).status().expect("run").success());
    let _socket = std::os::unix::net::UnixListener::bind(directory.path("socket")).expect("bind");
    let raw = [("content-type", "application/octet-stream")];
    for name in ["pipe", "socket"] {
        let path = format!("/files?path={}", escape(&directory.path(name)));
        let reply = within("a rejection", send(&daemon, Method::POST, &path, &raw, whole("x"))).await;
        assert_eq!(reply.status, 400, "{reply:?}");
        let text = format!("path '{}' is a pipe without a reader, or a socket", directory.path(name));
        assert_eq!(reply.json(), json!({ "code": 400, "message": text }));
    }
    let socket = within("a rejection", daemon.get(&format!("/files?path={}", escape(&directory.path("socket"))))).await;
    assert_eq!(socket.status, 400, "{socket:?}");
    // With a reader, the whole content arrives; it is larger than a pipe's buffer.
    let content = vec![b'x'; 1 << 20];
    let mut reading = daemon.launch(&command("wc", &["-c", &directory.path("pipe")])).await;
    reading.pid().await;
    let path = format!("/files?path={}", escape(&directory.path("pipe")));
    let sent = until("the reader to open the pipe", || async {
        let reply = send(&daemon, Method::POST, &path, &raw, whole(content.clone())).await;
        (reply.status == 200).then_some(reply)
    });
    assert_eq!(within("the upload", sent).await.json()[0]["name"], "pipe");
    assert!(reading.rest().await.stdout().starts_with("1048576 "));
}

/// Starts a daemon in a mount namespace with a FUSE file system whose server never responds.
///
/// The daemon inherits the server's descriptor and does not use it.
async fn spawn_with_silent_mount(directory: &TestDirectory) -> Option<Daemon> {
    if !is_root() || !fs::exists("/dev/fuse").unwrap_or_default() {
        eprintln!("skipped: mounting FUSE requires root and /dev/fuse");
        return None;
    }
    fs::create_dir(directory.path("silent")).expect("create");
    let mut command = Command::new("unshare");
    let script = "exec 9<>/dev/fuse && mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 silent \"$1\" \
        && shift && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", &directory.path("silent")]);
    command.arg(env!("CARGO_BIN_EXE_hearth-envd"));
    let daemon = Daemon::spawn(command).await;
    assert_eq!(daemon.init(json!({ "defaultUser": test_user() })).await.status, 204);
    Some(daemon)
}

#[tokio::test]
async fn a_silent_mount_blocks_only_its_own_calls() {
    let directory = TestDirectory::new();
    let Some(daemon) = spawn_with_silent_mount(&directory).await else { return };
    std::os::unix::fs::symlink(directory.path("silent"), directory.path("link")).expect("link");
    let file = format!("/files?path={}", escape(&directory.path("silent/file")));
    abandon(&daemon, ABANDONED / 3, &Method::GET, &file, "").await;
    for (method, name) in [("Stat", "silent/x"), ("ListDir", "link/x"), ("Remove", "silent/x"), ("MakeDir", "link/x/y")]
    {
        let body = json!({ "path": directory.path(name), "depth": 1 }).to_string();
        let path = format!("/filesystem.Filesystem/{method}");
        abandon(&daemon, ABANDONED / 6, &Method::POST, &path, &body).await;
    }
    check_daemon_serves(&daemon, &directory).await;
    // Commands whose program or working directory is on the silent mount.
    for request in [command(&directory.path("link/tool"), &[]), {
        let mut request = command("true", &[]);
        request.process.get_or_insert_default().cwd = Some(directory.path("silent/folder"));
        request
    }] {
        for _ in 0..ABANDONED / CONCURRENT {
            let starts = (0..CONCURRENT).map(|_| {
                let start = Messages::open(&daemon, Codec::Json, START, &[], &request);
                tokio::time::timeout(CLIENT_TIMEOUT, start)
            });
            assert!(futures::future::join_all(starts).await.iter().all(Result::is_err));
        }
    }
    check_daemon_serves(&daemon, &directory).await;
    assert!(daemon.threads() < 64 + 32 + 32, "{} threads", daemon.threads());
    // A waiting client finally receives an error with the reason.
    let error =
        within("the rejection", daemon.stat(Codec::Json, &directory.path("silent/x"))).await.expect_err("error");
    assert_eq!(error.code, "resource_exhausted");
    let silent = directory.path("silent");
    let text = format!("too many file calls are blocked on {silent}: none of 64 has returned for 10 seconds");
    assert_eq!(error.message, text);
    assert_eq!(daemon.get(&file).await.status, 429);
}
