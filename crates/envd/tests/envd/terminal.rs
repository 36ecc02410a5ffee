//! Processes with a pseudoterminal.

use hearth_envd_api::process::{PTY, StartRequest, UpdateRequest, UpdateResponse, pty};

use crate::connect::{Codec, Events, RpcError, StreamEvent, by_pid, unary};
use crate::daemon::{Daemon, is_alive, other_user, test_user, until};
use crate::input::{pty as typed, stdin};
use crate::process::{basic, command};

fn terminal(program: &str, args: &[&str], size: Option<(u32, u32)>) -> StartRequest {
    let size = size.map(|(cols, rows)| pty::Size { cols, rows, ..Default::default() });
    let mut request = command(program, args);
    request.stdin = None;
    request.pty = PTY { size: size.map_or_else(Default::default, Into::into), ..Default::default() }.into();
    request.process.get_or_insert_default().envs.insert("TERM".to_owned(), "xterm-256color".to_owned());
    request
}

/// Attaches a command to a terminal.
pub(crate) fn on_a_terminal(mut request: StartRequest) -> StartRequest {
    request.stdin = None;
    request.pty = PTY::default().into();
    request
}

impl Daemon {
    async fn resize(&self, pid: u32, size: Option<(u32, u32)>) -> Result<(), RpcError> {
        let pty = size.map(|(cols, rows)| PTY {
            size: pty::Size { cols, rows, ..Default::default() }.into(),
            ..Default::default()
        });
        let pty = pty.map_or_else(Default::default, Into::into);
        let request = UpdateRequest { process: by_pid(pid).into(), pty, ..Default::default() };
        unary::<UpdateResponse>(self, "/process.Process/Update", &request).await.map(drop)
    }

    async fn type_in(&self, pid: u32, text: &str) {
        self.send(by_pid(pid), typed(text.as_bytes())).await.expect("send input");
    }
}

/// Reads to the end of the stream; all output is the terminal's. Returns the output and the exit code.
async fn screen(events: &mut Events) -> (String, i32) {
    let outcome = events.rest().await;
    assert!(outcome.stdout.is_empty() && outcome.stderr.is_empty());
    let code = outcome.code();
    (String::from_utf8_lossy(&outcome.pty).into_owned(), code)
}

// envd: P1
#[tokio::test]
async fn a_shell_in_a_terminal() {
    let daemon = Daemon::start().await;
    for codec in [Codec::Json, Codec::Proto] {
        let mut request = terminal("/bin/sh", &["-i"], Some((80, 24)));
        request.process.get_or_insert_default().envs.insert("ABC".to_owned(), "a value".to_owned());
        let mut events = daemon.launch_with(codec, &[], &request).await;
        let pid = events.pid().await;
        daemon.type_in(pid, "echo $ABC; stty size; test -t 2 && ps -o sess= -p $$ | tr -d ' '; exit 3\n").await;
        let (screen, code) = screen(&mut events).await;
        assert_eq!(code, 3);
        // The kernel echoes typed input, and ends lines as a terminal does.
        assert!(screen.contains("echo $ABC"), "{screen}");
        for line in ["a value", "24 80", &pid.to_string()] {
            assert!(screen.contains(&format!("{line}\r\n")), "{line} in {screen}");
        }
    }
}

// envd: P3, P4
#[tokio::test]
async fn terminals_are_resized_and_killed() {
    let daemon = Daemon::start().await;
    let script = "trap 'stty size' WINCH; stty size; echo ready; while :; do sleep 0.02; done";
    let mut events = daemon.launch(&terminal("/bin/sh", &["-c", script], Some((80, 24)))).await;
    let pid = events.pid().await;
    assert!(events.wait_for("ready").await.starts_with("24 80\r\n"));
    daemon.resize(pid, Some((100, 30))).await.expect("resize");
    events.wait_for("30 100\r\n").await;
    daemon.resize(pid, None).await.expect("no new size");
    daemon.resize(pid, Some((65_536 + 81, 25))).await.expect("truncated to 16 bits");
    events.wait_for("25 81\r\n").await;
    daemon.signal(pid, hearth_envd_api::process::Signal::SIGNAL_SIGKILL).await.expect("send");
    assert!(!is_alive(pid));
    assert_eq!(screen(&mut events).await.1, -1);
    let mut events = daemon.launch(&command("sleep", &["1000"])).await;
    let pid = events.pid().await;
    assert_eq!(daemon.resize(pid, Some((1, 1))).await.expect_err("no terminal").code, "internal");
    daemon.resize(pid, None).await.expect("no new size");
    assert_eq!(daemon.resize(999_999_999, None).await.expect_err("unknown process").code, "not_found");
    daemon.signal(pid, hearth_envd_api::process::Signal::SIGNAL_SIGKILL).await.expect("send");
}

#[tokio::test]
async fn terminal_input_is_echoed_and_interpreted() {
    let daemon = Daemon::start().await;
    let mut events = daemon.launch(&terminal("cat", &[], Some((80, 24)))).await;
    let pid = events.pid().await;
    assert_eq!(daemon.send(by_pid(pid), stdin(b"x")).await.expect_err("the process has a terminal").code, "internal");
    assert_eq!(daemon.close_stdin(pid).await.expect_err("the process has a terminal").code, "unknown");
    daemon.type_in(pid, "line\n").await;
    assert_eq!(events.wait_for("line\r\nline\r\n").await, "line\r\nline\r\n");
    daemon.type_in(pid, "\x04").await;
    assert_eq!(screen(&mut events).await.1, 0);
    // Control-C reaches the foreground process.
    let mut events = daemon.launch(&terminal("cat", &[], Some((80, 24)))).await;
    let pid = events.pid().await;
    daemon.type_in(pid, "go\n").await;
    events.wait_for("go\r\ngo\r\n").await;
    daemon.type_in(pid, "\x03").await;
    let outcome = events.rest().await;
    assert_eq!(outcome.end.expect("an end event").status, "signal: interrupt");
}

// envd: P2
#[tokio::test]
async fn disconnecting_and_reconnecting() {
    let daemon = Daemon::start().await;
    let mut events = daemon.launch(&terminal("cat", &[], None)).await;
    let pid = events.pid().await;
    daemon.type_in(pid, "before\n").await;
    events.wait_for("before\r\nbefore\r\n").await;
    drop(events);
    let mut events = daemon.follow(by_pid(pid)).await;
    assert_eq!(events.pid().await, pid);
    daemon.type_in(pid, "after\n").await;
    assert_eq!(events.wait_for("after\r\nafter\r\n").await, "after\r\nafter\r\n", "only new output");
    daemon.type_in(pid, "\x04").await;
    assert_eq!(screen(&mut events).await.1, 0);
}

#[tokio::test]
async fn a_hang_up_ends_the_output() {
    let daemon = Daemon::start().await;
    // The background process has the terminal open, which does not delay the end.
    let script = "trap '' HUP; sleep 1000 & echo $!; exit 5";
    let mut events = daemon.launch(&terminal("/bin/sh", &["-c", script], None)).await;
    events.pid().await;
    let left = events.wait_for("\n").await;
    assert_eq!(screen(&mut events).await.1, 5);
    crate::daemon::kill(left.trim().parse().expect("a number"));
}

#[tokio::test]
async fn the_user_owns_the_terminal() {
    let daemon = Daemon::start().await;
    let owner = "stat -c %U \"$(tty)\"; : < \"$(tty)\" && echo opened";
    let mut events = daemon.launch(&terminal("/bin/sh", &["-c", owner], None)).await;
    events.pid().await;
    assert_eq!(screen(&mut events).await.0, format!("{}\r\nopened\r\n", test_user()));
    let Some((name, _)) = other_user() else { return };
    let request = terminal("/bin/sh", &["-c", owner], None);
    let mut events = daemon.launch_with(Codec::Json, &[("authorization", &basic(&name))], &request).await;
    events.pid().await;
    assert_eq!(screen(&mut events).await.0, format!("{name}\r\nopened\r\n"));
}

#[tokio::test]
async fn large_terminal_output_is_complete() {
    let daemon = Daemon::start().await;
    let mut events = daemon.launch(&terminal("seq", &["200000"], None)).await;
    let pid = events.pid().await;
    let mut output = Vec::new();
    loop {
        match events.next().await.expect("no error").expect("an end event") {
            StreamEvent::Pty(bytes) => {
                assert!(bytes.len() <= 16 * 1024);
                output.extend(bytes);
            }
            StreamEvent::End(end) => break assert_eq!(end.exit_code, 0),
            other => panic!("{other:?}"),
        }
    }
    let expected: String = (1..=200_000).map(|number| format!("{number}\r\n")).collect();
    assert!(output == expected.as_bytes());
    until("the process to exit", || async { (!is_alive(pid)).then_some(()) }).await;
}
