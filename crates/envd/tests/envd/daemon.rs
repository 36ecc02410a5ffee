//! The daemon under test.

use std::fs;
use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::http::{Reply, get, post_json};

/// Timeout of every operation without a limit of its own. No test asserts that an operation is faster.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A running daemon, killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) port: u16,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Starts a daemon whose default user is the one that runs the tests.
    pub(crate) async fn start() -> Self {
        let daemon = Self::spawn(Command::new(env!("CARGO_BIN_EXE_hearth-envd"))).await;
        let reply = daemon.init(json!({ "defaultUser": test_user() })).await;
        assert_eq!(reply.status, 204, "{reply:?}");
        daemon
    }

    /// Starts `command` with the options added.
    pub(crate) async fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).arg("-isnotfc");
        // Tests must not change the machine's control groups.
        if !command.get_args().any(|argument| argument == "-cgroup-root") {
            command.arg("-no-cgroups");
        }
        command.arg("-port");
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            // Another program may take the port first; then the daemon exits, and the next port is tried.
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let port = free.local_addr().expect("bound").port();
            drop(free);
            let mut attempt = Command::new(command.get_program());
            let child = attempt.args(command.get_args()).arg(port.to_string()).stdin(Stdio::null()).spawn();
            let mut daemon = Self { child: child.expect("the daemon starts"), port };
            while daemon.child.try_wait().expect("poll the daemon").is_none() {
                if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                    if daemon.child.try_wait().expect("poll the daemon").is_none() {
                        return daemon;
                    }
                    break;
                }
                assert!(Instant::now() < deadline, "the daemon does not listen");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    pub(crate) async fn init(&self, body: serde_json::Value) -> Reply {
        post_json(self, "/init", &body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        get(self, path, &[]).await
    }

    /// Returns the daemon's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the directory of its open files.
    pub(crate) fn descriptors(&self) -> PathBuf {
        format!("/proc/{}/fd", self.child.id()).into()
    }

    /// Returns the targets of its open files, sorted. Sockets and pipes appear by type, without their number.
    pub(crate) fn open_files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.descriptors()).expect("the daemon runs").flatten();
        // A file that was closed meanwhile has no target.
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        let kind = |target: PathBuf| target.to_string_lossy().split(":[").next().unwrap_or_default().to_owned();
        let mut files: Vec<String> = targets.map(kind).collect();
        files.sort();
        files
    }

    /// Returns the pids of its children, including zombies.
    pub(crate) fn children(&self) -> Vec<u32> {
        let numbers = fs::read_dir("/proc").expect("read /proc").flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // The parent's pid is the second field after the name in parentheses (proc(5)).
        let parent = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
        };
        numbers.filter(|pid| parent(*pid) == Some(self.child.id())).collect()
    }

    /// Returns its number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.status("Threads:").parse().expect("a number")
    }

    /// Returns its resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status("VmRSS:").trim_end_matches(" kB").parse().expect("a number")
    }

    /// Returns its anonymous resident memory in KiB, without the pages of its program, which are loaded on first use.
    pub(crate) fn anonymous_kib(&self) -> u64 {
        self.status("RssAnon:").trim_end_matches(" kB").parse().expect("a number")
    }

    /// Returns a field of its status; `field` is the name with the colon.
    fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the daemon runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel reports the field");
        line.trim().to_owned()
    }
}

/// Polls `look` until it returns a value.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Awaits `work` and panics on a timeout.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TEST_TIMEOUT, work).await {
        Ok(done) => done,
        Err(_) => panic!("timed out waiting for {what}"),
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a process number")).expect("not zero");
    rustix::process::test_kill_process(pid).is_ok()
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a process number")).expect("not zero");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns name, id and home directory of a user in the user database.
pub(crate) fn account(choose: impl Fn(&str, u32) -> bool) -> Option<(String, u32, String)> {
    let passwd = fs::read_to_string("/etc/passwd").expect("read the user database");
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid = fields.get(2)?.parse().ok()?;
        choose(fields[0], uid).then(|| (fields[0].to_owned(), uid, fields[5].to_owned()))
    })
}

/// Returns the name of the user that runs the tests.
pub(crate) fn test_user() -> String {
    let uid = rustix::process::geteuid().as_raw();
    account(|_, id| id == uid).expect("the user is in the database").0
}

/// Returns an unprivileged user if this process is root, so that the daemon can start processes as that user.
pub(crate) fn other_user() -> Option<(String, u32)> {
    let found = is_root().then(|| account(|name, _| name == "nobody")).flatten();
    if found.is_none() {
        eprintln!("skipped: only root can become another user");
    }
    found.map(|(name, uid, _)| (name, uid))
}
