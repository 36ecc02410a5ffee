//! Logins that are under way at the identity provider.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hearth_types::Secret;
use openidconnect::{Nonce, PkceCodeVerifier};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::address::Address;
use super::target::Target;

/// How long somebody may take to log in at the provider.
pub(super) const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Logins under way at the same time: a few MiB. The oldest has to begin again when there are more.
const PENDING_MAX: usize = 4096;

/// A login that is under way.
pub(super) struct Pending {
    /// Where it will be told to.
    pub(super) target: Target,
    /// Where the provider sends the user back to, which is told twice.
    pub(super) address: Address,
    /// What the provider's word about the user must contain.
    pub(super) nonce: Nonce,
    /// What proves that we are who began.
    pub(super) verifier: PkceCodeVerifier,
    /// What the browser has to bring back: another one must not end what this one began.
    pub(super) browser: Secret,
}

/// All of them, by the state that the provider brings back.
#[derive(Default)]
pub(super) struct Table(Mutex<HashMap<String, (Instant, Pending)>>);

impl Table {
    pub(super) fn insert(&self, state: String, pending: Pending) {
        let now = Instant::now();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= PENDING_MAX {
            table.retain(|_, (since, _)| now.duration_since(*since) < PATIENCE);
        }
        if table.len() >= PENDING_MAX
            && let Some(oldest) = table.iter().min_by_key(|(_, (since, _))| *since).map(|(state, _)| state.clone())
        {
            table.remove(&oldest);
        }
        table.insert(state, (now, pending));
    }

    /// Takes one out, for the browser that began it. Each is taken once.
    pub(super) fn take(&self, state: &str, browser: &str) -> Option<Pending> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, pending) = table.get(state)?;
        if !bool::from(pending.browser.expose().as_bytes().ct_eq(browser.as_bytes())) {
            return None;
        }
        let (since, pending) = table.remove(state)?;
        (Instant::now().duration_since(since) < PATIENCE).then_some(pending)
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
    async fn each_is_taken_once_in_time_and_by_its_browser() {
        let table = Table::default();
        table.insert("a".to_owned(), pending());
        assert!(table.take("b", "browser").is_none());
        assert!(table.take("a", "another").is_none() && table.take("a", "").is_none());
        assert!(table.take("a", "browser").is_some());
        assert!(table.take("a", "browser").is_none());
        table.insert("a".to_owned(), pending());
        tokio::time::advance(PATIENCE).await;
        assert!(table.take("a", "browser").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_not_too_many() {
        let table = Table::default();
        for number in 0..=PENDING_MAX {
            table.insert(number.to_string(), pending());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(table.0.lock().expect("no panic").len(), PENDING_MAX);
        assert!(table.take("0", "browser").is_none(), "the oldest");
        assert!(table.take("1", "browser").is_some());
    }
}
