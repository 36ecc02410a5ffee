//! Idempotent requests.

use hearth_store::{Idempotent, IdempotentRequest, IdempotentTimes};
use tokio::task::JoinSet;

use crate::{Fixture, at};

const SECOND: i64 = 1_000_000;

fn times(now: i64) -> IdempotentTimes {
    IdempotentTimes { now: at(now), decided_by: at(now + 60 * SECOND), expires_at: at(now + 3600 * SECOND) }
}

pub(crate) async fn a_key_identifies_one_request(fixture: &Fixture) {
    let store = &fixture.store;
    let (team, other) = (fixture.team("first").await, fixture.team("second").await);
    let request = IdempotentRequest { team_id: team.id, key: "a-1".to_owned(), request: "hash".to_owned() };
    let begin =
        async |request: &IdempotentRequest, now| store.begin_idempotent(request, times(now)).await.expect("a write");
    assert_eq!(begin(&request, 0).await, Idempotent::First);
    assert_eq!(begin(&request, 1).await, Idempotent::Running);
    assert_eq!(begin(&request, 61 * SECOND).await, Idempotent::Unknown);
    let different = IdempotentRequest { request: "other".to_owned(), ..request.clone() };
    assert_eq!(begin(&different, 1).await, Idempotent::Mismatch);
    let foreign = IdempotentRequest { team_id: other.id, ..different.clone() };
    assert_eq!(begin(&foreign, 1).await, Idempotent::First, "each team has its own keys");
    store.finish_idempotent(&request, "answer").await.expect("a write");
    store.release_idempotent(&request).await.expect("a write");
    let done = Idempotent::Done { answer: "answer".to_owned() };
    assert_eq!(begin(&request, 61 * SECOND).await, done, "a stored reply stays");
    assert_eq!(begin(&different, 61 * SECOND).await, Idempotent::Mismatch);
    let again = fixture.open_again().await;
    assert_eq!(again.begin_idempotent(&request, times(2)).await.expect("a read"), done);
    again.close().await;
    assert_eq!(begin(&request, 3600 * SECOND).await, Idempotent::First, "it expired");
    store.release_idempotent(&request).await.expect("a write");
    assert_eq!(begin(&different, 3600 * SECOND).await, Idempotent::First, "the key was released");
    assert_eq!(
        store.delete_expired_idempotent(at(3601 * SECOND)).await.expect("a write"),
        1,
        "the key of the other team"
    );
    assert_eq!(store.delete_expired_idempotent(at(3601 * SECOND)).await.expect("a write"), 0);
}

pub(crate) async fn one_of_many_parallel_calls_is_first(fixture: &Fixture) {
    let team = fixture.team("first").await;
    let request = IdempotentRequest { team_id: team.id, key: "a-1".to_owned(), request: "hash".to_owned() };
    let (one, two) = (fixture.store.clone(), fixture.open_again().await);
    let mut calls = JoinSet::new();
    for number in 0..20 {
        let (store, request) = (if number % 2 == 0 { one.clone() } else { two.clone() }, request.clone());
        calls.spawn(async move { store.begin_idempotent(&request, times(0)).await.expect("a write") });
    }
    let mut outcomes = calls.join_all().await;
    outcomes.sort_by_key(|outcome| *outcome != Idempotent::First);
    assert_eq!(outcomes[0], Idempotent::First);
    assert!(outcomes[1..].iter().all(|outcome| *outcome == Idempotent::Running), "{outcomes:?}");
    two.close().await;
}
