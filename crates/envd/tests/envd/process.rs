//! Commands: output, exit codes, working directory and user, signals, deadlines.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use hearth_envd_api::process::{
    ListRequest, ListResponse, ProcessConfig, SendSignalRequest, SendSignalResponse, Signal, StartRequest,
};

use crate::connect::{CODECS, Codec, Events, Messages, Outcome, RpcError, StreamEvent, by_pid, by_tag, unary};
use crate::daemon::{Daemon, is_alive, kill, other_user, test_user, until, within};
use crate::http::{get, post};

pub(crate) const START: &str = "/process.Process/Start";

pub(crate) fn command(program: &str, args: &[&str]) -> StartRequest {
    StartRequest {
        process: ProcessConfig {
            cmd: program.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            cwd: Some("/".to_owned()),
            ..Default::default()
        }
        .into(),
        stdin: Some(false),
        ..Default::default()
    }
}

pub(crate) fn shell(script: &str) -> StartRequest {
    command("/bin/sh", &["-c", script])
}

impl Daemon {
    pub(crate) async fn launch(&self, request: &StartRequest) -> Events {
        self.launch_with(Codec::Json, &[], request).await
    }

    pub(crate) async fn launch_with(&self, codec: Codec, headers: &[(&str, &str)], request: &StartRequest) -> Events {
        Events::of(Messages::open(self, codec, START, headers, request).await)
    }

    pub(crate) async fn run(&self, request: &StartRequest) -> Outcome {
        let mut events = self.launch(request).await;
        events.pid().await;
        events.rest().await
    }

    /// Returns the error of a start that fails before its first event.
    async fn start_error(&self, headers: &[(&str, &str)], request: &StartRequest) -> RpcError {
        self.launch_with(Codec::Json, headers, request).await.next().await.expect_err("error")
    }

    pub(crate) async fn signal(&self, pid: u32, signal: Signal) -> Result<SendSignalResponse, RpcError> {
        let request = SendSignalRequest { process: by_pid(pid).into(), signal: signal.into(), ..Default::default() };
        unary(self, "/process.Process/SendSignal", &request).await
    }

    async fn list(&self) -> Vec<(u32, Option<String>, ProcessConfig)> {
        let response: ListResponse = unary(self, "/process.Process/List", &ListRequest::default()).await.expect("list");
        let processes = response.processes.into_iter();
        processes.map(|process| (process.pid, process.tag, process.config.into_option().expect("set"))).collect()
    }
}

// envd: C3, C4
#[tokio::test]
async fn output_and_exits() {
    let daemon = Daemon::start().await;
    for codec in CODECS {
        for (script, stdout, stderr, code, exited, status) in [
            ("echo hi", "hi\n", "", 0, true, "exit status 0"),
            ("printf 'a\\nb'; echo oops >&2; exit 2", "a\nb", "oops\n", 2, true, "exit status 2"),
            ("exit 255", "", "", 255, true, "exit status 255"),
            ("kill -9 $$", "", "", -1, false, "signal: killed"),
            ("kill -15 $$", "", "", -1, false, "signal: terminated"),
            ("kill -10 $$", "", "", -1, false, "signal: user defined signal 1"),
        ] {
            let mut events = daemon.launch_with(codec, &[], &shell(script)).await;
            assert!(events.pid().await > 1);
            let outcome = events.rest().await;
            assert_eq!((outcome.stdout().as_str(), outcome.stderr().as_str()), (stdout, stderr), "{script}");
            let end = outcome.end.expect("an end event");
            assert_eq!((end.exit_code, end.exited, end.status.as_str()), (code, exited, status), "{script}");
            assert_eq!(end.error.as_deref(), (code != 0).then_some(status), "{script}");
        }
    }
    // Output is passed on unchanged, including invalid UTF-8.
    let outcome = daemon.run(&shell("head -c 8191 /dev/zero | tr '\\0' a; printf '\\342'")).await;
    assert_eq!((outcome.stdout.len(), outcome.stdout.last()), (8192, Some(&0xE2)));
}

#[tokio::test]
async fn commands_that_cannot_run_fail_like_in_a_shell() {
    let daemon = Daemon::start().await;
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    for (name, text, mode) in [
        ("plain", "x", 0o644),
        ("script", "echo from $0 \"$1\"", 0o755),
        ("lost", "#!/nonexistent/interpreter\n", 0o755),
    ] {
        fs::write(path(name), text).expect("write");
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).expect("set");
    }
    for (program, code) in [
        ("/nonexistent", 127),
        ("nonexistent-program", 127),
        ("", 127),
        (path("plain").as_str(), 126),
        ("/", 126),
        (path("lost").as_str(), 127),
        (path("script").as_str(), 0),
    ] {
        let outcome = daemon.run(&command(program, &["a  b"])).await;
        if program.is_empty() {
            // Shells use different exit codes for an empty command.
            assert!(outcome.code() != 0);
        } else {
            assert_eq!(outcome.code(), code, "{program}: {outcome:?}");
        }
        let words = outcome.stderr().to_lowercase();
        match code {
            0 => assert_eq!(outcome.stdout(), format!("from {program} a  b\n")),
            127 => assert!(words.contains("not found") || words.contains("no such") || program.is_empty(), "{words}"),
            _ => assert!(words.contains("permission denied") || words.contains("directory"), "{words}"),
        }
    }
    // Arguments are passed unchanged, and a path with a slash is relative to the working directory.
    let outcome = daemon.run(&command("printf", &["%s|", "a  b", "$HOME", "*", ""])).await;
    assert_eq!(outcome.stdout(), "a  b|$HOME|*||");
    let mut request = command("./script", &["x"]);
    request.process.get_or_insert_default().cwd = Some(path(""));
    assert_eq!(daemon.run(&request).await.stdout(), "from ./script x\n");
}

// envd: C14
#[tokio::test]
async fn working_directories() {
    let daemon = Daemon::start().await;
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let root = fs::canonicalize(folder.path()).expect("exists");
    fs::write(root.join("file"), "x").expect("write");
    let at = |cwd: Option<&str>| {
        let mut request = command("pwd", &[]);
        request.process.get_or_insert_default().cwd = cwd.map(str::to_owned);
        request
    };
    let root = root.to_str().expect("UTF-8");
    assert_eq!(daemon.run(&at(Some(root))).await.stdout(), format!("{root}\n"));
    for (cwd, beginning) in [
        (format!("{root}/gone"), format!("cwd '{root}/gone' does not exist")),
        (format!("{root}/file"), "error starting process".to_owned()),
        ("~nobody/x".to_owned(), "cannot expand user-specific home dir".to_owned()),
    ] {
        let error = daemon.start_error(&[], &at(Some(&cwd))).await;
        assert_eq!(error.code, "invalid_argument", "{cwd}");
        assert!(error.message.starts_with(&beginning), "{error:?}");
    }
    // Without a working directory: the default one, or the home directory.
    let home = crate::daemon::account(|name, _| name == test_user()).expect("exists").2;
    assert_eq!(daemon.run(&at(None)).await.stdout().trim_end(), home);
    daemon.init(serde_json::json!({ "defaultWorkdir": root })).await;
    assert_eq!(daemon.run(&at(None)).await.stdout().trim_end(), root);
    assert_eq!(daemon.run(&at(Some(""))).await.stdout().trim_end(), root);
    let Some((name, _)) = other_user() else { return };
    let closed = format!("{root}/closed");
    fs::create_dir(&closed).expect("create");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("set");
    let error = daemon.start_error(&[("authorization", &basic(&name))], &at(Some(&closed))).await;
    assert_eq!(error.code, "invalid_argument");
    assert!(error.message.starts_with("error starting process"), "{error:?}");
}

pub(crate) fn basic(name: &str) -> String {
    use base64::Engine as _;

    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:ignored")))
}

#[tokio::test]
async fn users() {
    let daemon = Daemon::start().await;
    let unknown = basic("no-such-user");
    let headers = [("authorization", unknown.as_str())];
    let error = daemon.start_error(&headers, &shell("true")).await;
    assert_eq!(error.code, "unauthenticated");
    assert_eq!(error.message, "invalid username: 'no-such-user'");
    for reply in [
        get(&daemon, "/health", &headers).await,
        post(&daemon, "/process.Process/List", &[("content-type", "application/json"), headers[0]], "{}").await,
    ] {
        assert_eq!(reply.status, 401);
        assert_eq!(reply.json()["code"], "unauthenticated");
        assert_eq!(reply.json()["message"], "invalid username: 'no-such-user'");
    }
    // Malformed credentials are ignored.
    let mut events = daemon.launch_with(Codec::Json, &[("authorization", "Basic ???")], &shell("id -un")).await;
    events.pid().await;
    assert_eq!(events.rest().await.stdout().trim_end(), test_user());
    let Some((name, uid)) = other_user() else { return };
    let mut events =
        daemon.launch_with(Codec::Json, &[("authorization", &basic(&name))], &shell("id -u; id -G; echo $USER")).await;
    events.pid().await;
    let outcome = events.rest().await;
    let groups = Command::new("id").args(["-G", &name]).output().expect("run").stdout;
    let groups = String::from_utf8(groups).expect("UTF-8");
    assert_eq!(outcome.stdout(), format!("{uid}\n{groups}{name}\n"));
    // A command has no more rights than its user.
    let (reading, headers) = (shell("cat /etc/shadow"), basic(&name));
    let mut events = daemon.launch_with(Codec::Json, &[("authorization", &headers)], &reading).await;
    events.pid().await;
    assert_ne!(events.rest().await.code(), 0);
}

#[tokio::test]
async fn a_default_user_that_does_not_exist() {
    let daemon = Daemon::start().await;
    daemon.init(serde_json::json!({ "defaultUser": "no-such-user" })).await;
    let error = daemon.start_error(&[], &shell("true")).await;
    assert_eq!(error.code, "unauthenticated");
    assert_eq!(error.message, "invalid default user: 'no-such-user'");
}

// envd: C10
#[tokio::test]
async fn the_environment_has_only_requested_variables() {
    let daemon = Daemon::start().await;
    let reply = daemon.init(serde_json::json!({ "envVars": { "GLOBAL": "g", "BOTH": "g", "E2B_SANDBOX": "x" } })).await;
    assert_eq!(reply.status, 204);
    let mut request = command("env", &[]);
    let process = request.process.get_or_insert_default();
    process.envs = [("BOTH", "r"), ("OWN", "a b=c")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect();
    let stdout = daemon.run(&request).await.stdout();
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    let home = crate::daemon::account(|name, _| name == test_user()).expect("exists").2;
    let path = std::env::var("PATH").expect("tests have a search path");
    let mut expected = vec![
        "BOTH=r".to_owned(),
        "E2B_SANDBOX=false".to_owned(),
        "GLOBAL=g".to_owned(),
        format!("HOME={home}"),
        "LANG=C.UTF-8".to_owned(),
        format!("LOGNAME={}", test_user()),
        "OWN=a b=c".to_owned(),
        format!("PATH={path}"),
        format!("USER={}", test_user()),
    ];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    // The variables of a request do not affect the next command.
    assert!(!daemon.run(&command("env", &[])).await.stdout().contains("OWN="));
    for (name, value) in [("", "x"), ("A=B", "x"), ("A", "x\0y")] {
        let mut request = command("env", &[]);
        request.process.get_or_insert_default().envs.insert(name.to_owned(), value.to_owned());
        assert_eq!(daemon.start_error(&[], &request).await.code, "invalid_argument", "{name}={value}");
    }
}

#[tokio::test]
async fn standard_streams_can_be_opened_by_name() {
    let Some((user, _)) = other_user() else { return };
    let daemon = Daemon::start().await;
    let mut request = shell("cat < /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr");
    request.stdin = Some(false);
    let mut events = daemon.launch_with(Codec::Json, &[("authorization", &basic(&user))], &request).await;
    events.pid().await;
    let outcome = events.rest().await;
    assert_eq!((outcome.stdout().as_str(), outcome.stderr().as_str(), outcome.code()), ("out\n", "err\n", 0));
}

/// Checks that children do not inherit the daemon's signal settings, file limit and priority.
#[tokio::test]
async fn children_do_not_inherit_the_daemon_s_settings() {
    let mut command_line = Command::new("/bin/sh");
    // Only root can raise its priority; for other users the script changes nothing.
    let script = "trap '' HUP INT QUIT PIPE USR1 TERM; umask 077; ulimit -S -n 200; \
        echo -500 2> /dev/null > /proc/self/oom_score_adj; exec env --block-signal nice -n -5 \"$0\" \"$@\" 2> /dev/null";
    command_line.args(["-c", script, env!("CARGO_BIN_EXE_hearth-envd")]);
    let daemon = Daemon::spawn(command_line).await;
    daemon.init(serde_json::json!({ "defaultUser": test_user() })).await;
    let status = daemon.run(&command("cat", &["/proc/self/status"])).await.stdout();
    for field in ["SigBlk", "SigIgn", "SigCgt", "SigPnd"] {
        let line = status.lines().find(|line| line.starts_with(field)).expect("the kernel reports the field");
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
    assert!(status.contains("Umask:\t0022"), "{status}");
    // The three streams, and the directory that `ls` opens.
    assert_eq!(daemon.run(&command("ls", &["/proc/self/fd"])).await.stdout(), "0\n1\n2\n3\n");
    let script = "cat /proc/self/oom_score_adj; ulimit -n; cut -d' ' -f19 /proc/self/stat; readlink /proc/self/fd/0";
    assert_eq!(daemon.run(&shell(script)).await.stdout(), "100\n200\n0\n/dev/null\n");
    let io =
        daemon.run(&shell("command -v ionice > /dev/null || { echo best-effort: prio 4; exit; }; ionice -p $$")).await;
    assert_eq!(io.stdout(), "best-effort: prio 4\n");
    // The child remains in the daemon's session and process group: a signal reaches only the child.
    let own = daemon.run(&shell("cut -d' ' -f5,6 /proc/$PPID/stat; cut -d' ' -f5,6 /proc/self/stat")).await.stdout();
    let lines: Vec<&str> = own.lines().collect();
    assert_eq!(lines[0], lines[1]);
}

// envd: C7, C8
#[tokio::test]
async fn a_signal_reaches_one_process_and_a_kill_reaps_it() {
    let daemon = Daemon::start().await;
    for (signal, status) in [(Signal::SIGNAL_SIGKILL, "signal: killed"), (Signal::SIGNAL_SIGTERM, "signal: terminated")]
    {
        let mut events = daemon.launch(&command("sleep", &["1000"])).await;
        let pid = events.pid().await;
        assert!(is_alive(pid));
        daemon.signal(pid, signal).await.expect("send");
        if signal == Signal::SIGNAL_SIGKILL {
            assert!(!is_alive(pid), "it is reaped before the reply");
        }
        let end = events.rest().await.end.expect("an end event");
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, status));
        assert_eq!(daemon.list().await, []);
        // A signal no longer finds the process, unlike a late follower.
        let error = daemon.signal(pid, signal).await.expect_err("not found");
        assert_eq!(error.code, "not_found");
        assert_eq!(error.message, format!("process with pid {pid} not found"));
    }
    let mut events = daemon.launch(&command("sleep", &["1000"])).await;
    let pid = events.pid().await;
    let error = daemon.signal(pid, Signal::SIGNAL_UNSPECIFIED).await.expect_err("unspecified signal");
    assert_eq!(error.code, "unimplemented");
    assert_eq!(error.message, "invalid signal: SIGNAL_UNSPECIFIED");
    let nobody: Result<SendSignalResponse, _> = unary(
        &daemon,
        "/process.Process/SendSignal",
        &SendSignalRequest { signal: Signal::SIGNAL_SIGKILL.into(), ..Default::default() },
    )
    .await;
    assert_eq!(nobody.expect_err("no selector").code, "unimplemented");
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
}

// envd: C15
#[tokio::test]
async fn descendants_delay_the_end_until_a_signal() {
    let daemon = Daemon::start().await;
    // Killed while it waits: the stream ends although the descendant has the pipes open.
    let mut events = daemon.launch(&shell("sleep 1000 & echo $!; wait")).await;
    let pid = events.pid().await;
    let grandchild: u32 = events.wait_for("\n").await.trim().parse().expect("a number");
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
    assert_eq!(events.rest().await.code(), -1);
    assert!(is_alive(grandchild), "the descendant is not killed");
    kill(grandchild);
    // Exited, but its output is open: it is not listed, a late follower receives its end, and a signal ends the wait.
    let mut events = daemon.launch(&shell("sleep 1000 & echo $!; exit 3")).await;
    let pid = events.pid().await;
    let grandchild: u32 = events.wait_for("\n").await.trim().parse().expect("a number");
    until("the process to be reaped", || async { (!is_alive(pid)).then_some(()) }).await;
    assert_eq!(daemon.list().await, []);
    let late = until("the process to be outlived", || async {
        let mut late = daemon.follow(by_pid(pid)).await;
        late.pid().await;
        tokio::time::timeout(Duration::from_millis(100), late.rest()).await.ok()
    });
    assert_eq!(late.await.code(), 3);
    assert_eq!(daemon.list().await, []);
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("the wait can be ended");
    let end = events.rest().await.end.expect("an end event");
    assert_eq!((end.exit_code, end.exited), (3, true));
    assert_eq!(daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect_err("not found").code, "not_found");
    kill(grandchild);
    // Without a signal, the end follows the end of the output.
    let mut events = daemon.launch(&shell("sleep 1000 & echo $!")).await;
    events.pid().await;
    let grandchild: u32 = events.wait_for("\n").await.trim().parse().expect("a number");
    kill(grandchild);
    assert_eq!(events.rest().await.code(), 0);
}

// envd: C9
#[tokio::test]
async fn lists_running_processes() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.list().await, []);
    let mut request = command("sleep", &["1000"]);
    request.tag = Some("one".to_owned());
    request.process.get_or_insert_default().envs.insert("A".to_owned(), "b".to_owned());
    let (mut first, mut second) = (daemon.launch(&request).await, daemon.launch(&command("sleep", &["999"])).await);
    let (one, two) = (first.pid().await, second.pid().await);
    let mut listed = daemon.list().await;
    listed.sort_by_key(|(pid, ..)| *pid != one);
    let config = request.process.into_option().expect("set");
    assert_eq!(listed[0], (one, Some("one".to_owned()), config));
    assert_eq!(
        (listed[1].0, listed[1].1.as_deref(), listed[1].2.args.as_slice()),
        (two, None, &["999".to_owned()][..])
    );
    // Selection by tag.
    let request = SendSignalRequest {
        process: by_tag("one").into(),
        signal: Signal::SIGNAL_SIGKILL.into(),
        ..Default::default()
    };
    let _: SendSignalResponse = unary(&daemon, "/process.Process/SendSignal", &request).await.expect("send");
    assert_eq!(first.rest().await.code(), -1);
    let gone: Result<SendSignalResponse, _> = unary(&daemon, "/process.Process/SendSignal", &request).await;
    assert_eq!(gone.expect_err("not found").message, "process with tag one not found");
    assert_eq!(daemon.list().await.len(), 1);
    daemon.signal(two, Signal::SIGNAL_SIGKILL).await.expect("send");
}

// envd: C2
#[tokio::test]
async fn deadlines_kill_without_followers() {
    let daemon = Daemon::start().await;
    let sleep = command("sleep", &["1000"]);
    let mut events = daemon.launch_with(Codec::Json, &[("connect-timeout-ms", "300")], &sleep).await;
    let pid = events.pid().await;
    let error = events.next().await.expect_err("deadline exceeded");
    assert_eq!((error.code.as_str(), error.message.as_str()), ("deadline_exceeded", "context deadline exceeded"));
    until("the process to die", || async { (!is_alive(pid)).then_some(()) }).await;
    let mut events = daemon.launch_with(Codec::Proto, &[("connect-timeout-ms", "500")], &sleep).await;
    let pid = events.pid().await;
    drop(events);
    until("the process to die", || async { (!is_alive(pid)).then_some(()) }).await;
    // Continuous output does not delay the deadline.
    let mut events =
        daemon.launch_with(Codec::Proto, &[("connect-timeout-ms", "300")], &command("cat", &["/dev/zero"])).await;
    let error = within("the deadline", async {
        loop {
            match events.next().await {
                Err(error) => return error,
                Ok(event) => assert!(event.is_some(), "a stream ends with an error at its deadline"),
            }
        }
    });
    assert_eq!(error.await.code, "deadline_exceeded");
    // Zero means no deadline; text that is not a number is an error.
    let mut events = daemon.launch_with(Codec::Json, &[("connect-timeout-ms", "0")], &shell("echo ok")).await;
    events.pid().await;
    assert_eq!(events.rest().await.stdout(), "ok\n");
    for odd in ["soon", "-1", "12345678901"] {
        let error = daemon.start_error(&[("connect-timeout-ms", odd)], &shell("true")).await;
        assert_eq!(error.code, "invalid_argument", "{odd}");
    }
}

#[tokio::test]
async fn keepalives_during_silence() {
    let daemon = Daemon::start().await;
    let headers = [("keepalive-ping-interval", "1")];
    let mut events = daemon.launch_with(Codec::Json, &headers, &command("sleep", &["1000"])).await;
    let pid = events.pid().await;
    for _ in 0..2 {
        assert_eq!(events.next().await, Ok(Some(StreamEvent::Keepalive)));
    }
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
    assert_eq!(events.rest().await.code(), -1);
}

#[tokio::test]
async fn many_concurrent_commands() {
    let daemon = Daemon::start().await;
    let runs = (0..50).map(|number| {
        let daemon = &daemon;
        async move { (number, daemon.run(&shell(&format!("echo {number}; exit {number}"))).await) }
    });
    for (number, outcome) in futures::future::join_all(runs).await {
        assert_eq!((outcome.stdout(), outcome.code()), (format!("{number}\n"), number));
    }
    assert_eq!(daemon.list().await, []);
}
