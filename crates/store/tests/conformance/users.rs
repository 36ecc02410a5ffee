//! Users and their teams.

use std::time::Duration;

use hearth_store::{CreateUserError, JoinTeamError, KeySecret, LOGIN_KEYS_MAX, NewUser, Store, Team, User};
use hearth_types::{TeamId, UserId};
use jiff::Timestamp;

use crate::Fixture;

async fn user(store: &Store, email: &str, subject: Option<&str>) -> User {
    let new = NewUser { email: email.to_owned(), subject: subject.map(str::to_owned) };
    store.create_user(new).await.expect("the address is unused")
}

pub(crate) async fn a_user_is_found_as_created(Fixture { store, .. }: &Fixture) {
    let ada = user(store, "ada@example.com", None).await;
    assert_eq!(ada.subject, ada.id.to_string());
    let bob = user(store, "bob@example.com", Some("auth0|17")).await;
    assert_eq!(store.user_by_subject("auth0|17").await.expect("a read"), Some(bob.clone()));
    assert_eq!(store.user_by_subject(&ada.subject).await.expect("a read"), Some(ada.clone()));
    assert_eq!(store.user_by_email("bob@example.com").await.expect("a read"), Some(bob.clone()));
    assert_eq!(store.user_by_subject("").await.expect("a read"), None);
    assert_eq!(store.users().await.expect("a read"), [ada, bob]);
    for (email, subject, is_taken) in [
        ("ada@example.com", None, true),
        ("new@example.com", Some("auth0|17"), true),
        ("ada", None, false),
        ("@example.com", None, false),
        ("ada@", None, false),
        ("a da@example.com", None, false),
        ("ada@example.com\0", None, false),
    ] {
        let new = NewUser { email: email.to_owned(), subject: subject.map(str::to_owned) };
        match store.create_user(new).await {
            Err(CreateUserError::Exists { .. }) => assert!(is_taken, "{email}"),
            Err(CreateUserError::EmailInvalid) => assert!(!is_taken, "{email}"),
            other => panic!("{email}: {other:?}"),
        }
    }
    for subject in [String::new(), "x".repeat(256), "\0".to_owned()] {
        let new = NewUser { email: "new@example.com".to_owned(), subject: Some(subject) };
        assert!(matches!(store.create_user(new).await, Err(CreateUserError::SubjectInvalid)));
    }
}

pub(crate) async fn exactly_one_team_is_the_default(fixture: &Fixture) {
    let store = &fixture.store;
    let ada = user(store, "ada@example.com", None).await;
    assert_eq!(store.memberships(ada.id).await.expect("a read"), []);
    let (first, second, other) =
        (fixture.team("first").await, fixture.team("second").await, fixture.team("other").await);
    for team in [&first, &second, &first] {
        store.join_team(ada.id, team.id).await.expect("both exist");
    }
    let defaults = async || {
        let memberships = store.memberships(ada.id).await.expect("a read");
        memberships.into_iter().map(|membership| (membership.team.slug, membership.is_default)).collect::<Vec<_>>()
    };
    let both = |first: bool| vec![("first".to_owned(), first), ("second".to_owned(), !first)];
    assert_eq!(defaults().await, both(true));
    assert!(store.set_default_team(ada.id, second.id).await.expect("a write"));
    assert_eq!(defaults().await, both(false));
    assert!(store.set_default_team(ada.id, other.id).await.expect("a write"));
    assert_eq!(defaults().await, both(true), "a team that they are not a member of is ignored");
    assert_eq!(store.membership(ada.id, second.id).await.expect("a read"), Some(second.clone()));
    assert_eq!(store.membership(ada.id, other.id).await.expect("a read"), None);
    assert!(store.leave_team(ada.id, first.id).await.expect("a write"));
    assert!(!store.leave_team(ada.id, first.id).await.expect("a write"));
    assert_eq!(defaults().await, [("second".to_owned(), true)]);
    for (user_id, team_id) in [(UserId::generate(), first.id), (ada.id, TeamId::generate())] {
        let error = store.join_team(user_id, team_id).await.expect_err("one does not exist");
        assert!(matches!(error, JoinTeamError::Unknown { .. }), "{error}");
    }
    assert!(!store.set_default_team(UserId::generate(), first.id).await.expect("a write"));
}

pub(crate) async fn keys_outlive_their_creator(fixture: &Fixture) {
    let store = &fixture.store;
    let (team, ada) = (fixture.team("first").await, user(&fixture.store, "ada@example.com", None).await);
    store.join_team(ada.id, team.id).await.expect("both exist");
    let secret = KeySecret::generate();
    let key = store.create_api_key_by(Some(ada.id), team.id, "hers", &secret).await.expect("a new key");
    assert_eq!(key.created_by, Some(ada.id));
    assert_eq!(store.api_keys(team.id).await.expect("a read"), [(key, Some(ada.clone()))]);
    assert!(store.delete_user(ada.id).await.expect("a write"));
    assert!(!store.delete_user(ada.id).await.expect("a write"));
    assert_eq!(store.memberships(ada.id).await.expect("a read"), []);
    let keys = store.api_keys(team.id).await.expect("a read");
    assert_eq!((keys.len(), keys[0].0.created_by, &keys[0].1), (1, None, &None));
    assert!(store.authenticate(&secret.hash()).await.expect("a read").is_some());
}

pub(crate) async fn keys_for_logins_replace_each_other(fixture: &Fixture) {
    let (store, team, other) = (&fixture.store, fixture.team("first").await, fixture.team("second").await);
    let ada = user(store, "ada@example.com", None).await.id;
    let bob = user(store, "bob@example.com", None).await.id;
    let make = async |user, team: &Team| {
        store.create_login_key(user, team.id, "login", &KeySecret::generate()).await.expect("a new key").id
    };
    let hers =
        store.create_api_key_by(Some(ada), team.id, "login", &KeySecret::generate()).await.expect("a new key").id;
    let (bobs, elsewhere) = (make(bob, &team).await, make(ada, &other).await);
    let max = usize::try_from(LOGIN_KEYS_MAX).expect("small");
    let mut made = Vec::new();
    for _ in 0..max {
        made.push(make(ada, &team).await);
    }
    // The oldest key was used recently, so the next one is deleted.
    store.touch_api_key(made[0], Timestamp::now() + Duration::from_secs(60)).await.expect("a write");
    for _ in 0..3 {
        made.push(make(ada, &team).await);
    }
    let keys = store.api_keys(team.id).await.expect("a read");
    let mut remaining: Vec<_> = keys.into_iter().map(|(key, _)| key.id).collect();
    let mut expected = [&[hers, bobs, made[0]][..], &made[4..]].concat();
    remaining.sort();
    expected.sort();
    assert_eq!(remaining, expected);
    let elsewhere_remaining: Vec<_> =
        store.api_keys(other.id).await.expect("a read").into_iter().map(|(key, _)| key.id).collect();
    assert_eq!(elsewhere_remaining, [elsewhere]);
}
