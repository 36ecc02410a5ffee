//! Whether somebody knows a password, and how often they may try.
//!
//! An attempt counts against the account and against the network it comes from, until it turns out to be right: guessing is
//! slow however many do it, and whoever mistypes is not shut out for long. Whether there is such an account is told by
//! nothing: a password is hashed either way, and the answer is the same.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hearth_store::{Error as StoreError, PasswordHash, Store, User};
use hearth_types::Secret;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::Rate;
use crate::http::rate::Buckets;

/// Passwords that are hashed at the same time: each takes 19 MiB and a processor for some tens of milliseconds, and others
/// want to use the machine as well.
const HASHES_AT_ONCE_MAX: usize = 2;
/// How long an attempt waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(5);

/// Counts attempts, and hashes few at a time.
pub(super) struct Gate {
    account_rate: Rate,
    network_rate: Rate,
    attempts: Buckets<Attempt>,
    turns: Arc<Semaphore>,
}

/// Whose attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Attempt {
    /// On the account of whose address this is the hash, which has a length that is known.
    Account([u8; 32]),
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
    pub(super) fn new(account_rate: Rate, network_rate: Rate) -> Self {
        let turns = Arc::new(Semaphore::new(HASHES_AT_ONCE_MAX));
        Self { account_rate, network_rate, attempts: Buckets::default(), turns }
    }

    /// Looks at an attempt. Dropped, it counts as a wrong one.
    pub(super) async fn attempt(&self, store: &Store, attempted: Attempted<'_>) -> Result<Outcome, StoreError> {
        let Attempted { email, password, from } = attempted;
        let account = Attempt::Account(Sha256::digest(email.to_lowercase().as_bytes()).into());
        let network = from.map(|ip| Attempt::Network(network_of(ip)));
        let now = Instant::now();
        if let Some(network) = network
            && let (_, Err(wait)) = self.attempts.take(network, self.network_rate, now)
        {
            return Ok(Outcome::TooMany(wait));
        }
        if let (_, Err(wait)) = self.attempts.take(account, self.account_rate, now) {
            return Ok(Outcome::TooMany(wait));
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
                for attempt in [Some(account), network].into_iter().flatten() {
                    self.attempts.give_back(&attempt);
                }
                Ok(Outcome::Right(user, hash))
            }
            _ => Ok(Outcome::Wrong),
        }
    }
}

/// What one person has: an address, or the upper half of one, whose lower half each machine chooses itself.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_is_one() {
        for (ip, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ] {
            assert_eq!(network_of(ip.parse().expect(ip)), expected.parse::<IpAddr>().expect(expected));
        }
    }
}
