//! Watches: pushed and polled.

use std::fs;

use hearth_envd_api::filesystem::__buffa::oneof::watch_dir_response::Event;
use hearth_envd_api::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, EntryInfo, EventType, FileType, GetWatcherEventsRequest,
    GetWatcherEventsResponse, RemoveWatcherRequest, RemoveWatcherResponse, WatchDirRequest, WatchDirResponse,
};

use crate::connect::{CODECS, Codec, Messages, Refused, unary, unary_with};
use crate::daemon::{Daemon, within};
use crate::filesystem::{Place, code};

const RAW: (&str, &str) = ("content-type", "application/octet-stream");
const CREATE: EventType = EventType::EVENT_TYPE_CREATE;
const WRITE: EventType = EventType::EVENT_TYPE_WRITE;
const REMOVE: EventType = EventType::EVENT_TYPE_REMOVE;
const RENAME: EventType = EventType::EVENT_TYPE_RENAME;
const CHMOD: EventType = EventType::EVENT_TYPE_CHMOD;

/// Name, type and entry of an event.
type Told = (String, EventType, Option<EntryInfo>);

/// A pushing watch.
struct Watching(Messages);

impl Watching {
    /// Returns the next event; keepalives are skipped.
    async fn next(&mut self) -> Told {
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

    async fn message(&mut self) -> Result<Event, Refused> {
        let message: Option<WatchDirResponse> = self.0.next().await?;
        Ok(message.expect("a watch has no end").event.expect("the event is set"))
    }

    /// Returns all events up to one of this type and name.
    async fn until(&mut self, name: &str, kind: EventType) -> Vec<(String, EventType)> {
        let mut told = Vec::new();
        loop {
            let (found, event, _) = self.next().await;
            told.push((found, event));
            if told.last().is_some_and(|(found, event)| found == name && *event == kind) {
                return told;
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
    ) -> Result<Watching, Refused> {
        let messages = Messages::open(self, codec, "/filesystem.Filesystem/WatchDir", headers, request).await;
        let mut watching = Watching(messages);
        assert!(matches!(watching.message().await?, Event::Start(_)));
        Ok(watching)
    }

    async fn create_watcher(&self, path: &str, recursive: bool) -> Result<String, Refused> {
        let request =
            CreateWatcherRequest { path: path.to_owned(), recursive, include_entry: true, ..Default::default() };
        let response: CreateWatcherResponse = unary(self, "/filesystem.Filesystem/CreateWatcher", &request).await?;
        Ok(response.watcher_id)
    }

    async fn events(&self, codec: Codec, id: &str) -> Result<Vec<(String, EventType)>, Refused> {
        let request = GetWatcherEventsRequest { watcher_id: id.to_owned(), ..Default::default() };
        let response: GetWatcherEventsResponse =
            unary_with(self, codec, "/filesystem.Filesystem/GetWatcherEvents", &[], &request).await?;
        Ok(response.events.into_iter().map(|event| (event.name, event.r#type.as_known().expect("a known type"))).collect())
    }
}

fn told(events: &[(&str, EventType)]) -> Vec<(String, EventType)> {
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
    let place = Place::new();
    fs::create_dir(place.path("nested")).expect("creates");
    let mut pushed = daemon.watch(Codec::Json, &[], &recursive(place.path(""))).await.expect("watches");
    let flat = daemon.create_watcher(&place.path(""), false).await.expect("watches");
    let deep = daemon.create_watcher(&place.path(""), true).await.expect("watches");
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
        assert_eq!(daemon.upload(&place.path(name), &[RAW], content).await.status, 200);
        let expected = told(&[(name, CREATE), (name, CHMOD), (name, WRITE)]);
        assert_eq!(daemon.events(CODECS[number % 2], &deep).await, Ok(expected.clone()));
        let direct = if name.contains('/') { Vec::new() } else { expected.clone() };
        assert_eq!(daemon.events(Codec::Json, &flat).await, Ok(direct));
        for event in expected {
            let (name, kind, entry) = pushed.next().await;
            assert_eq!(((name, kind), entry), (event, None), "no entry unless requested");
        }
    }
    // An empty file causes no write event.
    daemon.upload(&place.path("empty"), &[RAW], "").await;
    assert_eq!(daemon.events(Codec::Json, &flat).await, Ok(told(&[("empty", CREATE), ("empty", CHMOD)])));
    // Replacing a file changes its owner and its content.
    daemon.upload(&place.path("a.txt"), &[RAW], "new").await;
    let events = daemon.events(Codec::Json, &flat).await.expect("fetch");
    assert_eq!(events[0], ("a.txt".to_owned(), CHMOD));
    assert!(!events[1..].is_empty() && events[1..].iter().all(|event| *event == ("a.txt".to_owned(), WRITE)));
}

// envd: W3
#[tokio::test]
async fn what_happens_to_files() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    let path = |name: &str| place.path(name);
    let mut request = plain(path(""));
    request.include_entry = true;
    for codec in CODECS {
        let mut watching = daemon.watch(codec, &[], &request).await.expect("watches");
        place.write("file", "text");
        for kind in [CREATE, WRITE] {
            let (name, found, entry) = watching.next().await;
            assert_eq!((name.as_str(), found), ("file", kind));
            let entry = entry.expect("an entry");
            assert_eq!((entry.name.as_str(), entry.path), ("file", path("file")));
            assert_eq!(entry.r#type.as_known(), Some(FileType::FILE_TYPE_FILE));
        }
        fs::rename(path("file"), path("other")).expect("renames");
        assert_eq!(watching.next().await, ("file".to_owned(), RENAME, None));
        let (name, kind, entry) = watching.next().await;
        assert_eq!((name.as_str(), kind, entry.is_some()), ("other", CREATE, true));
        let mut permissions = fs::metadata(path("other")).expect("exists").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        fs::set_permissions(path("other"), permissions).expect("sets");
        let (name, kind, _) = watching.next().await;
        assert_eq!((name.as_str(), kind), ("other", CHMOD));
        fs::remove_file(path("other")).expect("removes");
        assert_eq!(watching.next().await, ("other".to_owned(), REMOVE, None));
        // Subdirectories are not watched.
        fs::create_dir(path("sub")).expect("creates");
        place.write("sub/file", "x");
        fs::remove_dir_all(path("sub")).expect("removes");
        assert_eq!(watching.until("sub", REMOVE).await, told(&[("sub", CREATE), ("sub", REMOVE)]));
    }
}

// envd: W2
#[tokio::test]
async fn new_directories_are_watched_at_once() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    let mut watching = daemon.watch(Codec::Json, &[], &recursive(place.path(""))).await.expect("watches");
    let polled = daemon.create_watcher(&place.path(""), true).await.expect("watches");
    fs::create_dir_all(place.path("a/b/c")).expect("creates");
    watching.until("a/b/c", CREATE).await;
    // The two watches are independent: the polled one may discover the directories only by this call.
    let mut events = daemon.events(Codec::Json, &polled).await.expect("fetch");
    place.write("a/b/c/file", "x");
    assert!(watching.until("a/b/c/file", WRITE).await.contains(&("a/b/c/file".to_owned(), CREATE)));
    events.extend(daemon.events(Codec::Json, &polled).await.expect("fetch"));
    for event in
        told(&[("a", CREATE), ("a/b", CREATE), ("a/b/c", CREATE), ("a/b/c/file", CREATE), ("a/b/c/file", WRITE)])
    {
        assert!(events.contains(&event), "{event:?} in {events:?}");
    }
    // A tree that is moved in is reported completely, and watched.
    let outside = Place::new();
    fs::create_dir_all(outside.path("t/u")).expect("creates");
    outside.write("t/u/old", "x");
    fs::rename(outside.path("t"), place.path("in")).expect("moves");
    watching.until("in/u/old", CREATE).await;
    place.write("in/u/new", "x");
    watching.until("in/u/new", WRITE).await;
    // A tree that is moved within the root has its new name.
    fs::rename(place.path("in"), place.path("a/moved")).expect("moves");
    let events = watching.until("a/moved/u/new", CREATE).await;
    assert_eq!(events[0], ("in".to_owned(), RENAME));
    place.write("a/moved/u/new", "y");
    watching.until("a/moved/u/new", WRITE).await;
    // A tree that is moved out is not reported; the marker follows all of its possible events.
    fs::rename(place.path("a/moved"), outside.path("out")).expect("moves");
    assert_eq!(watching.until("a/moved", RENAME).await.last(), Some(&("a/moved".to_owned(), RENAME)));
    fs::create_dir(place.path("settled")).expect("creates");
    watching.until("settled", CREATE).await;
    outside.write("out/u/file", "x");
    outside.write("out/file", "x");
    place.write("marker", "x");
    assert_eq!(watching.until("marker", WRITE).await, told(&[("marker", CREATE), ("marker", WRITE)]));
    // Each removed entry is reported once, by its parent.
    fs::remove_dir_all(place.path("a")).expect("removes");
    let events = watching.until("a", REMOVE).await;
    for name in ["a", "a/b", "a/b/c", "a/b/c/file"] {
        let removals = events.iter().filter(|event| **event == (name.to_owned(), REMOVE)).count();
        assert_eq!(removals, 1, "{name} in {events:?}");
    }
}

#[tokio::test]
async fn the_watched_directory_itself() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    for name in ["gone", "moved/sub"] {
        fs::create_dir_all(place.path(name)).expect("creates");
    }
    let mut watching = daemon.watch(Codec::Json, &[], &plain(place.path("gone"))).await.expect("watches");
    let polled = daemon.create_watcher(&place.path("gone"), false).await.expect("watches");
    fs::remove_dir(place.path("gone")).expect("removes");
    assert_eq!(watching.next().await, (".".to_owned(), REMOVE, None));
    assert_eq!(daemon.events(Codec::Json, &polled).await, Ok(told(&[(".", REMOVE)])));
    fs::create_dir(place.path("gone")).expect("creates");
    place.write("gone/file", "x");
    assert_eq!(daemon.events(Codec::Json, &polled).await, Ok(vec![]), "no events, but the watcher is valid");
    let polled = daemon.create_watcher(&place.path("moved"), true).await.expect("watches");
    fs::rename(place.path("moved"), place.path("elsewhere")).expect("renames");
    place.write("elsewhere/sub/before", "x");
    let events = daemon.events(Codec::Json, &polled).await.expect("fetch");
    assert_eq!(events[0], (".".to_owned(), RENAME));
    place.write("elsewhere/sub/after", "x");
    assert_eq!(daemon.events(Codec::Json, &polled).await, Ok(vec![]));
    // A link to a directory is watched like the directory.
    fs::create_dir(place.path("real")).expect("creates");
    std::os::unix::fs::symlink(place.path("real"), place.path("link")).expect("links");
    let polled = daemon.create_watcher(&place.path("link"), true).await.expect("watches");
    place.write("real/file", "x");
    assert_eq!(daemon.events(Codec::Json, &polled).await, Ok(told(&[("file", CREATE), ("file", WRITE)])));
}

// envd: W5
#[tokio::test]
async fn refusals() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    place.write("file", "x");
    for (path, expected) in [
        (place.path("gone"), "not_found"),
        (place.path("file"), "invalid_argument"),
        ("~other/x".to_owned(), "invalid_argument"),
    ] {
        assert_eq!(code(daemon.create_watcher(&path, false).await), expected);
        let refused = daemon.watch(Codec::Json, &[], &plain(path)).await.err().expect("an error");
        assert_eq!(refused.code, expected);
    }
    let unknown = daemon.events(Codec::Json, "wx").await.expect_err("unknown watcher");
    assert_eq!((unknown.code.as_str(), unknown.message.as_str()), ("not_found", "watcher with id wx not found"));
}

// envd: W7
#[tokio::test]
async fn a_removed_watcher_is_gone() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    let id = daemon.create_watcher(&place.path(""), true).await.expect("watches");
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
    let place = Place::new();
    let headers = [("keepalive-ping-interval", "1"), ("connect-timeout-ms", "1500")];
    let mut watching = daemon.watch(Codec::Proto, &headers, &plain(place.path(""))).await.expect("watches");
    assert!(matches!(watching.message().await, Ok(Event::Keepalive(_))));
    let refused = within("the deadline", watching.message()).await.expect_err("deadline exceeded");
    assert_eq!((refused.code.as_str(), refused.message.as_str()), ("deadline_exceeded", "context deadline exceeded"));
}

/// Checks that a watch continues after more events than the kernel queues.
#[tokio::test]
async fn a_flood_drowns_nobody() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    let mut watching = daemon.watch(Codec::Proto, &[], &plain(place.path(""))).await.expect("watches");
    let polled = daemon.create_watcher(&place.path(""), false).await.expect("watches");
    for number in 0..9_000 {
        place.write(&format!("{}", number % 7), "x");
    }
    place.write("last", "x");
    // The pushing watch has read some of them; a newer event arrives in any case.
    let marking = async {
        for number in 0.. {
            place.write(&format!("marker{}", number % 2), "x");
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
