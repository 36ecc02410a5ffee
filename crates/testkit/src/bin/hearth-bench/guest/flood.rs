//! How a watch follows a program that works as fast as it can.

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

/// Makes, writes and removes files in a folder, as fast as one program can: three events each. Then a marker again and again,
/// because a watch whose queue is full may miss the first. Prints how long the files took, in seconds.
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
/// Markers, twenty in a second: more than any backlog takes.
const MARKS: &str = "200";
/// Between two fetches of the polling client, as long as the SDKs' own.
const FETCH_PAUSE: Duration = Duration::from_millis(100);

/// What a watch heard.
struct Heard {
    events: usize,
    took: Duration,
}

/// Until all events of a flood have come, pushed and polled; the bound is the program where nobody watches.
pub(super) async fn measure(report: &mut Report, guest: &Guest, events: usize) -> Result<()> {
    let mut writing = guest.connect().await?;
    let files = events.div_ceil(EVENTS_OF_FILE);
    let sent = files * EVENTS_OF_FILE;
    let alone = writing.text(None, &["python3", "-c", WRITER, "/tmp/unwatched", &files.to_string(), "0"]).await?;
    let bound = Duration::from_secs_f64(alone.trim().parse()?);
    for (kind, is_pushed) in [("pushed", true), ("polled", false)] {
        let folder = format!("/tmp/{kind}");
        writing.text(None, &["mkdir", &folder]).await?;
        let heard = if is_pushed {
            pushed(guest, &mut writing, &folder, files).await?
        } else {
            polled(guest, &mut writing, &folder, files).await?
        };
        let name = format!("guest daemon: {sent} watch events, {kind} (bound: unwatched)");
        report.bounded(&name, "ms", milliseconds(heard.took), milliseconds(bound), None);
        ensure!(heard.events <= sent, "{} events of {sent} were told", heard.events);
        let lost = f64::from(u32::try_from(sent - heard.events)?);
        report.plain(&format!("guest daemon: watch events lost, {kind}"), "", lost, Some(Goal::AtMost(0.0)));
    }
    Ok(())
}

async fn pushed(guest: &Guest, writing: &mut Connection, folder: &str, files: usize) -> Result<Heard> {
    let mut watching = guest.connect().await?;
    let request = WatchDirRequest { path: folder.to_owned(), ..Default::default() };
    let mut watch: Messages<WatchDirResponse> =
        watching.stream("/filesystem.Filesystem/WatchDir", None, &request).await?;
    ensure!(matches!(next(&mut watch).await?, Event::Start(_)), "a watch begins with its start");
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
    // The rest of the markers is nobody's: the watch ends with its connection.
    Ok(Heard { events, took })
}

async fn next(watch: &mut Messages<WatchDirResponse>) -> Result<Event> {
    let message = watch.next().await?.context("watches do not end by themselves")?;
    message.event.context("an event of some kind")
}

async fn polled(guest: &Guest, writing: &mut Connection, folder: &str, files: usize) -> Result<Heard> {
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
            bail!("more events than there were");
        }
        tokio::time::sleep(FETCH_PAUSE).await;
    }
    let took = start.elapsed();
    writer.drain().await?;
    Ok(Heard { events, took })
}

fn is_mark(event: &FilesystemEvent) -> bool {
    event.name.starts_with("mark")
}
