//! Directory watches during a flood of events.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hearth_envd_api::filesystem::__buffa::oneof::watch_dir_response::Event;
use hearth_envd_api::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, FilesystemEvent, GetWatcherEventsRequest, GetWatcherEventsResponse,
    WatchDirRequest, WatchDirResponse,
};

use super::Guest;
use super::wire::{Connection, Messages};
use crate::report::{Goal, Report};
use crate::statistics::milliseconds;

/// Python program that creates, writes and removes files as fast as possible, with three events for each file.
///
/// It prints the duration in seconds. Then it creates markers repeatedly, because a watch with a full queue may miss the
/// first ones.
const WRITER: &str = r"
import os, sys, time
folder, files, marks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
begin = time.monotonic()
for number in range(files):
    name = str(number)
    file = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(file, b'x')
    os.close(file)
    os.unlink(name)
print(time.monotonic() - begin, flush=True)
for number in range(marks):
    os.close(os.open(f'mark{number}', os.O_CREAT | os.O_WRONLY, 0o644))
    time.sleep(0.05)
";
const EVENTS_OF_FILE: usize = 3;
/// Number of markers, twenty per second: they last longer than a watch needs for its backlog.
const MARKS: &str = "200";
/// Pause between two fetches of the polling client, as in the SDKs.
const FETCH_PAUSE: Duration = Duration::from_millis(100);

/// Events that a watch received, and the time until the last one.
struct Received {
    events: usize,
    took: Duration,
}

/// Measures the time until a watch has received all events, pushed and polled. The bound is the program without a watch.
pub(super) async fn measure(report: &mut Report, guest: &Guest, events: usize) -> Result<()> {
    let mut writing = guest.connect().await?;
    let files = events.div_ceil(EVENTS_OF_FILE);
    let sent = files * EVENTS_OF_FILE;
    let alone = writing.text(None, &["python3", "-c", WRITER, "/tmp/unwatched", &files.to_string(), "0"]).await?;
    let bound = Duration::from_secs_f64(alone.trim().parse()?);
    for (kind, is_pushed) in [("pushed", true), ("polled", false)] {
        let folder = format!("/tmp/{kind}");
        writing.text(None, &["mkdir", &folder]).await?;
        let received = if is_pushed {
            pushed(guest, &mut writing, &folder, files).await?
        } else {
            polled(guest, &mut writing, &folder, files).await?
        };
        let name = format!("guest daemon: {sent} watch events, {kind} (bound: unwatched)");
        report.bounded(&name, "ms", milliseconds(received.took), milliseconds(bound), None);
        ensure!(received.events <= sent, "received {} events of {sent}", received.events);
        let lost = f64::from(u32::try_from(sent - received.events)?);
        report.plain(&format!("guest daemon: watch events lost, {kind}"), "", lost, Some(Goal::AtMost(0.0)));
    }
    Ok(())
}

async fn pushed(guest: &Guest, writing: &mut Connection, folder: &str, files: usize) -> Result<Received> {
    let mut watching = guest.connect().await?;
    let request = WatchDirRequest { path: folder.to_owned(), ..Default::default() };
    let mut watch: Messages<WatchDirResponse> =
        watching.stream("/filesystem.Filesystem/WatchDir", None, &request).await?;
    ensure!(matches!(next(&mut watch).await?, Event::Start(_)), "the first message of a watch is its start");
    let start = Instant::now();
    let mut writer = writing.start(None, &["python3", "-c", WRITER, folder, &files.to_string(), MARKS]).await?;
    let mut events = 0;
    loop {
        match next(&mut watch).await? {
            Event::Filesystem(event) if is_mark(&event) => break,
            Event::Filesystem(_) => events += 1,
            Event::Start(_) | Event::Keepalive(_) => {}
        }
    }
    let took = start.elapsed();
    writer.drain().await?;
    // The remaining markers are dropped: the watch ends with its connection.
    Ok(Received { events, took })
}

async fn next(watch: &mut Messages<WatchDirResponse>) -> Result<Event> {
    let message = watch.next().await?.context("the watch ended without a request")?;
    message.event.context("the message has no event")
}

async fn polled(guest: &Guest, writing: &mut Connection, folder: &str, files: usize) -> Result<Received> {
    let mut watching = guest.connect().await?;
    let request = CreateWatcherRequest { path: folder.to_owned(), ..Default::default() };
    let made: CreateWatcherResponse = watching.unary("/filesystem.Filesystem/CreateWatcher", &request).await?;
    let start = Instant::now();
    let mut writer = writing.start(None, &["python3", "-c", WRITER, folder, &files.to_string(), MARKS]).await?;
    let request = GetWatcherEventsRequest { watcher_id: made.watcher_id, ..Default::default() };
    let mut events = 0;
    loop {
        let fetched: GetWatcherEventsResponse =
            watching.unary("/filesystem.Filesystem/GetWatcherEvents", &request).await?;
        let before = fetched.events.iter().take_while(|event| !is_mark(event)).count();
        events += before;
        if before < fetched.events.len() {
            break;
        }
        if events > files * EVENTS_OF_FILE {
            bail!("received more events than were sent");
        }
        tokio::time::sleep(FETCH_PAUSE).await;
    }
    let took = start.elapsed();
    writer.drain().await?;
    Ok(Received { events, took })
}

fn is_mark(event: &FilesystemEvent) -> bool {
    event.name.starts_with("mark")
}
