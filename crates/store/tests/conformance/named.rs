//! Requests that name themselves.

use hearth_store::{Named, NamedRequest, NamedTimes};
use tokio::task::JoinSet;

use crate::{Fixture, at};

const SECOND: i64 = 1_000_000;

fn times(now: i64) -> NamedTimes {
    NamedTimes { now: at(now), decided_by: at(now + 60 * SECOND), expires_at: at(now + 3600 * SECOND) }
}

pub(crate) async fn a_name_is_one_request(fixture: &Fixture) {
    let store = &fixture.store;
    let (team, other) = (fixture.team("first").await, fixture.team("second").await);
    let request = NamedRequest { team_id: team.id, key: "a-1".to_owned(), request: "hash".to_owned() };
    let begin = async |request: &NamedRequest, now| store.begin_named(request, times(now)).await.expect("a write");
    assert_eq!(begin(&request, 0).await, Named::First);
    assert_eq!(begin(&request, 1).await, Named::Running);
    assert_eq!(begin(&request, 61 * SECOND).await, Named::Unknown);
    let different = NamedRequest { request: "other".to_owned(), ..request.clone() };
    assert_eq!(begin(&different, 1).await, Named::Mismatch);
    let foreign = NamedRequest { team_id: other.id, ..different.clone() };
    assert_eq!(begin(&foreign, 1).await, Named::First, "each team has its own names");
    store.finish_named(&request, "answer").await.expect("a write");
    store.forget_named(&request).await.expect("a write");
    let done = Named::Done { answer: "answer".to_owned() };
    assert_eq!(begin(&request, 61 * SECOND).await, done, "what was answered stays");
    assert_eq!(begin(&different, 61 * SECOND).await, Named::Mismatch);
    let again = fixture.open_again().await;
    assert_eq!(again.begin_named(&request, times(2)).await.expect("a read"), done);
    again.close().await;
    assert_eq!(begin(&request, 3600 * SECOND).await, Named::First, "it expired");
    store.forget_named(&request).await.expect("a write");
    assert_eq!(begin(&different, 3600 * SECOND).await, Named::First, "nothing came of it");
    assert_eq!(store.forget_expired_named(at(3601 * SECOND)).await.expect("a write"), 1, "that of the other team");
    assert_eq!(store.forget_expired_named(at(3601 * SECOND)).await.expect("a write"), 0);
}

pub(crate) async fn one_of_many_is_the_first(fixture: &Fixture) {
    let team = fixture.team("first").await;
    let request = NamedRequest { team_id: team.id, key: "a-1".to_owned(), request: "hash".to_owned() };
    let (one, two) = (fixture.store.clone(), fixture.open_again().await);
    let mut calls = JoinSet::new();
    for number in 0..20 {
        let (store, request) = (if number % 2 == 0 { one.clone() } else { two.clone() }, request.clone());
        calls.spawn(async move { store.begin_named(&request, times(0)).await.expect("a write") });
    }
    let mut outcomes = calls.join_all().await;
    outcomes.sort_by_key(|outcome| *outcome != Named::First);
    assert_eq!(outcomes[0], Named::First);
    assert!(outcomes[1..].iter().all(|outcome| *outcome == Named::Running), "{outcomes:?}");
    two.close().await;
}
