//! The daemon under load: concurrent commands, floods of events and output, silent streams.
//!
//! Thousands of commands run whose clients disconnect and reconnect. The tests check that no resources remain afterwards. The commands are chosen at random; the seed is printed and can
//! be set by `HEARTH_SOAK_SEED`.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use hearth_envd_api::process::{ListRequest, ListResponse, Signal};
use serde_json::json;

use crate::connect::{Codec, Events, StreamEvent, unary};
use crate::daemon::{Daemon, test_user, until, within};
use crate::process::command;

mod floods;
mod mix;
mod random;

const COMMANDS: u64 = 10_000;
/// Commands of the first phase, after which retained data has about its full size.
///
/// That is the daemon's log (1 MiB) and the exits for late followers (30 s, at most 4096). The allocator has then also
/// reached its peak.
const WARM_UP: u64 = 2_500;
const CONCURRENT: usize = 200;
/// Limit of the memory's growth once the daemon is idle, exits have expired and free memory is released, in KiB.
///
/// The log remains (1 MiB), and so do partly used pages. Without the release of memory the growth was 20 MiB.
const GROWTH_KIB_MAX: u64 = 7 * 1024;
/// Consecutive polls without a change after which the open files count as settled.
const STEADY_POLLS: u32 = 40;

/// Environment variable that every command of one soak has, and no other process on the machine.
const MARK: &str = "HEARTH_SOAK";

fn seed() -> u64 {
    match std::env::var("HEARTH_SOAK_SEED") {
        Ok(text) => text.parse().expect("HEARTH_SOAK_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs(),
    }
}

// Several threads: the clients must not be slower than the daemon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_commands_leave_no_resources() {
    let seed = seed();
    eprintln!("HEARTH_SOAK_SEED={seed}");
    let daemon = Daemon::spawn(std::process::Command::new(env!("CARGO_BIN_EXE_hearth-envd"))).await;
    let threads = daemon.threads();
    let mark = format!("{}-{seed}", daemon.pid());
    let reply = daemon.init(json!({ "defaultUser": test_user(), "envVars": { MARK: mark } })).await;
    assert_eq!(reply.status, 204, "{reply:?}");

    let fresh = daemon.anonymous_kib();
    run_commands(&daemon, seed, 0..WARM_UP).await;
    wait_until_nothing_runs(&daemon, &mark).await;
    wait_for_threads(&daemon, threads).await;
    let descriptors = steady_descriptors(&daemon).await;

    run_commands(&daemon, seed, WARM_UP..COMMANDS).await;
    wait_until_nothing_runs(&daemon, &mark).await;
    wait_for_threads(&daemon, threads).await;
    wait_for_descriptors(&daemon, &descriptors).await;
    let most = daemon.anonymous_kib();
    let after = until("memory to be released", async || {
        Some(daemon.anonymous_kib()).filter(|after| *after < fresh + GROWTH_KIB_MAX)
    })
    .await;
    eprintln!("memory: {fresh} KiB at the start, {most} KiB right after the soak, {after} KiB when idle");
}

async fn run_commands(daemon: &Daemon, seed: u64, numbers: std::ops::Range<u64>) {
    let runs = futures::stream::iter(numbers).map(|number| mix::run(daemon, seed, number));
    runs.buffer_unordered(CONCURRENT).collect::<Vec<()>>().await;
}

/// Waits until the daemon lists no process and has no child, zombies included.
///
/// Also waits until no process on the machine has the mark.
async fn wait_until_nothing_runs(daemon: &Daemon, mark: &str) {
    let list = || async {
        let listed: ListResponse = unary(daemon, "/process.Process/List", &ListRequest::default()).await.expect("list");
        listed.processes.is_empty().then_some(())
    };
    until("an empty list", list).await;
    until("the last child to be reaped", || async { daemon.children().is_empty().then_some(()) }).await;
    until("every marked process to exit", || async { marked(mark).is_empty().then_some(()) }).await;
}

/// Returns the pids of processes with the mark in their environment.
fn marked(mark: &str) -> Vec<String> {
    let text = format!("{MARK}={mark}");
    let folders = fs::read_dir("/proc").expect("read /proc").flatten();
    let names = folders.map(|folder| folder.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| {
            // Other users' processes are not readable, and marked ones may exit meanwhile.
            let environment = fs::read(format!("/proc/{name}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == text.as_bytes())
        })
        .collect()
}

async fn wait_for_threads(daemon: &Daemon, threads: usize) {
    until("idle threads to exit", || async { (daemon.threads() == threads).then_some(()) }).await;
}

/// Returns the open files once they no longer change: connections of disconnected clients are closed with a delay.
async fn steady_descriptors(daemon: &Daemon) -> Vec<String> {
    let mut last = (Vec::new(), 0);
    until("open files to settle", || {
        let now = daemon.open_files();
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        let settled = (last.1 >= STEADY_POLLS).then(|| last.0.clone());
        async move { settled }
    })
    .await
}

async fn wait_for_descriptors(daemon: &Daemon, before: &[String]) {
    let back = until("open files to be the same as before", || async { (daemon.open_files() == before).then_some(()) });
    tokio::select! {
        biased;
        () = back => {}
        () = tokio::time::sleep(crate::daemon::TEST_TIMEOUT / 2) => {
            panic!("open now: {:?}, before: {before:?}", daemon.open_files());
        }
    }
}

/// Bytes that one command prints. The benchmark prints a GiB.
const OUTPUT_BYTES: usize = 256 << 20;
/// A follower's queue (64 pieces of at most 32 KiB), the connection's buffers, and pieces that are being written.
const FLOWING_KIB_MAX: u64 = 8 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_output_takes_bounded_memory() {
    let daemon = Daemon::start().await;
    let before = daemon.anonymous_kib();
    let request = command("head", &["-c", &OUTPUT_BYTES.to_string(), "/dev/zero"]);
    let mut events = daemon.launch_with(Codec::Proto, &[], &request).await;
    events.pid().await;
    let (mut read, mut pieces, mut most) = (0, 0_u32, before);
    let code = loop {
        match events.next().await.expect("no error").expect("no end yet") {
            StreamEvent::Stdout(bytes) => {
                read += bytes.len();
                pieces += 1;
                // Often enough to detect growth, rarely enough to be fast.
                if pieces.is_multiple_of(256) {
                    most = most.max(daemon.anonymous_kib());
                }
            }
            StreamEvent::End(end) => break end.exit_code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((read, code), (OUTPUT_BYTES, 0));
    eprintln!("memory: {before} KiB before, {most} KiB at most, {} KiB after", daemon.anonymous_kib());
    assert!(most < before + FLOWING_KIB_MAX, "{most} KiB during the output, {before} KiB before");
}

const STREAMS: u32 = 100;
/// A silent command with its client: a connection with its buffers, a process with its pipes, three tasks, a timer.
const STREAM_KIB_MAX: u64 = 64;

#[tokio::test]
async fn silent_streams_take_little_memory() {
    let daemon = Daemon::spawn(std::process::Command::new(env!("CARGO_BIN_EXE_hearth-envd"))).await;
    let threads = daemon.threads();
    let mark = format!("{}-silent", daemon.pid());
    daemon.init(json!({ "defaultUser": test_user(), "envVars": { MARK: mark } })).await;
    let codec = |number: u32| if number.is_multiple_of(2) { Codec::Json } else { Codec::Proto };
    let sleeping = |number: u32| {
        let daemon = &daemon;
        async move {
            let mut events = daemon.launch_with(codec(number), &[], &command("sleep", &["1000"])).await;
            (events.pid().await, events)
        }
    };
    let end = async |(pid, mut events): (u32, Events)| {
        daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
        assert_eq!(events.rest().await.code(), -1);
    };
    // Allocations that are made once, with the first command.
    end(sleeping(0).await).await;
    wait_for_threads(&daemon, threads).await;
    let (descriptors, before) = (steady_descriptors(&daemon).await, daemon.anonymous_kib());
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        streams.push(within("a start", sleeping(number)).await);
    }
    // All are started, and the threads that started them have exited.
    wait_for_threads(&daemon, threads).await;
    let with = daemon.anonymous_kib();
    eprintln!("memory: {before} KiB without streams, {with} KiB with {STREAMS}");
    assert!(with < before + u64::from(STREAMS) * STREAM_KIB_MAX, "{with} KiB, {before} KiB without streams");
    for stream in streams {
        end(stream).await;
    }
    wait_until_nothing_runs(&daemon, &mark).await;
    wait_for_threads(&daemon, threads).await;
    wait_for_descriptors(&daemon, &descriptors).await;
}
