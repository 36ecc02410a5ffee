//! Passwords and logins of users.

use hearth_store::{LoginTimes, NewUser, PasswordHash, Proof, RefreshToken, Renewal, Store, User};
use hearth_types::{Secret, UserId};
use tokio::task::JoinSet;

use crate::{Fixture, at};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 24 * 3600 * SECOND;

async fn user(store: &Store, email: &str) -> User {
    store.create_user(NewUser { email: email.to_owned(), subject: None }).await.expect("the address is unused")
}

async fn hash(text: &'static str) -> PasswordHash {
    let hashing = tokio::task::spawn_blocking(move || PasswordHash::of(&Secret::new(text)));
    hashing.await.expect("no panic").expect("long enough")
}

fn times(now: i64) -> LoginTimes {
    LoginTimes { now: at(now), expires_at: at(now + DAY) }
}

async fn log_in(store: &Store, user: &User, now: i64) -> RefreshToken {
    let login = store.create_login(user.id, Proof::Issuer, times(now)).await.expect("a write");
    let (login, token) = login.expect("the user exists");
    assert_eq!((&login.user, login.expires_at), (user, at(now + DAY)));
    token
}

/// Renews with a token. Returns the next token, or the name of the failure.
async fn renew(store: &Store, token: &RefreshToken, now: i64) -> Result<RefreshToken, &'static str> {
    match store.renew_login(token, at(now)).await.expect("a write") {
        Renewal::Renewed(_, next) => Ok(next),
        Renewal::Unknown => Err("unknown"),
        Renewal::Reused { .. } => Err("reused"),
    }
}

pub(crate) async fn a_password_is_set_changed_and_removed(Fixture { store, .. }: &Fixture) {
    let (ada, bob) = (user(store, "ada@example.com").await, user(store, "bob@example.com").await);
    let (first, second) = (hash("the first password").await, hash("the second password").await);
    assert!(!store.has_passwords().await.expect("a read"));
    assert!(!store.set_password(UserId::generate(), Some(&first)).await.expect("a write"));
    let stored = async || store.password_by_email("ada@example.com").await.expect("a read");
    assert_eq!(stored().await, None);
    for password in [&first, &second] {
        let token = log_in(store, &ada, 0).await;
        let others = log_in(store, &bob, 0).await;
        assert!(store.set_password(ada.id, Some(password)).await.expect("a write"));
        assert_eq!(stored().await, Some((ada.clone(), password.clone())));
        assert_eq!(renew(store, &token, 1).await.err(), Some("unknown"), "a new password deletes logins");
        assert!(renew(store, &others, 1).await.is_ok(), "but not those of other users");
    }
    assert!(store.has_password(ada.id).await.expect("a read") && store.has_passwords().await.expect("a read"));
    assert!(!store.has_password(bob.id).await.expect("a read"));
    // A password that was verified may have been replaced since.
    for (proof, is_accepted) in [(&first, false), (&second, true)] {
        let login = store.create_login(ada.id, Proof::Password(proof), times(0)).await.expect("a write");
        assert_eq!(login.is_some(), is_accepted);
    }
    assert!(store.set_password(ada.id, None).await.expect("a write"));
    assert_eq!(stored().await, None);
    assert!(store.create_login(ada.id, Proof::Password(&second), times(0)).await.expect("a write").is_none());
}

pub(crate) async fn a_reused_refresh_token_deletes_its_login(fixture: &Fixture) {
    let store = &fixture.store;
    let ada = user(store, "ada@example.com").await;
    let (first, other) = (log_in(store, &ada, 0).await, log_in(store, &ada, 0).await);
    let second = renew(store, &first, 1).await.expect("the newest");
    let Renewal::Renewed(login, third) = store.renew_login(&second, at(2)).await.expect("a write") else {
        panic!("the newest token renews");
    };
    assert_eq!((&login.user, login.expires_at), (&ada, at(DAY)), "renewing does not change the expiry");
    assert_eq!(store.user_by_login(login.id, at(2)).await.expect("a read"), Some(ada.clone()));
    let reused = store.renew_login(&first, at(3)).await.expect("a write");
    assert!(matches!(reused, Renewal::Reused { id, user_id } if id == login.id && user_id == ada.id), "{reused:?}");
    for token in [&first, &second, &third] {
        assert_eq!(renew(store, token, 4).await.err(), Some("unknown"), "the login is deleted");
    }
    assert_eq!(store.user_by_login(login.id, at(4)).await.expect("a read"), None);
    let again = fixture.open_again().await;
    assert!(renew(&again, &other, 4).await.is_ok(), "other logins stay valid, also after a restart");
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

pub(crate) async fn logins_expire_and_are_deleted(Fixture { store, .. }: &Fixture) {
    let ada = user(store, "ada@example.com").await;
    let token = log_in(store, &ada, 0).await;
    assert!(store.delete_login_of(&token).await.expect("a write"));
    assert!(!store.delete_login_of(&token).await.expect("a write"));
    assert_eq!(renew(store, &token, 1).await.err(), Some("unknown"));
    // By expiry.
    let token = log_in(store, &ada, 0).await;
    let token = renew(store, &token, DAY - 1).await.expect("not expired yet");
    assert_eq!(renew(store, &token, DAY).await.err(), Some("unknown"));
    log_in(store, &ada, 1).await;
    assert_eq!(store.delete_expired_logins(at(DAY)).await.expect("a write"), 1, "the other one expires later");
    assert_eq!(store.delete_expired_logins(at(DAY)).await.expect("a write"), 0);
    // By newer logins.
    let mut tokens = Vec::new();
    for number in 0..33 {
        tokens.push(log_in(store, &ada, 10 + number).await);
    }
    assert_eq!(renew(store, &tokens[0], 50).await.err(), Some("unknown"), "the oldest was deleted");
    assert!(renew(store, &tokens[1], 50).await.is_ok());
    // With their user.
    store.set_password(ada.id, Some(&hash("the first password").await)).await.expect("a write");
    let token = log_in(store, &ada, 0).await;
    assert!(store.delete_user(ada.id).await.expect("a write"));
    assert_eq!(renew(store, &token, 1).await.err(), Some("unknown"));
    assert!(!store.has_passwords().await.expect("a read"));
    assert!(store.create_login(ada.id, Proof::Issuer, times(0)).await.expect("a write").is_none());
}
