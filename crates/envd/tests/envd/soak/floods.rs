//! A hundred thousand events, and watches that hear them.

use std::fs;

use hearth_envd_api::filesystem::__buffa::oneof::watch_dir_response::Event;
use hearth_envd_api::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, EventType, FilesystemEvent, GetWatcherEventsRequest,
    GetWatcherEventsResponse, WatchDirRequest, WatchDirResponse,
};

use crate::connect::{Codec, Messages, Refused, unary_with};
use crate::daemon::Daemon;
use crate::filesystem::Place;

/// What happens to each file: it appears, is written, and goes. No two in a row are alike, so the kernel joins none.
const KINDS: [EventType; 3] = [EventType::EVENT_TYPE_CREATE, EventType::EVENT_TYPE_WRITE, EventType::EVENT_TYPE_REMOVE];
/// Files of one burst. The kernel keeps 16 384 events for a watch that does not read in time; what does not fit there the
/// contract allows to be lost. A burst fits.
const BURST: usize = 1_000;
/// A hundred thousand events and more.
const BURSTS: usize = 34;
/// Events that a polled watcher keeps before it fails.
const KEPT_MAX: usize = 100_000;
/// What the daemon may grow by meanwhile: most of it is the watcher that nobody asks, with as many events as it may keep.
const GROWTH_KIB_MAX: u64 = 64 * 1024;

async fn watcher(daemon: &Daemon, path: String) -> String {
    let request = CreateWatcherRequest { path, ..Default::default() };
    let path = "/filesystem.Filesystem/CreateWatcher";
    let made: Result<CreateWatcherResponse, _> = unary_with(daemon, Codec::Proto, path, &[], &request).await;
    made.expect("watches").watcher_id
}

async fn fetch(daemon: &Daemon, id: &str) -> Result<Vec<(String, EventType)>, Refused> {
    let request = GetWatcherEventsRequest { watcher_id: id.to_owned(), ..Default::default() };
    let path = "/filesystem.Filesystem/GetWatcherEvents";
    let fetched: GetWatcherEventsResponse = unary_with(daemon, Codec::Proto, path, &[], &request).await?;
    Ok(fetched.events.into_iter().map(plain).collect())
}

fn plain(event: FilesystemEvent) -> (String, EventType) {
    (event.name, event.r#type.as_known().expect("known"))
}

async fn pushed(messages: &mut Messages) -> (String, EventType) {
    loop {
        let message: Option<WatchDirResponse> = messages.next().await.expect("no error");
        match message.expect("it goes on").event.expect("of some kind") {
            Event::Filesystem(event) => return plain(*event),
            Event::Start(_) | Event::Keepalive(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_events() {
    let daemon = Daemon::start().await;
    let (place, quiet) = (Place::new(), Place::new());
    let request = WatchDirRequest { path: place.path(""), ..Default::default() };
    let mut stream = Messages::open(&daemon, Codec::Proto, "/filesystem.Filesystem/WatchDir", &[], &request).await;
    let started: Option<WatchDirResponse> = stream.next().await.expect("no error");
    assert!(matches!(started.expect("a start").event, Some(Event::Start(_))));
    let (polled, forgotten) = (watcher(&daemon, place.path("")).await, watcher(&daemon, place.path("")).await);
    let other = watcher(&daemon, quiet.path("")).await;
    let before = daemon.own_kib();
    let mut most = before;
    for burst in 0..BURSTS {
        let mut expected = Vec::with_capacity(BURST * KINDS.len());
        for number in burst * BURST..(burst + 1) * BURST {
            let name = format!("{number}");
            fs::write(place.path(&name), "x").expect("writes");
            fs::remove_file(place.path(&name)).expect("removes");
            expected.extend(KINDS.map(|kind| (name.clone(), kind)));
        }
        // What is written is told by the next call, all of it, in order and once.
        let fetched = fetch(&daemon, &polled).await.expect("there");
        assert!(fetched == expected, "{} of {} events were fetched", fetched.len(), expected.len());
        for event in expected {
            assert_eq!(pushed(&mut stream).await, event);
        }
        most = most.max(daemon.own_kib());
    }
    // Whoever does not fetch is told that something is missing, and again.
    for _ in 0..2 {
        let refused = fetch(&daemon, &forgotten).await.expect_err("too much for a watcher that nobody asks");
        assert_eq!(refused.code, "resource_exhausted");
        assert_eq!(refused.message, format!("watcher error: more than {KEPT_MAX} events were not fetched"));
    }
    eprintln!("memory: {before} KiB before, {most} KiB at most, {} KiB after", daemon.own_kib());
    assert!(most < before + GROWTH_KIB_MAX, "{most} KiB, {before} KiB before");
    assert_eq!(fetch(&daemon, &other).await, Ok(vec![]), "others are not told");
}
