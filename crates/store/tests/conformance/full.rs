//! Full disks, and recovery once there is space again.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use futures::future::join_all;
use hearth_store::{Config, CreateTeamError, Error, InsertSandboxError, NewTeam, Sandbox, Store, Team};
use hearth_store::{KeySecret, Limits};

use crate::small_disk::SmallDisk;
use crate::{Fixture, postgres, sandbox, texts};

/// Writes after the first failed one: each may get a connection that another failed write used.
const FAILURES: usize = 20;
const MIB: usize = 1024 * 1024;

async fn create_team(store: &Store, slug: String) -> Result<Team, CreateTeamError> {
    store.create_team(NewTeam { name: slug.clone(), slug, limits: Limits::STANDARD }).await
}

/// Writes until the disk is full.
async fn write_until_full(store: &Store) {
    for number in 0..10_000 {
        match create_team(store, format!("before-{number}")).await {
            Ok(_) => {}
            Err(CreateTeamError::Store(error)) => return assert_full(&error),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the disk is never full");
}

fn assert_full(error: &Error) {
    assert!(error.is_full() && !error.is_effect_unknown(), "{error:?}");
}

/// Polls a call at most this many times, then drops it.
async fn drop_after<T>(polls: usize, call: impl Future<Output = T>) {
    let mut call = pin!(call);
    for _ in 0..polls {
        let is_ready = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await;
        if is_ready {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_full_disk_is_reported_and_recovered_from() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let config = Config::sqlite(&disk.path().join("hearth.db")).expect("the path is UTF-8");
    let store = Store::open(&config).await.expect("an empty database");
    let fixture = Fixture { store: store.clone(), config, folder: tempfile::tempdir().expect("a folder") };
    let (team, build) = (fixture.team("first").await, fixture.base().await);
    let big = Sandbox { env_vars: texts([("BIG", &"x".repeat(4 * MIB))]), ..sandbox(&team, &build) };

    disk.fill();
    write_until_full(&store).await;
    for number in 0..FAILURES {
        // The first fails at its commit, the second before: its rows do not fit into SQLite's page cache.
        let small = create_team(&store, format!("meanwhile-{number}")).await;
        assert!(matches!(&small, Err(CreateTeamError::Store(error)) if error.is_full()), "{small:?}");
        let large = store.insert_sandbox(&big).await;
        assert!(matches!(&large, Err(InsertSandboxError::Store(error)) if error.is_full()), "{large:?}");
        drop_after(number, create_team(&store, format!("dropped-{number}"))).await;
        drop_after(number, store.insert_sandbox(&big)).await;
        assert_eq!(store.team(team.id).await.expect("a read"), Some(team.clone()));
    }

    disk.free_space();
    for number in 0..FAILURES {
        create_team(&store, format!("after-{number}")).await.expect("there is space");
        store.create_api_key(team.id, "laptop", &KeySecret::generate()).await.expect("there is space");
    }
    for created in join_all((0..FAILURES).map(|number| create_team(&store, format!("parallel-{number}")))).await {
        created.expect("there is space");
    }
    let teams = store.teams().await.expect("a read");
    let with_prefix = |prefix: &str| teams.iter().filter(|team| team.slug.starts_with(prefix)).count();
    assert_eq!(with_prefix("after-") + with_prefix("parallel-"), 2 * FAILURES);
    assert_eq!(with_prefix("meanwhile-") + with_prefix("dropped-"), 0, "failed writes had no effect");
    store.close().await;
}

/// Only the tables are on the disk that fills up, not the log: a server that cannot write its log stops.
#[tokio::test]
async fn a_full_disk_of_postgres_is_reported_and_recovered_from() {
    let Some(disk) = SmallDisk::mount(32) else { return };
    let server = postgres::Server::start().await;
    let config = server.create_on("full", disk.path()).await;
    let store = Store::open(&config).await.expect("an empty database");
    let fixture = Fixture { store: store.clone(), config, folder: tempfile::tempdir().expect("a folder") };
    let team = fixture.team("first").await;

    disk.fill();
    write_until_full(&store).await;
    for number in 0..FAILURES {
        let rejected = create_team(&store, format!("meanwhile-{number}")).await;
        assert!(matches!(&rejected, Err(CreateTeamError::Store(error)) if error.is_full()), "{rejected:?}");
        drop_after(number, create_team(&store, format!("dropped-{number}"))).await;
        assert_eq!(store.team(team.id).await.expect("a read"), Some(team.clone()));
    }

    disk.free_space();
    for created in join_all((0..FAILURES).map(|number| create_team(&store, format!("after-{number}")))).await {
        created.expect("there is space");
    }
    store.close().await;
}

/// A connection whose commit failed is not used again; others are.
pub(crate) async fn a_connection_whose_commit_failed_is_closed(server: &postgres::Server) {
    const BREAK: &str = "
        CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'no'; END $$ LANGUAGE plpgsql;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON team DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION refuse();";
    let fixture = Fixture::postgres(server, "failed_commit").await;
    fixture.team("first").await;
    let before = server.connections("failed_commit").await;
    fixture.tamper(BREAK).await;
    let rejected = create_team(&fixture.store, "second".to_owned()).await;
    assert!(matches!(&rejected, Err(CreateTeamError::Store(Error::Commit { .. }))), "{rejected:?}");
    fixture.tamper("DROP TRIGGER refuse ON team").await;
    fixture.team("third").await;
    let after = server.connections("failed_commit").await;
    assert_eq!(before.difference(&after).count(), 1, "{before:?} {after:?}");
    fixture.store.close().await;
}
