//! Whether somebody knows a password, and how often they may try.
//!
//! An attempt counts against the network it comes from, against the account as tried from there, and against the account as
//! tried from anywhere, until it turns out to be right: guessing is slow however many do it, and whoever mistypes is not shut
//! out for long. Others' guesses do not shut out the owner: what is tried from anywhere does not count for a network from which
//! the account was entered before, as far as this process remembers. Whether there is such an account is told by
//! nothing: a password is hashed either way, and the answer is the same.

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

/// Passwords that are hashed at the same time: each takes 19 MiB and a processor for some tens of milliseconds, and others
/// want to use the machine as well.
const HASHES_AT_ONCE_MAX: usize = 2;
/// How long an attempt waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(5);

/// Networks remembered from which an account was entered: a few MiB. One more replaces the one that was used longest ago.
const KNOWN_MAX: usize = 16_384;

/// Limits of password attempts.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptRates {
    /// One account from one network.
    pub(super) account: Rate,
    /// One account from all networks together, but for those from which it was entered before.
    pub(super) account_in_all: Rate,
    /// All accounts from one network.
    pub(super) network: Rate,
}

/// Counts attempts, and hashes few at a time.
pub(super) struct Gate {
    rates: AttemptRates,
    attempts: Buckets<Attempt>,
    /// From where an account was entered.
    known: Mutex<LruCache<Place, (), RandomState>>,
    turns: Arc<Semaphore>,
}

/// The hash of an account's address, which has a length that is known.
type Account = [u8; 32];

/// An account, as seen from a network; `None`: from this machine.
type Place = (Account, Option<IpAddr>);

/// Whose attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Attempt {
    /// On an account from a network.
    Place(Place),
    /// On an account.
    Account(Account),
    /// From a network.
    Network(IpAddr),
}

/// Who tries.
pub(super) struct Attempted<'a> {
    pub(super) email: &'a str,
    pub(super) password: Secret,
    /// Where from; `None`: from this machine.
    pub(super) from: Option<IpAddr>,
}

/// What came of an attempt.
pub(super) enum Outcome {
    /// It is their password. Whether it still is, the store knows when the login begins.
    Right(User, PasswordHash),
    /// It is not, or there is no such account.
    Wrong,
    /// Nothing was looked at: too many attempts before. So long until there may be another one.
    TooMany(Duration),
    /// Nothing was looked at: too many others try just now.
    Busy,
}

impl Gate {
    pub(super) fn new(rates: AttemptRates) -> Self {
        let turns = Arc::new(Semaphore::new(HASHES_AT_ONCE_MAX));
        let known = Mutex::new(LruCache::with_hasher(KNOWN_MAX, RandomState::new()));
        Self { rates, attempts: Buckets::default(), known, turns }
    }

    /// Looks at an attempt. Dropped, it counts as a wrong one.
    pub(super) async fn attempt(&self, store: &Store, attempted: Attempted<'_>) -> Result<Outcome, StoreError> {
        let Attempted { email, password, from } = attempted;
        let account: Account = Sha256::digest(email.to_lowercase().as_bytes()).into();
        let network = from.map(network_of);
        let place = (account, network);
        let is_known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&place).is_some();
        let AttemptRates { account: at_place, account_in_all, network: of_network } = self.rates;
        let counted: Vec<(Attempt, Rate)> = [
            network.map(|network| (Attempt::Network(network), of_network)),
            Some((Attempt::Place(place), at_place)),
            (!is_known).then_some((Attempt::Account(account), account_in_all)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let now = Instant::now();
        for (attempt, rate) in &counted {
            if let (_, Err(wait)) = self.attempts.take(*attempt, *rate, now) {
                return Ok(Outcome::TooMany(wait));
            }
        }
        let Ok(Ok(turn)) = tokio::time::timeout(TURN_PATIENCE, Arc::clone(&self.turns).acquire_owned()).await else {
            return Ok(Outcome::Busy);
        };
        // Postgres knows no text with a zero byte, and nobody is called so.
        let found = if email.contains('\0') { None } else { store.password_by_email(email).await? };
        let hash = found.as_ref().map_or_else(PasswordHash::of_nobody, |(_, hash)| hash.clone());
        let verifying = tokio::task::spawn_blocking(move || {
            let is_right = hash.verify(&password);
            drop(turn);
            is_right
        });
        // It does not panic; and if it did, nobody would be let in.
        let is_right = verifying.await.unwrap_or(false);
        match found {
            Some((user, hash)) if is_right => {
                for (attempt, _) in &counted {
                    self.attempts.give_back(attempt);
                }
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(place, ());
                Ok(Outcome::Right(user, hash))
            }
            _ => Ok(Outcome::Wrong),
        }
    }
}
