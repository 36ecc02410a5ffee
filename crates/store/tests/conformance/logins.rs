//! Passwords of users, and where they are logged in.

use hearth_store::{LoginTimes, NewUser, PasswordHash, Proof, RefreshToken, Renewed, Store, User};
use hearth_types::{Secret, UserId};
use tokio::task::JoinSet;

use crate::{Fixture, at};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 24 * 3600 * SECOND;

async fn user(store: &Store, email: &str) -> User {
    store.create_user(NewUser { email: email.to_owned(), subject: None }).await.expect("nobody has the address")
}

async fn hash(text: &'static str) -> PasswordHash {
    let hashing = tokio::task::spawn_blocking(move || PasswordHash::of(&Secret::new(text)));
    hashing.await.expect("no panic").expect("long enough")
}

fn times(now: i64) -> LoginTimes {
    LoginTimes { now: at(now), expires_at: at(now + DAY) }
}

async fn log_in(store: &Store, user: &User, now: i64) -> RefreshToken {
    let begun = store.begin_login(user.id, Proof::Issuer, times(now)).await.expect("a write");
    let (login, token) = begun.expect("they are there");
    assert_eq!((&login.user, login.expires_at), (user, at(now + DAY)));
    token
}

/// Whether a token leads on, and to what.
async fn renew(store: &Store, token: &RefreshToken, now: i64) -> Result<RefreshToken, &'static str> {
    match store.renew_login(token, at(now)).await.expect("a write") {
        Renewed::Renewed(_, next) => Ok(next),
        Renewed::Unknown => Err("unknown"),
        Renewed::Reused { .. } => Err("reused"),
    }
}

pub(crate) async fn a_password_is_set_changed_and_removed(Fixture { store, .. }: &Fixture) {
    let (ada, bob) = (user(store, "ada@example.com").await, user(store, "bob@example.com").await);
    let (first, second) = (hash("the first password").await, hash("the second password").await);
    assert!(!store.has_passwords().await.expect("a read"));
    assert!(!store.set_password(UserId::generate(), Some(&first)).await.expect("a write"));
    let theirs = async || store.password_by_email("ada@example.com").await.expect("a read");
    assert_eq!(theirs().await, None);
    for password in [&first, &second] {
        let token = log_in(store, &ada, 0).await;
        let others = log_in(store, &bob, 0).await;
        assert!(store.set_password(ada.id, Some(password)).await.expect("a write"));
        assert_eq!(theirs().await, Some((ada.clone(), password.clone())));
        assert_eq!(renew(store, &token, 1).await.err(), Some("unknown"), "a new password ends logins");
        assert!(renew(store, &others, 1).await.is_ok(), "but not those of others");
    }
    assert!(store.has_password(ada.id).await.expect("a read") && store.has_passwords().await.expect("a read"));
    assert!(!store.has_password(bob.id).await.expect("a read"));
    // What was verified a moment ago need not be the password any more.
    for (proof, is_let_in) in [(&first, false), (&second, true)] {
        let begun = store.begin_login(ada.id, Proof::Password(proof), times(0)).await.expect("a write");
        assert_eq!(begun.is_some(), is_let_in);
    }
    assert!(store.set_password(ada.id, None).await.expect("a write"));
    assert_eq!(theirs().await, None);
    assert!(store.begin_login(ada.id, Proof::Password(&second), times(0)).await.expect("a write").is_none());
}

pub(crate) async fn a_used_refresh_token_ends_its_login(fixture: &Fixture) {
    let store = &fixture.store;
    let ada = user(store, "ada@example.com").await;
    let (first, other) = (log_in(store, &ada, 0).await, log_in(store, &ada, 0).await);
    let second = renew(store, &first, 1).await.expect("the newest");
    let Renewed::Renewed(login, third) = store.renew_login(&second, at(2)).await.expect("a write") else {
        panic!("the newest leads on");
    };
    assert_eq!((&login.user, login.expires_at), (&ada, at(DAY)), "renewing does not make it last longer");
    assert_eq!(store.user_by_login(login.id, at(2)).await.expect("a read"), Some(ada.clone()));
    let reused = store.renew_login(&first, at(3)).await.expect("a write");
    assert!(matches!(reused, Renewed::Reused { id, user_id } if id == login.id && user_id == ada.id), "{reused:?}");
    for token in [&first, &second, &third] {
        assert_eq!(renew(store, token, 4).await.err(), Some("unknown"), "all of it is over");
    }
    assert_eq!(store.user_by_login(login.id, at(4)).await.expect("a read"), None);
    let again = fixture.open_again().await;
    assert!(renew(&again, &other, 4).await.is_ok(), "other logins go on, also after a restart");
    again.close().await;
}

pub(crate) async fn one_of_many_renewals_wins(fixture: &Fixture) {
    let ada = user(&fixture.store, "ada@example.com").await;
    let token = log_in(&fixture.store, &ada, 0).await;
    let (one, two) = (fixture.store.clone(), fixture.open_again().await);
    let mut calls = JoinSet::new();
    for number in 0..8 {
        let (store, token) = (if number % 2 == 0 { one.clone() } else { two.clone() }, token.clone());
        calls.spawn(async move { renew(&store, &token, 1).await.err() });
    }
    let mut outcomes = calls.join_all().await;
    outcomes.sort_unstable();
    let unknown = [Some("unknown"); 6];
    assert_eq!(outcomes[..2], [None, Some("reused")]);
    assert_eq!(outcomes[2..], unknown);
    two.close().await;
}

pub(crate) async fn logins_end(Fixture { store, .. }: &Fixture) {
    let ada = user(store, "ada@example.com").await;
    let token = log_in(store, &ada, 0).await;
    assert!(store.end_login_of(&token).await.expect("a write"));
    assert!(!store.end_login_of(&token).await.expect("a write"));
    assert_eq!(renew(store, &token, 1).await.err(), Some("unknown"));
    // By time.
    let token = log_in(store, &ada, 0).await;
    let token = renew(store, &token, DAY - 1).await.expect("still there");
    assert_eq!(renew(store, &token, DAY).await.err(), Some("unknown"));
    log_in(store, &ada, 1).await;
    assert_eq!(store.forget_expired_logins(at(DAY)).await.expect("a write"), 1, "the other one has a moment left");
    assert_eq!(store.forget_expired_logins(at(DAY)).await.expect("a write"), 0);
    // By newer ones.
    let mut tokens = Vec::new();
    for number in 0..33 {
        tokens.push(log_in(store, &ada, 10 + number).await);
    }
    assert_eq!(renew(store, &tokens[0], 50).await.err(), Some("unknown"), "the oldest had to go");
    assert!(renew(store, &tokens[1], 50).await.is_ok());
    // With their user.
    store.set_password(ada.id, Some(&hash("the first password").await)).await.expect("a write");
    let token = log_in(store, &ada, 0).await;
    assert!(store.delete_user(ada.id).await.expect("a write"));
    assert_eq!(renew(store, &token, 1).await.err(), Some("unknown"));
    assert!(!store.has_passwords().await.expect("a read"));
    assert!(store.begin_login(ada.id, Proof::Issuer, times(0)).await.expect("a write").is_none());
}
