//! Verification of passwords, with limits for attempts.
//!
//! An attempt counts against three limits: that of its network, that of the account from this network, and that of the
//! account from all networks. The attempt is refunded if the password is correct. Therefore guessing is slow for any
//! number of clients, and a user who mistypes is not locked out for long.
//!
//! Guesses of others do not lock out the owner: the limit for all networks does not apply to a network from which the
//! account logged in before, as far as this process remembers.
//!
//! A caller cannot find out if an account exists: a password is hashed in both cases, and the reply is the same.

use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hashlink::LruCache;
use hearth_store::{Error as StoreError, PasswordHash, Store, User};
use hearth_types::Secret;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::Rate;
use crate::http::rate::{Buckets, network_of};

/// Maximum number of concurrent hashes.
///
/// Each uses 19 MiB and one processor for some tens of milliseconds. The bound leaves processors for other work.
const CONCURRENT_HASHES_MAX: usize = 2;
/// Maximum time that an attempt waits for a hash permit.
const PERMIT_WAIT_MAX: Duration = Duration::from_secs(5);

/// Maximum number of remembered pairs of account and network, which take a few MiB.
///
/// Another pair replaces the least recently used one.
const KNOWN_MAX: usize = 16_384;

/// Limits of password attempts.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptRates {
    /// Limit of one account from one network.
    pub(super) account: Rate,
    /// Limit of one account from all networks together, except networks from which it logged in before.
    pub(super) account_all_networks: Rate,
    /// Limit of all accounts from one network.
    pub(super) network: Rate,
}

/// Verifies passwords, and limits attempts and concurrent hashes.
pub(super) struct PasswordVerifier {
    rates: AttemptRates,
    attempts: Buckets<AttemptKey>,
    /// Networks from which an account logged in.
    known: Mutex<LruCache<AccountFrom, (), RandomState>>,
    permits: Arc<Semaphore>,
}

/// Hash of an email address, which has a fixed length.
type Account = [u8; 32];

/// Account and network of an attempt; with `None`, the attempt comes from this machine.
type AccountFrom = (Account, Option<IpAddr>);

/// Key of a limit for attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AttemptKey {
    /// One account from one network.
    AccountFrom(AccountFrom),
    /// One account from all networks.
    Account(Account),
    /// All accounts from one network.
    Network(IpAddr),
}

/// Attempt to log in with a password.
pub(super) struct PasswordAttempt<'a> {
    pub(super) email: &'a str,
    pub(super) password: Secret,
    /// Address of the client; `None` for a client on this machine.
    pub(super) from: Option<IpAddr>,
}

/// Outcome of an attempt.
pub(super) enum Outcome {
    /// The password is correct. The store checks again when the login is stored.
    Correct(User, PasswordHash),
    /// The password is wrong, or the account does not exist.
    Wrong,
    /// Not checked, because of too many earlier attempts. Another attempt is allowed after this time.
    TooMany(Duration),
    /// Not checked, because of too many concurrent attempts.
    Busy,
}

impl PasswordVerifier {
    pub(super) fn new(rates: AttemptRates) -> Self {
        let permits = Arc::new(Semaphore::new(CONCURRENT_HASHES_MAX));
        let known = Mutex::new(LruCache::with_hasher(KNOWN_MAX, RandomState::new()));
        Self { rates, attempts: Buckets::default(), known, permits }
    }

    /// Verifies a password. An attempt whose future is dropped counts as a wrong one.
    pub(super) async fn verify(&self, store: &Store, attempt: PasswordAttempt<'_>) -> Result<Outcome, StoreError> {
        let PasswordAttempt { email, password, from } = attempt;
        let account: Account = Sha256::digest(email.to_lowercase().as_bytes()).into();
        let network = from.map(network_of);
        let account_from = (account, network);
        let is_known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&account_from).is_some();
        let AttemptRates { account: account_rate, account_all_networks, network: network_rate } = self.rates;
        let counted: Vec<(AttemptKey, Rate)> = [
            network.map(|network| (AttemptKey::Network(network), network_rate)),
            Some((AttemptKey::AccountFrom(account_from), account_rate)),
            (!is_known).then_some((AttemptKey::Account(account), account_all_networks)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let now = Instant::now();
        for (key, rate) in &counted {
            if let (_, Err(wait)) = self.attempts.take(*key, *rate, now) {
                return Ok(Outcome::TooMany(wait));
            }
        }
        let permit = tokio::time::timeout(PERMIT_WAIT_MAX, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Ok(Outcome::Busy);
        };
        // Postgres rejects a text with a zero byte, and no user has one in the address.
        let found = if email.contains('\0') { None } else { store.password_by_email(email).await? };
        let hash = found.as_ref().map_or_else(PasswordHash::dummy, |(_, hash)| hash.clone());
        let verifying = tokio::task::spawn_blocking(move || {
            let is_correct = hash.verify(&password);
            drop(permit);
            is_correct
        });
        // The task does not panic; if it did, the password would count as wrong.
        let is_correct = verifying.await.unwrap_or(false);
        match found {
            Some((user, hash)) if is_correct => {
                for (key, _) in &counted {
                    self.attempts.refund(key);
                }
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(account_from, ());
                Ok(Outcome::Correct(user, hash))
            }
            _ => Ok(Outcome::Wrong),
        }
    }
}
