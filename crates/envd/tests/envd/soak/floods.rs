//! A hundred thousand events, and watches that receive them.

use std::fs;

use hearth_envd_api::filesystem::__buffa::oneof::watch_dir_response::Event;
use hearth_envd_api::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, EventType, FilesystemEvent, GetWatcherEventsRequest,
    GetWatcherEventsResponse, WatchDirRequest, WatchDirResponse,
};

use crate::connect::{Codec, Messages, RpcError, unary_with};
use crate::daemon::Daemon;
use crate::filesystem::TestDirectory;

/// Events of each file: created, written, removed. No two adjacent ones are equal, so the kernel merges none.
const KINDS: [EventType; 3] = [EventType::EVENT_TYPE_CREATE, EventType::EVENT_TYPE_WRITE, EventType::EVENT_TYPE_REMOVE];
/// Files of one burst, whose events fit in the kernel's queue.
///
/// The kernel queues 16 384 events for a slow reader; the contract permits the loss of further ones.
const BURST: usize = 1_000;
/// Enough for more than a hundred thousand events.
const BURSTS: usize = 34;
/// Events that a polled watcher stores before it fails.
const STORED_MAX: usize = 100_000;
/// Limit of the memory's growth in KiB: most of it is the watcher that is never polled, with all the events it may
/// store.
const GROWTH_KIB_MAX: u64 = 64 * 1024;

async fn watcher(daemon: &Daemon, path: String) -> String {
    let request = CreateWatcherRequest { path, ..Default::default() };
    let path = "/filesystem.Filesystem/CreateWatcher";
    let created: Result<CreateWatcherResponse, _> = unary_with(daemon, Codec::Proto, path, &[], &request).await;
    created.expect("create a watcher").watcher_id
}

async fn fetch(daemon: &Daemon, id: &str) -> Result<Vec<(String, EventType)>, RpcError> {
    let request = GetWatcherEventsRequest { watcher_id: id.to_owned(), ..Default::default() };
    let path = "/filesystem.Filesystem/GetWatcherEvents";
    let fetched: GetWatcherEventsResponse = unary_with(daemon, Codec::Proto, path, &[], &request).await?;
    Ok(fetched.events.into_iter().map(plain).collect())
}

fn plain(event: FilesystemEvent) -> (String, EventType) {
    (event.name, event.r#type.as_known().expect("a known type"))
}

async fn pushed(messages: &mut Messages) -> (String, EventType) {
    loop {
        let message: Option<WatchDirResponse> = messages.next().await.expect("no error");
        match message.expect("another event").event.expect("the event is set") {
            Event::Filesystem(event) => return plain(*event),
            Event::Start(_) | Event::Keepalive(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_events() {
    let daemon = Daemon::start().await;
    let (directory, quiet) = (TestDirectory::new(), TestDirectory::new());
    let request = WatchDirRequest { path: directory.path(""), ..Default::default() };
    let mut stream = Messages::open(&daemon, Codec::Proto, "/filesystem.Filesystem/WatchDir", &[], &request).await;
    let started: Option<WatchDirResponse> = stream.next().await.expect("no error");
    assert!(matches!(started.expect("a start event").event, Some(Event::Start(_))));
    let (polled, forgotten) = (watcher(&daemon, directory.path("")).await, watcher(&daemon, directory.path("")).await);
    let other = watcher(&daemon, quiet.path("")).await;
    let before = daemon.anonymous_kib();
    let mut most = before;
    for burst in 0..BURSTS {
        let mut expected = Vec::with_capacity(BURST * KINDS.len());
        for number in burst * BURST..(burst + 1) * BURST {
            let name = format!("{number}");
            fs::write(directory.path(&name), "x").expect("write");
            fs::remove_file(directory.path(&name)).expect("remove");
            expected.extend(KINDS.map(|kind| (name.clone(), kind)));
        }
        // A fetch returns every earlier event, in order and once.
        let fetched = fetch(&daemon, &polled).await.expect("fetch");
        assert!(fetched == expected, "{} of {} events were fetched", fetched.len(), expected.len());
        for event in expected {
            assert_eq!(pushed(&mut stream).await, event);
        }
        most = most.max(daemon.anonymous_kib());
    }
    // A watcher that is not polled reports the loss, repeatedly.
    for _ in 0..2 {
        let error = fetch(&daemon, &forgotten).await.expect_err("more events than a watcher stores");
        assert_eq!(error.code, "resource_exhausted");
        assert_eq!(error.message, format!("watcher error: more than {STORED_MAX} events were not fetched"));
    }
    eprintln!("memory: {before} KiB before, {most} KiB at most, {} KiB after", daemon.anonymous_kib());
    assert!(most < before + GROWTH_KIB_MAX, "{most} KiB, {before} KiB before");
    assert_eq!(fetch(&daemon, &other).await, Ok(vec![]), "other directories have no events");
}
