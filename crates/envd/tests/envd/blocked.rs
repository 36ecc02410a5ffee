//! Calls that block forever, and clients that give up on them, must not affect other clients.

use std::fs;
use std::process::Command;
use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::connect::{Codec, Messages};
use crate::daemon::{Daemon, is_root, me, until, within};
use crate::filesystem::Place;
use crate::http::{escape, get, open, send, whole};
use crate::process::{START, command, shell};

/// Number of abandoned calls; more than the daemon has threads.
const ABANDONED: usize = 300;
/// Concurrent requests.
const AT_ONCE: usize = 50;
/// Time after which a client disconnects. Long enough for the daemon to have started the call.
const GIVE_UP: Duration = Duration::from_millis(500);

/// Sends requests, and disconnects from each before there is a reply.
async fn abandon(daemon: &Daemon, count: usize, method: &Method, path: &str, body: &str) {
    use futures::StreamExt as _;

    let json = [("content-type", "application/json")];
    let give_up = |_| async {
        let reply = open(daemon, method.clone(), path, &json, whole(body.to_owned()));
        assert!(tokio::time::timeout(GIVE_UP, reply).await.is_err(), "{path} was answered");
    };
    futures::stream::iter(0..count).map(give_up).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

/// Checks that the daemon still serves every kind of request.
async fn everything_works(daemon: &Daemon, place: &Place) {
    assert_eq!(daemon.get("/health").await.status, 204);
    assert_eq!(daemon.get("/metrics").await.status, 200);
    let outcome = within("a command", daemon.run(&shell("echo works"))).await;
    assert_eq!(outcome.stdout(), "works\n");
    place.write("file", "text");
    let path = format!("/files?path={}", escape(&place.path("file")));
    assert_eq!(within("a file", daemon.get(&path)).await.text(), "text");
    let entry = within("an entry", daemon.stat(Codec::Json, &place.path("file"))).await;
    assert_eq!(entry.expect("exists").size, 4);
}

#[tokio::test]
async fn abandoned_reads_of_a_pipe_leave_nothing() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path("pipe")).status().expect("runs").success());
    let (threads, files) = (daemon.threads(), daemon.open_files().len());
    let path = format!("/files?path={}", escape(&place.path("pipe")));
    abandon(&daemon, ABANDONED, &Method::GET, &path, "").await;
    everything_works(&daemon, &place).await;
    until("the pipes to be closed", || async { (daemon.open_files().len() <= files).then_some(()) }).await;
    until("the threads to exit", || async { (daemon.threads() <= threads).then_some(()) }).await;
    // The same for a compressed download.
    let reply = tokio::time::timeout(GIVE_UP, get(&daemon, &path, &[("accept-encoding", "gzip")]));
    assert!(reply.await.is_err());
    everything_works(&daemon, &place).await;
}

#[tokio::test]
async fn pipes_and_sockets_take_an_upload_or_refuse_it_at_once() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path("pipe")).status().expect("runs").success());
    let _socket = std::os::unix::net::UnixListener::bind(place.path("socket")).expect("binds");
    let raw = [("content-type", "application/octet-stream")];
    for name in ["pipe", "socket"] {
        let path = format!("/files?path={}", escape(&place.path(name)));
        let reply = within("a rejection", send(&daemon, Method::POST, &path, &raw, whole("x"))).await;
        assert_eq!(reply.status, 400, "{reply:?}");
        let text = format!("path '{}' is a pipe without a reader, or a socket", place.path(name));
        assert_eq!(reply.json(), json!({ "code": 400, "message": text }));
    }
    let socket = within("a rejection", daemon.get(&format!("/files?path={}", escape(&place.path("socket"))))).await;
    assert_eq!(socket.status, 400, "{socket:?}");
    // With a reader, the whole content arrives; it is larger than a pipe's buffer.
    let content = vec![b'x'; 1 << 20];
    let mut reading = daemon.launch(&command("wc", &["-c", &place.path("pipe")])).await;
    reading.pid().await;
    let path = format!("/files?path={}", escape(&place.path("pipe")));
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
async fn with_a_silent_mount(place: &Place) -> Option<Daemon> {
    if !is_root() || !fs::exists("/dev/fuse").unwrap_or_default() {
        eprintln!("skipped: mounting FUSE requires root and /dev/fuse");
        return None;
    }
    fs::create_dir(place.path("silent")).expect("creates");
    let mut command = Command::new("unshare");
    let script = "exec 9<>/dev/fuse && mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 silent \"$1\" \
        && shift && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", &place.path("silent")]);
    command.arg(env!("CARGO_BIN_EXE_hearth-envd"));
    let daemon = Daemon::bare(command).await;
    assert_eq!(daemon.init(json!({ "defaultUser": me() })).await.status, 204);
    Some(daemon)
}

#[tokio::test]
async fn a_silent_mount_keeps_its_own_calls_waiting_and_no_others() {
    let place = Place::new();
    let Some(daemon) = with_a_silent_mount(&place).await else { return };
    std::os::unix::fs::symlink(place.path("silent"), place.path("link")).expect("links");
    let file = format!("/files?path={}", escape(&place.path("silent/file")));
    abandon(&daemon, ABANDONED / 3, &Method::GET, &file, "").await;
    for (method, name) in [("Stat", "silent/x"), ("ListDir", "link/x"), ("Remove", "silent/x"), ("MakeDir", "link/x/y")]
    {
        let body = json!({ "path": place.path(name), "depth": 1 }).to_string();
        let path = format!("/filesystem.Filesystem/{method}");
        abandon(&daemon, ABANDONED / 6, &Method::POST, &path, &body).await;
    }
    everything_works(&daemon, &place).await;
    // Commands whose program or working directory is on the silent mount.
    for request in [command(&place.path("link/tool"), &[]), {
        let mut request = command("true", &[]);
        request.process.get_or_insert_default().cwd = Some(place.path("silent/folder"));
        request
    }] {
        for _ in 0..ABANDONED / AT_ONCE {
            let starts = (0..AT_ONCE).map(|_| {
                let start = Messages::open(&daemon, Codec::Json, START, &[], &request);
                tokio::time::timeout(GIVE_UP, start)
            });
            assert!(futures::future::join_all(starts).await.iter().all(Result::is_err));
        }
    }
    everything_works(&daemon, &place).await;
    assert!(daemon.threads() < 64 + 32 + 32, "{} threads", daemon.threads());
    // A waiting client finally receives an error with the reason.
    let refused = within("the rejection", daemon.stat(Codec::Json, &place.path("silent/x"))).await.expect_err("refused");
    assert_eq!(refused.code, "resource_exhausted");
    let silent = place.path("silent");
    let text = format!("too many file calls are blocked on {silent}: none of 64 has returned for 10 seconds");
    assert_eq!(refused.message, text);
    assert_eq!(daemon.get(&file).await.status, 429);
}
