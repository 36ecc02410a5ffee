//! Sandboxes: limits, fencing, states, end times.

use std::time::Duration;

use hearth_store::{
    Error, Expiry, InsertSandboxError, Sandbox, SandboxState, StartedSandbox, StateMove, Store, UpdateSandboxError,
};
use hearth_types::{BuildId, ExecutionId, Ingress, Resources, SandboxId, TeamId, TemplateId};
use tokio::task::JoinSet;

use crate::{Fixture, at, sandbox, texts};

const KILL: StateMove = StateMove { from: SandboxState::Running, to: SandboxState::Killing };

async fn read(store: &Store, sandbox: &Sandbox) -> Option<Sandbox> {
    store.sandbox(&sandbox.sandbox_id).await.expect("a read")
}

fn started() -> StartedSandbox {
    StartedSandbox { started_at: at(20_000_000), end_at: at(320_000_000), envd_version: "0.6.5".to_owned() }
}

async fn running(fixture: &Fixture) -> Sandbox {
    let sandbox = sandbox(&fixture.team("first").await, &fixture.base().await);
    fixture.store.insert_sandbox(&sandbox).await.expect("the limit is not reached");
    let Sandbox { sandbox_id, execution_id, .. } = &sandbox;
    fixture.store.update_sandbox_running(sandbox_id, *execution_id, started()).await.expect("it is creating");
    read(&fixture.store, &sandbox).await.expect("it exists")
}

pub(crate) async fn a_sandbox_is_read_as_written(fixture: &Fixture) {
    let store = &fixture.store;
    let plain = sandbox(&fixture.team("first").await, &fixture.base().await);
    let strange = Sandbox {
        sandbox_id: SandboxId::generate(),
        alias: None,
        state: SandboxState::Killing,
        metadata: texts([("", ""), ("ключ", "значение\n\t\"'\\"), ("a.b", "{\"c\": [1]}")]),
        env_vars: texts([("PATH", "/bin:/usr/bin"), ("EMPTY", "")]),
        secured: false,
        allow_internet_access: Some(false),
        ingress: Ingress {
            public: false,
            host_mask: Some("localhost:${PORT}".parse().expect("a mask")),
            https_ports: [443, 8443].into(),
        },
        timeout: Duration::from_millis(86_400_001),
        started_at: at(-1),
        end_at: at(i64::from(u32::MAX) * 1_000_000),
        resources: Resources { vcpus: 1, memory_mib: u32::MAX, disk_mib: 0 },
        ..plain.clone()
    };
    assert_eq!(read(store, &plain).await, None);
    for sandbox in [&plain, &strange] {
        store.insert_sandbox(sandbox).await.expect("the limit is not reached");
        assert_eq!(read(store, sandbox).await.as_ref(), Some(sandbox));
        let again = store.insert_sandbox(sandbox).await;
        assert!(matches!(again, Err(InsertSandboxError::Exists { sandbox_id }) if sandbox_id == sandbox.sandbox_id));
    }
    let nanos = plain.started_at + Duration::from_nanos(999);
    let precise = Sandbox { sandbox_id: SandboxId::generate(), started_at: nanos, ..plain.clone() };
    store.insert_sandbox(&precise).await.expect("the limit is not reached");
    assert_eq!(
        read(store, &precise).await.map(|read| read.started_at),
        Some(plain.started_at),
        "truncated, not rounded"
    );
}

pub(crate) async fn dangling_references_are_rejected(fixture: &Fixture) {
    let store = &fixture.store;
    let sandbox = sandbox(&fixture.team("first").await, &fixture.base().await);
    for dangling in [
        Sandbox { team_id: TeamId::generate(), ..sandbox.clone() },
        Sandbox { template_id: TemplateId::generate(), ..sandbox.clone() },
        Sandbox { build_id: BuildId::generate(), ..sandbox.clone() },
    ] {
        let rejection = store.insert_sandbox(&dangling).await;
        assert!(matches!(rejection, Err(InsertSandboxError::Dangling { .. })), "{rejection:?}");
        assert_eq!(read(store, &sandbox).await, None);
    }
}

pub(crate) async fn parallel_inserts_reach_the_limit_exactly(fixture: &Fixture) {
    let (team, other, build) = (fixture.team("first").await, fixture.team("second").await, fixture.base().await);
    let stores = [fixture.store.clone(), fixture.open_again().await];
    let mut inserts = JoinSet::new();
    for number in 0..50 {
        let (store, sandbox) = (stores[number % stores.len()].clone(), sandbox(&team, &build));
        inserts.spawn(async move {
            match store.insert_sandbox(&sandbox).await {
                Ok(()) => true,
                Err(InsertSandboxError::LimitReached { max: 20 }) => false,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let won = inserts.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 20);
    assert_eq!(fixture.store.sandboxes().await.expect("a read").len(), 20);
    fixture.store.insert_sandbox(&sandbox(&other, &build)).await.expect("another team has its own limit");
    stores[1].close().await;
}

pub(crate) async fn deleting_the_row_frees_its_place_in_the_limit(fixture: &Fixture) {
    let store = &fixture.store;
    let (team, build) = (fixture.team("first").await, fixture.base().await);
    fixture.tamper("UPDATE team SET sandboxes_max = 1").await;
    let first = sandbox(&team, &build);
    store.insert_sandbox(&first).await.expect("the limit is not reached");
    let full = async || {
        matches!(store.insert_sandbox(&sandbox(&team, &build)).await, Err(InsertSandboxError::LimitReached { max: 1 }))
    };
    assert!(full().await, "while creating");
    store.update_sandbox_running(&first.sandbox_id, first.execution_id, started()).await.expect("it is creating");
    assert!(full().await, "while running");
    store.set_sandbox_state(&first.sandbox_id, first.execution_id, KILL).await.expect("it is running");
    assert!(full().await, "while killing: it still uses its node's memory");
    store.delete_sandbox(&first.sandbox_id, first.execution_id).await.expect("it exists");
    store.insert_sandbox(&sandbox(&team, &build)).await.expect("the limit is not reached");
    fixture.tamper("UPDATE team SET sandboxes_max = 0").await;
    let rejection = store.insert_sandbox(&sandbox(&team, &build)).await;
    assert!(matches!(rejection, Err(InsertSandboxError::LimitReached { max: 0 })), "the current limit of the row");
}

pub(crate) async fn a_sandbox_runs_and_is_deleted(fixture: &Fixture) {
    let store = &fixture.store;
    let sandbox = sandbox(&fixture.team("first").await, &fixture.base().await);
    store.insert_sandbox(&sandbox).await.expect("the limit is not reached");
    let (id, execution) = (&sandbox.sandbox_id, sandbox.execution_id);
    store.update_sandbox_running(id, execution, started()).await.expect("it is creating");
    let StartedSandbox { started_at, end_at, envd_version } = started();
    let mut expected = Sandbox { state: SandboxState::Running, started_at, end_at, envd_version, ..sandbox.clone() };
    assert_eq!(read(store, &sandbox).await.as_ref(), Some(&expected), "nothing else changes");
    for end in [at(400_000_000), at(30_000_000)] {
        store.set_sandbox_end(id, execution, end).await.expect("it is running");
        expected.end_at = end;
        assert_eq!(read(store, &sandbox).await.as_ref(), Some(&expected), "later or sooner");
    }
    store.set_sandbox_state(id, execution, KILL).await.expect("it is running");
    expected.state = SandboxState::Killing;
    assert_eq!(read(store, &sandbox).await, Some(expected));
    store.delete_sandbox(id, execution).await.expect("it exists");
    assert_eq!(read(store, &sandbox).await, None);
    let again = store.delete_sandbox(id, execution).await;
    assert!(matches!(again, Err(UpdateSandboxError::NotFound { .. })));
}

pub(crate) async fn a_late_creation_does_not_revive_a_killed_sandbox(fixture: &Fixture) {
    let store = &fixture.store;
    let sandbox = sandbox(&fixture.team("first").await, &fixture.base().await);
    store.insert_sandbox(&sandbox).await.expect("the limit is not reached");
    let kill = StateMove { from: SandboxState::Creating, to: SandboxState::Killing };
    store.set_sandbox_state(&sandbox.sandbox_id, sandbox.execution_id, kill).await.expect("it is creating");
    let late = store.update_sandbox_running(&sandbox.sandbox_id, sandbox.execution_id, started()).await;
    assert!(matches!(late, Err(UpdateSandboxError::WrongState { state: SandboxState::Killing, .. })));
    let expected = Sandbox { state: SandboxState::Killing, ..sandbox.clone() };
    assert_eq!(read(store, &sandbox).await, Some(expected));
}

/// Attempts every kind of change and returns the results.
async fn all_changes(store: &Store, id: &SandboxId, execution: ExecutionId) -> Vec<Result<(), UpdateSandboxError>> {
    vec![
        store.update_sandbox_running(id, execution, started()).await,
        store.set_sandbox_state(id, execution, KILL).await,
        store.set_sandbox_end(id, execution, at(1)).await,
        store.extend_sandbox_end(id, execution, at(900_000_000)).await.map(drop),
        store.expire_sandbox(id, execution, at(900_000_000)).await.map(drop),
    ]
}

pub(crate) async fn stale_executions_change_nothing(fixture: &Fixture) {
    let store = &fixture.store;
    let sandbox = running(fixture).await;
    let stale = ExecutionId::generate();
    let mut rejections = all_changes(store, &sandbox.sandbox_id, stale).await;
    rejections.push(store.delete_sandbox(&sandbox.sandbox_id, stale).await);
    for rejection in rejections {
        assert!(
            matches!(rejection, Err(UpdateSandboxError::Superseded { current, .. }) if current == sandbox.execution_id)
        );
        assert_eq!(read(store, &sandbox).await.as_ref(), Some(&sandbox));
    }
    let missing = SandboxId::generate();
    let mut rejections = all_changes(store, &missing, sandbox.execution_id).await;
    rejections.push(store.delete_sandbox(&missing, sandbox.execution_id).await);
    for rejection in rejections {
        assert!(matches!(rejection, Err(UpdateSandboxError::NotFound { sandbox_id }) if sandbox_id == missing));
    }
    assert_eq!(store.sandboxes().await.expect("a read"), [sandbox]);
}

pub(crate) async fn changes_are_rejected_in_another_state(fixture: &Fixture) {
    let store = &fixture.store;
    let sandbox = running(fixture).await;
    store.set_sandbox_state(&sandbox.sandbox_id, sandbox.execution_id, KILL).await.expect("it is running");
    for rejection in all_changes(store, &sandbox.sandbox_id, sandbox.execution_id).await {
        assert!(matches!(rejection, Err(UpdateSandboxError::WrongState { state: SandboxState::Killing, .. })));
    }
    let expected = Sandbox { state: SandboxState::Killing, ..sandbox.clone() };
    assert_eq!(read(store, &sandbox).await, Some(expected));
    // Of many parallel changes that start from the same state, exactly one succeeds.
    store.delete_sandbox(&sandbox.sandbox_id, sandbox.execution_id).await.expect("it exists");
    store
        .insert_sandbox(&Sandbox { state: SandboxState::Running, ..sandbox.clone() })
        .await
        .expect("the limit is not reached");
    let mut kills = JoinSet::new();
    for _ in 0..20 {
        let (store, sandbox) = (store.clone(), sandbox.clone());
        kills.spawn(
            async move { store.set_sandbox_state(&sandbox.sandbox_id, sandbox.execution_id, KILL).await.is_ok() },
        );
    }
    assert_eq!(kills.join_all().await.into_iter().filter(|won| *won).count(), 1);
}

pub(crate) async fn extending_never_shortens(fixture: &Fixture) {
    let store = &fixture.store;
    let sandbox = running(fixture).await;
    let (id, execution) = (&sandbox.sandbox_id, sandbox.execution_id);
    let end = sandbox.end_at;
    for (requested, stored) in [
        (end - Duration::from_secs(1), end),
        (end, end),
        (end + Duration::from_nanos(999), end),
        (end + Duration::from_micros(1), end + Duration::from_micros(1)),
        (end, end + Duration::from_micros(1)),
    ] {
        assert_eq!(store.extend_sandbox_end(id, execution, requested).await.expect("it is running"), stored);
        assert_eq!(read(store, &sandbox).await.map(|read| read.end_at), Some(stored));
    }
    let mut extensions = JoinSet::new();
    for second in 1..=20 {
        let (store, id) = (store.clone(), id.clone());
        let requested = end + Duration::from_secs(second);
        extensions.spawn(async move {
            store.extend_sandbox_end(&id, execution, requested).await.expect("it is running") >= requested
        });
    }
    assert!(extensions.join_all().await.into_iter().all(|long_enough| long_enough));
    assert_eq!(read(store, &sandbox).await.map(|read| read.end_at), Some(end + Duration::from_secs(20)));
}

pub(crate) async fn expiry_and_extension_exclude_each_other(fixture: &Fixture) {
    let store = &fixture.store;
    let template = running(fixture).await;
    let (id, execution) = (&template.sandbox_id, template.execution_id);
    let end = template.end_at;
    let not_due = store.expire_sandbox(id, execution, end - Duration::from_micros(1)).await.expect("it is running");
    assert_eq!(not_due, Expiry::NotDue { end_at: end });
    assert_eq!(read(store, &template).await.as_ref(), Some(&template));
    assert_eq!(store.expire_sandbox(id, execution, end).await.expect("it is running"), Expiry::Due);
    store.delete_sandbox(id, execution).await.expect("it exists");
    for round in 0..20 {
        let sandbox = Sandbox { sandbox_id: SandboxId::generate(), ..template.clone() };
        store.insert_sandbox(&sandbox).await.expect("the limit is not reached");
        let later = end + Duration::from_secs(60);
        let extend = store.extend_sandbox_end(&sandbox.sandbox_id, execution, later);
        let expire = store.expire_sandbox(&sandbox.sandbox_id, execution, end);
        let (extended, expired) = if round % 2 == 0 {
            tokio::join!(extend, expire)
        } else {
            let (expired, extended) = tokio::join!(expire, extend);
            (extended, expired)
        };
        let state = read(store, &sandbox).await.map(|read| read.state);
        match (extended, expired) {
            (Ok(until), Ok(Expiry::NotDue { end_at })) => {
                assert_eq!((until, end_at, state), (later, later, Some(SandboxState::Running)));
            }
            (Err(UpdateSandboxError::WrongState { state: reported, .. }), Ok(Expiry::Due)) => {
                assert_eq!((reported, state), (SandboxState::Killing, Some(SandboxState::Killing)));
            }
            other => panic!("the outcomes contradict each other: {other:?}"),
        }
        store.delete_sandbox(&sandbox.sandbox_id, execution).await.expect("it exists");
    }
}

pub(crate) async fn a_damaged_row_is_reported(fixture: &Fixture) {
    let store = &fixture.store;
    let sandbox = running(fixture).await;
    for (column, value, repair) in [
        ("state", "'flying'", "'running'"),
        ("vcpus", "-1", "2"),
        ("timeout_ms", "-1", "1000"),
        ("node_id", "'not a node'", "'node-1'"),
    ] {
        fixture.tamper(&format!("UPDATE sandbox SET {column} = {value}")).await;
        let error = store.sandbox(&sandbox.sandbox_id).await.expect_err(column);
        assert!(
            matches!(&error, Error::Damaged { table: "sandbox", id, column: reported, .. }
            if *reported == column && *id == sandbox.sandbox_id.to_string()),
            "{error}"
        );
        assert!(!error.is_retryable() && !error.is_effect_unknown());
        fixture.tamper(&format!("UPDATE sandbox SET {column} = {repair}")).await;
    }
    fixture.tamper("UPDATE sandbox SET metadata = '[1]'").await;
    let error = store.sandbox(&sandbox.sandbox_id).await.expect_err("metadata");
    assert!(matches!(error, Error::Query { .. }), "{error}");
}

pub(crate) async fn dropped_calls_are_atomic(fixture: &Fixture) {
    let (team, build) = (fixture.team("first").await, fixture.base().await);
    fixture.tamper("UPDATE team SET sandboxes_max = 1000").await;
    let mut inserted = Vec::new();
    for yields in 0..60 {
        let (store, sandbox) = (fixture.store.clone(), sandbox(&team, &build));
        inserted.push(sandbox.clone());
        let insert = tokio::spawn(async move { store.insert_sandbox(&sandbox).await });
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        insert.abort();
        let _ = insert.await;
    }
    for sandbox in inserted {
        match read(&fixture.store, &sandbox).await {
            Some(read) => assert_eq!(read, sandbox),
            None => fixture.store.insert_sandbox(&sandbox).await.expect("the insert had no effect"),
        }
    }
    assert_eq!(fixture.store.sandboxes().await.expect("a read").len(), 60);
}
