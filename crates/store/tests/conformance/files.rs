//! Opening and closing; behaviour of databases in files only.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use hearth_store::{Config, Error, KeySecret, Store};
use tokio::task::JoinSet;

use crate::{Fixture, reference, sandbox};

pub(crate) async fn rows_survive_reopening(fixture: &Fixture) {
    let (team, build) = (fixture.team("first").await, fixture.base().await);
    let secret = KeySecret::generate();
    let key = fixture.store.create_api_key(team.id, "laptop", &secret).await.expect("a new key");
    let sandbox = sandbox(&team, &build);
    fixture.store.insert_sandbox(&sandbox).await.expect("the limit is not reached");
    let resolved = fixture.store.resolve(&reference("base"), &team).await.expect("registered");
    for closes_before in [true, false] {
        if closes_before {
            fixture.store.close().await;
        }
        let store = fixture.open_again().await;
        assert_eq!(store.authenticate(&secret.hash()).await.expect("a read"), Some((team.clone(), key.clone())));
        assert_eq!(store.resolve(&reference("base"), &team).await.expect("registered"), resolved);
        assert_eq!(store.sandboxes().await.expect("a read"), std::slice::from_ref(&sandbox));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_empty_database_can_be_opened_in_parallel() {
    let folder = tempfile::tempdir().expect("a folder");
    many_open(&Config::sqlite(&folder.path().join("hearth.db")).expect("the path is UTF-8")).await;
}

/// Opens an empty database several times in parallel: one call creates the tables, and all succeed.
pub(crate) async fn many_open(config: &Config) {
    let mut opening = JoinSet::new();
    for number in 0..8 {
        let config = config.clone();
        opening.spawn(async move {
            let store = Store::open(&config).await.expect("it opens");
            let fixture = Fixture { store, config, folder: tempfile::tempdir().expect("a folder") };
            fixture.team(&format!("team-{number}")).await;
            fixture.store
        });
    }
    for store in opening.join_all().await {
        for number in 0..8 {
            assert!(store.team_by_slug(&format!("team-{number}")).await.expect("a read").is_some());
        }
        store.close().await;
    }
}

pub(crate) async fn a_newer_database_is_rejected_unchanged(fixture: &Fixture) {
    let team = fixture.team("first").await;
    fixture.tamper("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_flying_cars', 0)").await;
    let error = Store::open(&fixture.config).await.expect_err("newer");
    assert!(matches!(&error, Error::Newer { migration, .. } if migration == "m9999_flying_cars"), "{error}");
    assert!(error.to_string().contains("newer version of Hearth"), "{error}");
    fixture.tamper("DELETE FROM seaql_migrations WHERE version = 'm9999_flying_cars'").await;
    let store = fixture.open_again().await;
    assert_eq!(store.team(team.id).await.expect("a read"), Some(team));
}

#[tokio::test]
async fn other_users_cannot_read_it() {
    let fixture = Fixture::sqlite().await;
    fixture.team("first").await;
    let mut seen = Vec::new();
    for entry in fs::read_dir(fixture.folder.path()).expect("the folder") {
        let entry = entry.expect("an entry");
        assert_eq!(entry.metadata().expect("metadata").permissions().mode() & 0o777, 0o600, "{entry:?}");
        seen.push(entry.file_name());
    }
    assert!(seen.iter().any(|name| name == "hearth.db") && seen.iter().any(|name| name == "hearth.db-wal"), "{seen:?}");
}

#[tokio::test]
async fn paths_that_look_like_urls_are_paths() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a b.db", "a?mode=memory.db", "a#b.db", "100%25.db", "ä.db"] {
        let path = folder.path().join(name);
        let config = Config::sqlite(&path).expect("the path is UTF-8");
        let store = Store::open(&config).await.expect(name);
        store.close().await;
        assert!(path.is_file(), "{name}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 5, "no other files");
}

#[tokio::test]
async fn invalid_addresses_and_files_are_rejected() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let open = async |url: String| Store::open(&Config { url }).await.map(drop).expect_err("rejected");
    for url in [
        "",
        "hearth.db",
        "mysql://user:hunter2@host/db",
        "postgres://user:hunter2@host",
        "postgres:",
        "sqlite::memory:",
        "sqlite://?mode=memory",
        "sqlite:",
        "sqlite://x.db?a=b",
    ] {
        let error = open(url.to_owned()).await;
        assert!(matches!(error, Error::Unsupported { .. }), "{url}: {error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let missing = open(format!("sqlite://{}?mode=rw", path("missing.db"))).await;
    assert!(matches!(missing, Error::Open { .. }), "{missing}");
    assert!(!fs::exists(path("missing.db")).expect("metadata"));
    let elsewhere = open(format!("sqlite://{}?mode=rwc", path("no/such/folder.db"))).await;
    assert!(matches!(elsewhere, Error::CreateFile { .. }), "{elsewhere}");
    fs::write(path("letter.txt"), "Dear database,\n".repeat(1000)).expect("a file");
    let letter = open(format!("sqlite://{}?mode=rwc", path("letter.txt"))).await;
    assert!(matches!(letter, Error::Open { .. }), "{letter}");
    assert!(!letter.is_retryable());
    assert!(
        fs::read_to_string(path("letter.txt")).expect("the file").starts_with("Dear database"),
        "the file is unchanged"
    );
}

pub(crate) async fn a_closed_store_fails(fixture: &Fixture) {
    let clone = fixture.store.clone();
    fixture.store.close().await;
    fixture.store.close().await;
    let error = clone.sandboxes().await.expect_err("closed");
    assert!(matches!(error, Error::Query { .. }), "{error}");
    assert!(!error.is_effect_unknown());
}
