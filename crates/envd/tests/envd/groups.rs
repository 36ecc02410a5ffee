//! Control groups: kills of all descendants, and freezes. Skipped without root or a unified hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hearth_envd_api::process::{PTY, Signal, StartRequest};
use http::Method;
use serde_json::{Value, json};

use crate::connect::Events;
use crate::daemon::{Daemon, is_alive, is_root, kill, test_user, until, within};
use crate::http::{Reply, send, whole};
use crate::process::shell;

/// A control group of the test. Dropping it kills its processes and removes it.
struct Hierarchy {
    root: PathBuf,
}

impl Hierarchy {
    /// Creates the group. Returns `None` and prints a message if that is impossible.
    fn make(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("read the mounts");
        let mount =
            mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
        let root = mount.map(|fields| Path::new(fields[1]).join(format!("envd-test-{name}-{}", std::process::id())));
        match root {
            Some(root) if is_root() && fs::create_dir(&root).is_ok() => Some(Self { root }),
            _ => {
                eprintln!("skipped: control groups require root and a unified hierarchy");
                None
            }
        }
    }

    /// Starts a daemon with this group as its root, in a group of its own below, as in a guest.
    async fn daemon(&self) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-envd"));
        command.arg("-cgroup-root").arg(&self.root);
        let daemon = Daemon::spawn(command).await;
        let own = self.root.join("envd");
        fs::create_dir(&own).expect("create the group");
        fs::write(own.join("cgroup.procs"), daemon.pid().to_string()).expect("move the daemon");
        assert_eq!(daemon.init(json!({ "defaultUser": test_user() })).await.status, 204);
        daemon
    }

    fn leaves(&self, group: &str) -> Vec<PathBuf> {
        let entries =
            fs::read_dir(self.root.join(group)).expect("read the group").map(|entry| entry.expect("readable"));
        entries.filter(|entry| entry.file_type().expect("known").is_dir()).map(|entry| entry.path()).collect()
    }

    /// Waits for the number of leaves.
    ///
    /// A leaf is removed shortly after the end of its process is reported. If the kernel still counts the process in it
    /// (rmdir(2): EBUSY), it is removed when the next process ends; therefore each round runs one.
    async fn until_leaves(&self, daemon: &Daemon, group: &str, count: usize) {
        until("the ended processes' groups to be removed", async || {
            if self.leaves(group).len() == count {
                return Some(());
            }
            daemon.run(&shell("true")).await;
            None
        })
        .await;
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        let _ = fs::write(self.root.join("cgroup.kill"), "1");
        // Killed processes leave their groups after a delay.
        for _ in 0..1000 {
            remove_all(&self.root);
            if !self.root.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("{} was not removed", self.root.display());
    }
}

fn remove_all(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_all(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

async fn call(daemon: &Daemon, path: &str) -> Reply {
    within(path, send(daemon, Method::POST, path, &[], whole(""))).await
}

/// Reads two pids that a script prints.
async fn numbers(events: &mut Events) -> [u32; 2] {
    let line = within("the numbers", events.wait_for("\n")).await;
    let mut numbers = line.split_whitespace().map(|word| word.parse().expect("a process number"));
    [numbers.next().expect("the first"), numbers.next().expect("the second")]
}

fn tagged(script: &str, tag: &str) -> StartRequest {
    StartRequest { tag: Some(tag.to_owned()), ..shell(script) }
}

// envd: C7, C15
#[tokio::test]
async fn a_kill_reaches_every_descendant() {
    let Some(hierarchy) = Hierarchy::make("kill") else { return };
    let daemon = hierarchy.daemon().await;
    // One descendant in the session of the shell, one in its own session.
    let script = "sleep 1000 & one=$!; setsid sleep 1000 & echo $one $!; wait";
    let pty = StartRequest { pty: PTY::default().into(), stdin: None, ..shell(script) };
    for (request, group) in [(shell(script), "user"), (pty, "ptys")] {
        let mut events = daemon.launch(&request).await;
        let pid = events.pid().await;
        let children = numbers(&mut events).await;
        assert_eq!(hierarchy.leaves(group).len(), 1);
        daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("kill");
        assert!(!is_alive(pid));
        events.rest().await;
        until("all to be dead", async || (!children.into_iter().any(is_alive)).then_some(())).await;
        hierarchy.until_leaves(&daemon, group, 0).await;
    }
}

#[tokio::test]
async fn sigterm_reaches_one_process_and_its_group_remains() {
    let Some(hierarchy) = Hierarchy::make("term") else { return };
    let daemon = hierarchy.daemon().await;
    let mut events = daemon.launch(&shell("sleep 1000 >&- 2>&- & echo $! $!; exec sleep 1000")).await;
    let pid = events.pid().await;
    let [child, _] = numbers(&mut events).await;
    daemon.signal(pid, Signal::SIGNAL_SIGTERM).await.expect("send");
    events.rest().await;
    assert!(is_alive(child));
    hierarchy.until_leaves(&daemon, "user", 1).await;
    let cgroup = fs::read_to_string(format!("/proc/{child}/cgroup")).expect("the child runs");
    let leaf = hierarchy.leaves("user").remove(0);
    assert!(
        cgroup.trim_end().ends_with(leaf.file_name().and_then(|name| name.to_str()).expect("a number")),
        "{cgroup}"
    );
    kill(child);
    hierarchy.until_leaves(&daemon, "user", 0).await;
}

#[tokio::test]
async fn a_freeze_stops_programs_except_the_host_s() {
    let Some(hierarchy) = Hierarchy::make("freeze") else { return };
    let daemon = hierarchy.daemon().await;
    let mut ticking = daemon.launch(&shell("while :; do echo tick; sleep 0.01; done")).await;
    ticking.pid().await;
    within("a tick", ticking.wait_for("tick\n")).await;

    let reply = call(&daemon, "/freeze").await;
    assert_eq!((reply.status, reply.text()), (204, ""));
    let reply = call(&daemon, "/freeze?maxWaitMs=30000").await;
    assert_eq!((reply.status, reply.header("cache-control")), (200, Some("no-store")));
    let report = reply.json();
    for (name, value) in [
        ("mode", json!("legacy")),
        ("visited", json!(2)),
        ("requested", json!(2)),
        ("frozen", json!(2)),
        ("notFrozen", json!(0)),
        ("failed", json!(0)),
        ("preFrozen", json!(0)),
        ("allowlisted", json!(0)),
        ("truncated", json!(false)),
        ("unobservable", json!(false)),
    ] {
        assert_eq!(report[name], value, "{name}");
    }
    assert!(report["sweepMs"].is_u64() && report["waitMs"].is_u64());
    // Pending output arrives, then none.
    ticking.until_silent_for(Duration::from_millis(200)).await;
    assert_eq!(daemon.get("/health").await.status, 204);
    assert_eq!(within("a command of the host", daemon.run(&tagged("echo on", "_system"))).await.stdout(), "on\n");

    assert_eq!(call(&daemon, "/unfreeze").await.status, 204);
    within("a tick", ticking.wait_for("tick\n")).await;
    // `/init` also ends a freeze.
    assert_eq!(call(&daemon, "/freeze?maxWaitMs=30000&mode=odd").await.json()["frozen"], 2);
    ticking.until_silent_for(Duration::from_millis(200)).await;
    let reply = daemon.init(json!({})).await;
    assert_eq!((reply.status, reply.header("x-envd-freeze-audit")), (204, None));
    within("a tick", ticking.wait_for("tick\n")).await;
}

#[tokio::test]
async fn a_hierarchy_freeze_skips_groups_that_must_run() {
    let Some(hierarchy) = Hierarchy::make("tree") else { return };
    let daemon = hierarchy.daemon().await;
    for group in ["init.scope", "box", "box/paused", "other"] {
        fs::create_dir(hierarchy.root.join(group)).expect("create the group");
    }
    let state = |group: &str| {
        fs::read_to_string(hierarchy.root.join(group).join("cgroup.freeze")).expect("read the state").trim().to_owned()
    };
    fs::write(hierarchy.root.join("box/paused/cgroup.freeze"), "1").expect("freeze the group");
    let report = call(&daemon, "/freeze?maxWaitMs=30000&mode=hierarchy").await.json();
    assert_eq!(report["mode"], "hierarchy", "{report}");
    assert_eq!(
        (&report["requested"], &report["frozen"], &report["allowlisted"]),
        (&json!(4), &json!(4), &json!(1)),
        "{report}"
    );
    assert_eq!(["user", "ptys", "box", "other", "init.scope", "envd"].map(state), ["1", "1", "1", "1", "0", "0"]);
    // A program of the guest thaws one group, and creates another.
    fs::write(hierarchy.root.join("other/cgroup.freeze"), "0").expect("thaw the group");
    fs::create_dir(hierarchy.root.join("late")).expect("create the group");
    let reply = daemon.init(json!({})).await;
    let audit: Value = serde_json::from_str(reply.header("x-envd-freeze-audit").expect("an audit")).expect("JSON");
    assert_eq!((&audit["escaped"], &audit["violations"], &audit["truncated"]), (&json!(2), &json!(1), &json!(false)));
    assert_eq!(["user", "ptys", "box", "box/paused"].map(state), ["0", "0", "0", "1"]);
    let bounded = call(&daemon, "/freeze?maxWaitMs=1&mode=hierarchy&maxCgroups=3").await.json();
    assert_eq!(bounded["truncated"], true);
    assert_eq!(call(&daemon, "/unfreeze").await.status, 204);
}

#[tokio::test]
async fn without_groups_a_freeze_is_unobservable() {
    let daemon = Daemon::start().await;
    let report = call(&daemon, "/freeze?maxWaitMs=10").await.json();
    assert_eq!((&report["unobservable"], &report["requested"]), (&json!(true), &json!(0)));
    assert_eq!(call(&daemon, "/unfreeze").await.status, 204);
    for odd in ["/freeze?maxWaitMs=soon", "/freeze?maxCgroups=1.5"] {
        let reply = call(&daemon, odd).await;
        assert_eq!(reply.status, 400);
        assert!(reply.text().starts_with("Invalid format for parameter max"), "{reply:?}");
    }
    let report = call(&daemon, "/collapse").await.json();
    for name in ["regions", "chunks", "collapsed", "alreadyHuge", "skipped", "elapsedMs"] {
        assert!(report[name].is_u64(), "{name} in {report}");
    }
}
