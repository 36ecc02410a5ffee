//! Pending logins at the identity provider.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hearth_types::Secret;
use openidconnect::{Nonce, PkceCodeVerifier};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::address::Address;
use super::target::LoopbackTarget;

/// Maximum duration of a login at the provider.
pub(super) const LOGIN_TIME_MAX: Duration = Duration::from_secs(10 * 60);
/// Maximum number of pending logins, which take a few MiB. Another login replaces the oldest, which then fails.
const PENDING_MAX: usize = 4096;

/// A pending login.
pub(super) struct Pending {
    /// Receives the result.
    pub(super) target: LoopbackTarget,
    /// Base of the redirect URI, which is sent to the provider twice and must be the same.
    pub(super) address: Address,
    /// Nonce that the ID token must contain.
    pub(super) nonce: Nonce,
    /// PKCE verifier, which proves that this server started the login.
    pub(super) verifier: PkceCodeVerifier,
    /// Value of the cookie. Only the browser that started the login can finish it.
    pub(super) browser: Secret,
}

/// Pending logins by the `state` parameter.
#[derive(Default)]
pub(super) struct PendingLogins(Mutex<HashMap<String, (Instant, Pending)>>);

impl PendingLogins {
    pub(super) fn insert(&self, state: String, pending: Pending) {
        let now = Instant::now();
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logins.len() >= PENDING_MAX {
            logins.retain(|_, (since, _)| now.duration_since(*since) < LOGIN_TIME_MAX);
        }
        if logins.len() >= PENDING_MAX
            && let Some(oldest) = logins.iter().min_by_key(|(_, (since, _))| *since).map(|(state, _)| state.clone())
        {
            logins.remove(&oldest);
        }
        logins.insert(state, (now, pending));
    }

    /// Removes and returns a login, if the browser is the one that started it and the login has not expired.
    pub(super) fn take(&self, state: &str, browser: &str) -> Option<Pending> {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, pending) = logins.get(state)?;
        if !bool::from(pending.browser.expose().as_bytes().ct_eq(browser.as_bytes())) {
            return None;
        }
        let (since, pending) = logins.remove(state)?;
        (Instant::now().duration_since(since) < LOGIN_TIME_MAX).then_some(pending)
    }
}

#[cfg(test)]
mod tests {
    use openidconnect::PkceCodeChallenge;

    use super::*;
    use crate::identity::address::Addresses;

    fn pending() -> Pending {
        let address = Addresses::new(None, "http://127.0.0.1:3000");
        Pending {
            target: "http://localhost:1".parse().expect("a target"),
            address: address.of(&http::Uri::from_static("/"), &http::HeaderMap::new()),
            nonce: Nonce::new_random(),
            verifier: PkceCodeChallenge::new_random_sha256().1,
            browser: Secret::new("browser"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_is_taken_once_in_time_and_by_its_browser() {
        let logins = PendingLogins::default();
        logins.insert("a".to_owned(), pending());
        assert!(logins.take("b", "browser").is_none());
        assert!(logins.take("a", "another").is_none() && logins.take("a", "").is_none());
        assert!(logins.take("a", "browser").is_some());
        assert!(logins.take("a", "browser").is_none());
        logins.insert("a".to_owned(), pending());
        tokio::time::advance(LOGIN_TIME_MAX).await;
        assert!(logins.take("a", "browser").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn pending_logins_are_bounded() {
        let logins = PendingLogins::default();
        for number in 0..=PENDING_MAX {
            logins.insert(number.to_string(), pending());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(logins.0.lock().expect("no panic").len(), PENDING_MAX);
        assert!(logins.take("0", "browser").is_none(), "the oldest login is replaced");
        assert!(logins.take("1", "browser").is_some());
    }
}
