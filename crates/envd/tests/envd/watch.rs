//! Watches: pushed and polled.

use std::fs;

use hearth_envd_api::filesystem::__buffa::oneof::watch_dir_response::Event;
use hearth_envd_api::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, EntryInfo, EventType, FileType, GetWatcherEventsRequest,
    GetWatcherEventsResponse, RemoveWatcherRequest, RemoveWatcherResponse, WatchDirRequest, WatchDirResponse,
};

use crate::connect::{CODECS, Codec, Messages, RpcError, unary, unary_with};
use crate::daemon::{Daemon, within};
use crate::filesystem::{TestDirectory, code};

const RAW: (&str, &str) = ("content-type", "application/octet-stream");
const CREATE: EventType = EventType::EVENT_TYPE_CREATE;
const WRITE: EventType = EventType::EVENT_TYPE_WRITE;
const REMOVE: EventType = EventType::EVENT_TYPE_REMOVE;
const RENAME: EventType = EventType::EVENT_TYPE_RENAME;
const CHMOD: EventType = EventType::EVENT_TYPE_CHMOD;

/// Name, type and entry of an event.
type WatchEvent = (String, EventType, Option<EntryInfo>);

/// A pushing watch.
struct Watching(Messages);

impl Watching {
    /// Returns the next event; keepalives are skipped.
    async fn next(&mut self) -> WatchEvent {
        loop {
            match self.message().await.expect("no error") {
                Event::Filesystem(event) => {
                    let kind = event.r#type.as_known().expect("a known type");
                    return (event.name, kind, event.entry.into_option());
                }
                Event::Keepalive(_) => {}
                Event::Start(_) => panic!("a second start"),
            }
        }
    }

    async fn message(&mut self) -> Result<Event, RpcError> {
        let message: Option<WatchDirResponse> = self.0.next().await?;
        Ok(message.expect("a watch has no end").event.expect("the event is set"))
    }

    /// Returns all events up to one of this type and name.
    async fn until(&mut self, name: &str, kind: EventType) -> Vec<(String, EventType)> {
        let mut events = Vec::new();
        loop {
            let (found, event, _) = self.next().await;
            events.push((found, event));
            if events.last().is_some_and(|(found, event)| found == name && *event == kind) {
                return events;
            }
        }
    }
}

impl Daemon {
    async fn watch(
        &self,
        codec: Codec,
        headers: &[(&str, &str)],
        request: &WatchDirRequest,
    ) -> Result<Watching, RpcError> {
        let messages = Messages::open(self, codec, "/filesystem.Filesystem/WatchDir", headers, request).await;
        let mut watching = Watching(messages);
        assert!(matches!(watching.message().await?, Event::Start(_)));
        Ok(watching)
    }

    async fn create_watcher(&self, path: &str, recursive: bool) -> Result<String, RpcError> {
        let request =
            CreateWatcherRequest { path: path.to_owned(), recursive, include_entry: true, ..Default::default() };
        let response: CreateWatcherResponse = unary(self, "/filesystem.Filesystem/CreateWatcher", &request).await?;
        Ok(response.watcher_id)
    }

    async fn events(&self, codec: Codec, id: &str) -> Result<Vec<(String, EventType)>, RpcError> {
        let request = GetWatcherEventsRequest { watcher_id: id.to_owned(), ..Default::default() };
        let response: GetWatcherEventsResponse =
            unary_with(self, codec, "/filesystem.Filesystem/GetWatcherEvents", &[], &request).await?;
        Ok(response
            .events
            .into_iter()
            .map(|event| (event.name, event.r#type.as_known().expect("a known type")))
            .collect())
    }
}

fn expected_events(events: &[(&str, EventType)]) -> Vec<(String, EventType)> {
    events.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

fn plain(path: String) -> WatchDirRequest {
    WatchDirRequest { path, ..Default::default() }
}

fn recursive(path: String) -> WatchDirRequest {
    WatchDirRequest { path, recursive: true, ..Default::default() }
}

/// Checks the contract's exact sequence of events for a new small file, available immediately.
// envd: W1, W6
#[tokio::test]
async fn an_upload_is_three_events() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    fs::create_dir(directory.path("nested")).expect("create");
    let mut pushed = daemon.watch(Codec::Json, &[], &recursive(directory.path(""))).await.expect("watch");
    let flat = daemon.create_watcher(&directory.path(""), false).await.expect("watch");
    let deep = daemon.create_watcher(&directory.path(""), true).await.expect("watch");
    assert!(flat.starts_with('w') && deep.starts_with('w') && flat != deep);
    for codec in CODECS {
        for id in [&flat, &deep] {
            assert_eq!(daemon.events(codec, id).await, Ok(vec![]), "no event yet");
        }
    }
    let mut names = vec!["a.txt".to_owned(), "nested/b.txt".to_owned()];
    names.extend((0..30).map(|number| format!("{number}.txt")));
    for (number, name) in names.iter().enumerate() {
        let content = vec![b'x'; 1 + number * 7919];
        assert_eq!(daemon.upload(&directory.path(name), &[RAW], content).await.status, 200);
        let expected = expected_events(&[(name, CREATE), (name, CHMOD), (name, WRITE)]);
        assert_eq!(daemon.events(CODECS[number % 2], &deep).await, Ok(expected.clone()));
        let direct = if name.contains('/') { Vec::new() } else { expected.clone() };
        assert_eq!(daemon.events(Codec::Json, &flat).await, Ok(direct));
        for event in expected {
            let (name, kind, entry) = pushed.next().await;
            assert_eq!(((name, kind), entry), (event, None), "no entry unless requested");
        }
    }
    // An empty file causes no write event.
    daemon.upload(&directory.path("empty"), &[RAW], "").await;
    assert_eq!(daemon.events(Codec::Json, &flat).await, Ok(expected_events(&[("empty", CREATE), ("empty", CHMOD)])));
    // Replacing a file changes its owner and its content.
    daemon.upload(&directory.path("a.txt"), &[RAW], "new").await;
    let events = daemon.events(Codec::Json, &flat).await.expect("fetch");
    assert_eq!(events[0], ("a.txt".to_owned(), CHMOD));
    assert!(!events[1..].is_empty() && events[1..].iter().all(|event| *event == ("a.txt".to_owned(), WRITE)));
}

// envd: W3
#[tokio::test]
async fn changes_of_files_are_reported() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let path = |name: &str| directory.path(name);
    let mut request = plain(path(""));
    request.include_entry = true;
    for codec in CODECS {
        let mut watching = daemon.watch(codec, &[], &request).await.expect("watch");
        directory.write("file", "text");
        for kind in [CREATE, WRITE] {
            let (name, found, entry) = watching.next().await;
            assert_eq!((name.as_str(), found), ("file", kind));
            let entry = entry.expect("an entry");
            assert_eq!((entry.name.as_str(), entry.path), ("file", path("file")));
            assert_eq!(entry.r#type.as_known(), Some(FileType::FILE_TYPE_FILE));
        }
        fs::rename(path("file"), path("other")).expect("rename");
        assert_eq!(watching.next().await, ("file".to_owned(), RENAME, None));
        let (name, kind, entry) = watching.next().await;
        assert_eq!((name.as_str(), kind, entry.is_some()), ("other", CREATE, true));
        let mut permissions = fs::metadata(path("other")).expect("exists").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        fs::set_permissions(path("other"), permissions).expect("set");
        let (name, kind, _) = watching.next().await;
        assert_eq!((name.as_str(), kind), ("other", CHMOD));
        fs::remove_file(path("other")).expect("remove");
        assert_eq!(watching.next().await, ("other".to_owned(), REMOVE, None));
        // Subdirectories are not watched.
        fs::create_dir(path("sub")).expect("create");
        directory.write("sub/file", "x");
        fs::remove_dir_all(path("sub")).expect("remove");
        assert_eq!(watching.until("sub", REMOVE).await, expected_events(&[("sub", CREATE), ("sub", REMOVE)]));
    }
}

// envd: W2
#[tokio::test]
async fn new_directories_are_watched_immediately() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let mut watching = daemon.watch(Codec::Json, &[], &recursive(directory.path(""))).await.expect("watch");
    let polled = daemon.create_watcher(&directory.path(""), true).await.expect("watch");
    fs::create_dir_all(directory.path("a/b/c")).expect("create");
    watching.until("a/b/c", CREATE).await;
    // The two watches are independent: the polled one may discover the directories only by this call.
    let mut events = daemon.events(Codec::Json, &polled).await.expect("fetch");
    directory.write("a/b/c/file", "x");
    assert!(watching.until("a/b/c/file", WRITE).await.contains(&("a/b/c/file".to_owned(), CREATE)));
    events.extend(daemon.events(Codec::Json, &polled).await.expect("fetch"));
    for event in expected_events(&[
        ("a", CREATE),
        ("a/b", CREATE),
        ("a/b/c", CREATE),
        ("a/b/c/file", CREATE),
        ("a/b/c/file", WRITE),
    ]) {
        assert!(events.contains(&event), "{event:?} in {events:?}");
    }
    // A tree that is moved in is reported completely, and watched.
    let outside = TestDirectory::new();
    fs::create_dir_all(outside.path("t/u")).expect("create");
    outside.write("t/u/old", "x");
    fs::rename(outside.path("t"), directory.path("in")).expect("move");
    watching.until("in/u/old", CREATE).await;
    directory.write("in/u/new", "x");
    watching.until("in/u/new", WRITE).await;
    // A tree that is moved within the root has its new name.
    fs::rename(directory.path("in"), directory.path("a/moved")).expect("move");
    let events = watching.until("a/moved/u/new", CREATE).await;
    assert_eq!(events[0], ("in".to_owned(), RENAME));
    directory.write("a/moved/u/new", "y");
    watching.until("a/moved/u/new", WRITE).await;
    // A tree that is moved out is not reported; the marker follows all of its possible events.
    fs::rename(directory.path("a/moved"), outside.path("out")).expect("move");
    assert_eq!(watching.until("a/moved", RENAME).await.last(), Some(&("a/moved".to_owned(), RENAME)));
    fs::create_dir(directory.path("settled")).expect("create");
    watching.until("settled", CREATE).await;
    outside.write("out/u/file", "x");
    outside.write("out/file", "x");
    directory.write("marker", "x");
    assert_eq!(watching.until("marker", WRITE).await, expected_events(&[("marker", CREATE), ("marker", WRITE)]));
    // Each removed entry is reported once, by its parent.
    fs::remove_dir_all(directory.path("a")).expect("remove");
    let events = watching.until("a", REMOVE).await;
    for name in ["a", "a/b", "a/b/c", "a/b/c/file"] {
        let removals = events.iter().filter(|event| **event == (name.to_owned(), REMOVE)).count();
        assert_eq!(removals, 1, "{name} in {events:?}");
    }
}

#[tokio::test]
async fn changes_of_the_watched_directory_itself() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    for name in ["gone", "moved/sub"] {
        fs::create_dir_all(directory.path(name)).expect("create");
    }
    let mut watching = daemon.watch(Codec::Json, &[], &plain(directory.path("gone"))).await.expect("watch");
    let polled = daemon.create_watcher(&directory.path("gone"), false).await.expect("watch");
    fs::remove_dir(directory.path("gone")).expect("remove");
    assert_eq!(watching.next().await, (".".to_owned(), REMOVE, None));
    assert_eq!(daemon.events(Codec::Json, &polled).await, Ok(expected_events(&[(".", REMOVE)])));
    fs::create_dir(directory.path("gone")).expect("create");
    directory.write("gone/file", "x");
    assert_eq!(daemon.events(Codec::Json, &polled).await, Ok(vec![]), "no events, but the watcher is valid");
    let polled = daemon.create_watcher(&directory.path("moved"), true).await.expect("watch");
    fs::rename(directory.path("moved"), directory.path("elsewhere")).expect("rename");
    directory.write("elsewhere/sub/before", "x");
    let events = daemon.events(Codec::Json, &polled).await.expect("fetch");
    assert_eq!(events[0], (".".to_owned(), RENAME));
    directory.write("elsewhere/sub/after", "x");
    assert_eq!(daemon.events(Codec::Json, &polled).await, Ok(vec![]));
    // A link to a directory is watched like the directory.
    fs::create_dir(directory.path("real")).expect("create");
    std::os::unix::fs::symlink(directory.path("real"), directory.path("link")).expect("link");
    let polled = daemon.create_watcher(&directory.path("link"), true).await.expect("watch");
    directory.write("real/file", "x");
    assert_eq!(daemon.events(Codec::Json, &polled).await, Ok(expected_events(&[("file", CREATE), ("file", WRITE)])));
}

// envd: W5
#[tokio::test]
async fn rejections() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    directory.write("file", "x");
    for (path, expected) in [
        (directory.path("gone"), "not_found"),
        (directory.path("file"), "invalid_argument"),
        ("~other/x".to_owned(), "invalid_argument"),
    ] {
        assert_eq!(code(daemon.create_watcher(&path, false).await), expected);
        let error = daemon.watch(Codec::Json, &[], &plain(path)).await.err().expect("an error");
        assert_eq!(error.code, expected);
    }
    let unknown = daemon.events(Codec::Json, "wx").await.expect_err("unknown watcher");
    assert_eq!((unknown.code.as_str(), unknown.message.as_str()), ("not_found", "watcher with id wx not found"));
}

// envd: W7
#[tokio::test]
async fn a_removed_watcher_is_not_found() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let id = daemon.create_watcher(&directory.path(""), true).await.expect("watch");
    let request = RemoveWatcherRequest { watcher_id: id.clone(), ..Default::default() };
    let removed: Result<RemoveWatcherResponse, _> =
        unary(&daemon, "/filesystem.Filesystem/RemoveWatcher", &request).await;
    removed.expect("remove");
    assert_eq!(code(daemon.events(Codec::Json, &id).await), "not_found");
    let again: Result<RemoveWatcherResponse, _> =
        unary(&daemon, "/filesystem.Filesystem/RemoveWatcher", &request).await;
    assert_eq!(code(again), "not_found");
}

#[tokio::test]
async fn keepalives_and_deadlines() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let headers = [("keepalive-ping-interval", "1"), ("connect-timeout-ms", "1500")];
    let mut watching = daemon.watch(Codec::Proto, &headers, &plain(directory.path(""))).await.expect("watch");
    assert!(matches!(watching.message().await, Ok(Event::Keepalive(_))));
    let error = within("the deadline", watching.message()).await.expect_err("deadline exceeded");
    assert_eq!((error.code.as_str(), error.message.as_str()), ("deadline_exceeded", "context deadline exceeded"));
}

/// Checks that a watch continues after more events than the kernel queues.
#[tokio::test]
async fn watches_survive_an_overflow() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let mut watching = daemon.watch(Codec::Proto, &[], &plain(directory.path(""))).await.expect("watch");
    let polled = daemon.create_watcher(&directory.path(""), false).await.expect("watch");
    for number in 0..9_000 {
        directory.write(&format!("{}", number % 7), "x");
    }
    directory.write("last", "x");
    // The pushing watch has read some of them; a newer event arrives in any case.
    let marking = async {
        for number in 0.. {
            directory.write(&format!("marker{}", number % 2), "x");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let hearing = async { while !watching.next().await.0.starts_with("marker") {} };
    within("a newer event", async {
        tokio::select! {
            () = marking => {}
            () = hearing => {}
        }
    })
    .await;
    assert!(daemon.events(Codec::Proto, &polled).await.expect("fetch").contains(&("last".to_owned(), WRITE)));
}
