//! Several clients of one process: the output that each receives, and the followers that the process waits for.

use std::fs;

use hearth_envd_api::process::{ConnectRequest, ProcessSelector, SendInputRequest, SendInputResponse, Signal};

use crate::connect::{CODECS, Codec, Events, Messages, RpcError, StreamEvent, by_pid, by_tag, unary};
use crate::daemon::{Daemon, is_alive, until, within};
use crate::input::stdin;
use crate::process::{command, shell};
use crate::terminal::on_a_terminal;

const CONNECT: &str = "/process.Process/Connect";
/// Memory that one stalled reader may cost the daemon: its queue of pieces and the buffers below it.
const STALLED_KIB_MAX: u64 = 16 * 1024;

impl Daemon {
    pub(crate) async fn follow(&self, process: ProcessSelector) -> Events {
        self.follow_with(Codec::Json, &[], process).await
    }

    async fn follow_with(&self, codec: Codec, headers: &[(&str, &str)], process: ProcessSelector) -> Events {
        let request = ConnectRequest { process: process.into(), ..Default::default() };
        Events::of(Messages::open(self, codec, CONNECT, headers, &request).await)
    }

    pub(crate) async fn feed(&self, pid: u32, bytes: &[u8]) {
        let request =
            SendInputRequest { process: by_pid(pid).into(), input: stdin(bytes).into(), ..Default::default() };
        let _: SendInputResponse = unary(self, "/process.Process/SendInput", &request).await.expect("send input");
    }
}

fn cat() -> hearth_envd_api::process::StartRequest {
    let mut request = command("cat", &[]);
    request.stdin = Some(true);
    request
}

// envd: C5
#[tokio::test]
async fn every_follower_receives_all_output_from_its_start() {
    let daemon = Daemon::start().await;
    let mut request = cat();
    request.tag = Some("cat".to_owned());
    let mut first = daemon.launch(&request).await;
    let pid = first.pid().await;
    daemon.feed(pid, b"one ").await;
    assert_eq!(first.wait_for("one ").await, "one ");
    let mut second = daemon.follow_with(Codec::Proto, &[], by_pid(pid)).await;
    assert_eq!(second.pid().await, pid);
    let mut third = daemon.follow(by_tag("cat")).await;
    assert_eq!(third.pid().await, pid);
    daemon.feed(pid, b"two").await;
    for events in [&mut first, &mut second, &mut third] {
        assert_eq!(events.wait_for("two").await, "two", "earlier output is not repeated");
    }
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
    for mut events in [first, second, third] {
        assert_eq!(events.rest().await.code(), -1);
    }
}

// envd: C17
#[tokio::test]
async fn a_disconnect_does_not_stop_the_process() {
    let daemon = Daemon::start().await;
    let mut request = shell("read line; echo got $line; exit 7");
    request.stdin = Some(true);
    let mut events = daemon.launch(&request).await;
    let pid = events.pid().await;
    drop(events);
    let mut events = daemon.follow(by_pid(pid)).await;
    assert_eq!(events.pid().await, pid);
    daemon.feed(pid, b"hello\n").await;
    let outcome = events.rest().await;
    assert_eq!((outcome.stdout().as_str(), outcome.code()), ("got hello\n", 7));
}

// envd: C6, C17
#[tokio::test]
async fn a_late_follower_receives_the_end() {
    let daemon = Daemon::start().await;
    let mut request = shell("echo out; exit 5");
    request.tag = Some("late".to_owned());
    let mut events = daemon.launch(&request).await;
    let pid = events.pid().await;
    events.rest().await;
    for codec in CODECS {
        for process in [by_pid(pid), by_tag("late")] {
            let mut late = daemon.follow_with(codec, &[], process).await;
            assert_eq!(late.pid().await, pid);
            let outcome = late.rest().await;
            assert_eq!((outcome.stdout().as_str(), outcome.code()), ("", 5));
        }
    }
    // A new process with the tag replaces the ended one.
    request.process.get_or_insert_default().args = vec!["-c".to_owned(), "exit 6".to_owned()];
    daemon.run(&request).await;
    let mut late = daemon.follow(by_tag("late")).await;
    late.pid().await;
    assert_eq!(late.rest().await.code(), 6);
    for (process, code, message) in [
        (by_pid(999_999_999), "not_found", "process with pid 999999999 not found"),
        (by_tag("nobody"), "not_found", "process with tag nobody not found"),
        (ProcessSelector::default(), "unimplemented", ""),
    ] {
        let error = daemon.follow(process).await.next().await.expect_err("unknown process");
        assert_eq!(error.code, code);
        assert!(error.message.contains(message), "{error:?}");
    }
}

#[tokio::test]
async fn a_follower_s_deadline_ends_only_its_stream() {
    let daemon = Daemon::start().await;
    let mut events = daemon.launch(&command("sleep", &["1000"])).await;
    let pid = events.pid().await;
    let mut follower = daemon.follow_with(Codec::Json, &[("connect-timeout-ms", "100")], by_pid(pid)).await;
    follower.pid().await;
    assert_eq!(follower.next().await.expect_err("deadline exceeded").code, "deadline_exceeded");
    assert!(is_alive(pid));
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
    assert_eq!(events.rest().await.code(), -1);
}

/// Returns the number of bytes that a process has written.
fn written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("the process runs");
    io.lines()
        .find_map(|line| line.strip_prefix("wchar: "))
        .expect("the kernel reports the field")
        .parse()
        .expect("a number")
}

/// Waits until a process has stopped writing, because it is blocked.
async fn until_blocked(pid: u32) -> u64 {
    let mut last = (0, 0);
    until("the process to block", || {
        let now = written(pid);
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        async move { (now > 0 && last.1 > 40).then_some(now) }
    })
    .await
}

#[tokio::test]
async fn a_stalled_follower_blocks_the_process_in_bounded_memory() {
    const TOTAL: usize = 96 << 20;
    let daemon = Daemon::start().await;
    let before = daemon.resident_kib();
    let mut events =
        daemon.launch_with(Codec::Proto, &[], &command("head", &["-c", &TOTAL.to_string(), "/dev/zero"])).await;
    let pid = events.pid().await;
    let blocked = until_blocked(pid).await;
    assert!(blocked < TOTAL as u64 / 2, "{blocked} bytes were written without a reader");
    assert!(daemon.resident_kib() < before + STALLED_KIB_MAX, "{} KiB, {before} before", daemon.resident_kib());
    let mut read = 0;
    let code = loop {
        match events.next().await.expect("no error").expect("no end yet") {
            StreamEvent::Stdout(bytes) => {
                assert!(bytes.len() <= 32 * 1024 && bytes.iter().all(|byte| *byte == 0));
                read += bytes.len();
            }
            StreamEvent::End(end) => break end.exit_code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((read, code), (TOTAL, 0), "nothing is lost");
    assert!(daemon.resident_kib() < before + STALLED_KIB_MAX, "{} KiB, {before} before", daemon.resident_kib());
}

#[tokio::test]
async fn a_disconnect_unblocks_the_other_followers() {
    const TOTAL: usize = 32 << 20;
    let daemon = Daemon::start().await;
    let mut request = shell(&format!("read go; head -c {TOTAL} /dev/zero"));
    request.stdin = Some(true);
    let mut reading = daemon.launch_with(Codec::Proto, &[], &request).await;
    let pid = reading.pid().await;
    let mut stalled = daemon.follow(by_pid(pid)).await;
    stalled.pid().await;
    daemon.feed(pid, b"\n").await;
    // The reading follower gets only slightly ahead of the stalled one, until that one disconnects or is dropped.
    let mut read = 0;
    let mut next = async || match reading.next().await.expect("no error").expect("no end yet") {
        StreamEvent::Stdout(bytes) => Some(bytes.len()),
        StreamEvent::End(_) => None,
        other => panic!("{other:?}"),
    };
    while let Ok(more) = tokio::time::timeout(std::time::Duration::from_millis(500), next()).await {
        read += more.expect("not ended yet");
    }
    assert!(read < TOTAL);
    drop(stalled);
    while let Some(more) = next().await {
        read += more;
    }
    assert_eq!(read, TOTAL);
}

#[tokio::test]
async fn a_stalled_follower_does_not_delay_the_end_for_others() {
    let daemon = Daemon::start().await;
    let mut stalled = daemon.launch_with(Codec::Proto, &[], &command("cat", &["/dev/zero"])).await;
    let pid = stalled.pid().await;
    until_blocked(pid).await;
    let mut other = daemon.follow(by_pid(pid)).await;
    other.pid().await;
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
    within("the end", async { while !matches!(other.next().await.expect("no error"), Some(StreamEvent::End(_))) {} })
        .await;
    // The stalled follower receives the end too, after all of its pending output.
    while !matches!(stalled.next().await.expect("no error"), Some(StreamEvent::End(_))) {}
}

/// Reads to the end of a stream; returns the output and the error.
async fn read_to_end(events: &mut Events) -> (Vec<u8>, Option<RpcError>) {
    let mut output = Vec::new();
    loop {
        match events.next().await {
            Ok(Some(StreamEvent::Stdout(bytes) | StreamEvent::Stderr(bytes) | StreamEvent::Pty(bytes))) => {
                output.extend(bytes);
            }
            Ok(Some(_)) => {}
            Ok(None) => return (output, None),
            Err(error) => return (output, Some(error)),
        }
    }
}

/// Takes as long as the daemon waits for a client that does not read.
#[tokio::test]
async fn a_follower_that_never_reads_is_dropped_and_a_late_one_gets_retained_output() {
    const LAST: usize = 3_000_000;
    let daemon = Daemon::start().await;
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let mut counted = String::new();
    for number in 1..=LAST {
        counted.push_str(&format!("{number}\n"));
    }
    let counts = async |on_terminal: bool| {
        let done = folder.path().join(format!("done-{on_terminal}"));
        let mut request = shell(&format!("stty -onlcr 2>/dev/null; seq 1 {LAST}; touch {}", done.display()));
        if on_terminal {
            request = on_a_terminal(request);
        }
        let mut unread = daemon.launch_with(Codec::Proto, &[], &request).await;
        let pid = unread.pid().await;
        until_blocked(pid).await;
        let mut other = daemon.follow_with(Codec::Proto, &[], by_pid(pid)).await;
        other.pid().await;
        let (heard, error) = read_to_end(&mut other).await;
        assert!(error.is_none() && heard.ends_with(b"2999999\n3000000\n"), "{error:?}");
        assert!(counted.as_bytes().ends_with(&heard), "the reading follower receives all output");
        assert!(done.exists());
        let mut late = daemon.follow_with(Codec::Proto, &[], by_pid(pid)).await;
        late.pid().await;
        let (kept, error) = read_to_end(&mut late).await;
        assert!(error.is_none() && kept.len() > 1 << 20 && counted.as_bytes().ends_with(&kept), "{}", kept.len());
        let (heard, error) = read_to_end(&mut unread).await;
        assert!(counted.as_bytes().starts_with(&heard));
        let error = error.expect("the stalled follower is dropped");
        assert_eq!(error.code, "aborted");
        assert!(error.message.starts_with("the output was not read for 30 seconds"), "{error:?}");
    };
    tokio::join!(counts(false), counts(true));
    assert!(daemon.resident_kib() < 64 * 1024, "{} KiB", daemon.resident_kib());
}

#[tokio::test]
async fn a_process_without_followers_never_blocks() {
    let daemon = Daemon::start().await;
    let mut request = shell("head -c 50000000 /dev/zero; exit 4");
    request.tag = Some("unheard".to_owned());
    let mut events = daemon.launch(&request).await;
    let pid = events.pid().await;
    drop(events);
    until("the process to exit", || async { (!is_alive(pid)).then_some(()) }).await;
    let mut late = daemon.follow(by_tag("unheard")).await;
    late.pid().await;
    assert_eq!(late.rest().await.code(), 4);
}
