//! How often teams and addresses may call.
//!
//! A bucket each, filled evenly and emptied by one with each request. Off unless the operator says how much; then every
//! answer tells what is left, and a request too many is told when to come again. Nothing was done for it, so coming again
//! is safe.

use std::hash::{Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hashlink::LruCache;
use hearth_proxy::serve::Peer;
use hearth_types::TeamId;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;

use crate::config::Rate;
use crate::control::Control;
use crate::failure::Failure;

pub(super) const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
pub(super) const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
pub(super) const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Buckets kept: a few MiB. One more replaces the one that was not used for the longest time, so that many addresses cannot
/// make the server forget those that call now.
const BUCKETS_MAX: usize = 65_536;

/// Whose bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    Team(TeamId),
    /// Of [`network_of`] an address.
    Network(IpAddr),
}

/// Address of one caller: an IPv4 address, or the /64 of an IPv6 address, whose lower half each machine chooses itself.
pub(crate) fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// How often teams and addresses called.
#[derive(Debug)]
pub(crate) struct Rates {
    team: Option<Rate>,
    address: Option<Rate>,
    buckets: Buckets<Who>,
}

/// Buckets of whoever is counted.
#[derive(Debug)]
pub(crate) struct Buckets<K>(Mutex<LruCache<K, Bucket, RandomState>>);

impl<K: Eq + Hash> Default for Buckets<K> {
    fn default() -> Self {
        // Callers choose the keys, so the hash has a secret.
        Self(Mutex::new(LruCache::with_hasher(BUCKETS_MAX, RandomState::new())))
    }
}

/// How empty a bucket was, and when.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    used: f64,
    at: Instant,
}

/// What is left of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    limit: NonZeroU32,
    remaining: u32,
    /// Seconds until all of it is there again.
    reset_seconds: u64,
}

/// Where what is left is noted while a request is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Left>>>);

impl Rates {
    pub(crate) fn new(team: Option<Rate>, address: Option<Rate>) -> Self {
        Self { team, address, buckets: Buckets::default() }
    }

    /// Counts one request, or refuses it.
    pub(crate) fn count(&self, who: Who, slot: Option<&Slot>) -> Result<(), Failure> {
        let rate = match who {
            Who::Team(_) => self.team,
            Who::Network(_) => self.address,
        };
        let Some(rate) = rate else { return Ok(()) };
        let (left, outcome) = self.buckets.take(who, rate, Instant::now());
        if let Some(Slot(slot)) = slot {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
        }
        outcome.map_err(|wait| {
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "too many requests: come again later")
                .worth_retrying_after(wait)
        })
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// What is left; and if there is not enough, how long until there is.
    pub(crate) fn take(&self, who: K, rate: Rate, now: Instant) -> (Left, Result<(), Duration>) {
        let capacity = f64::from(rate.requests.get());
        let per_second = capacity / rate.per.as_secs_f64().max(f64::MIN_POSITIVE);
        let refilled = |bucket: &Bucket| {
            (bucket.used - now.saturating_duration_since(bucket.at).as_secs_f64() * per_second).max(0.0)
        };
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get(&who).copied().unwrap_or(Bucket { used: 0.0, at: now });
        let used = refilled(&bucket);
        let fits = used + 1.0 <= capacity;
        let used = if fits { used + 1.0 } else { used };
        buckets.insert(who, Bucket { used, at: now });
        drop(buckets);
        let left = Left {
            limit: rate.requests,
            // A part of a request is none.
            remaining: whole(capacity - used),
            reset_seconds: u64::from(whole((used / per_second).ceil())),
        };
        let wait = Duration::try_from_secs_f64((used + 1.0 - capacity) / per_second).unwrap_or(rate.per);
        // Rounded up: a client that comes in time must not be too early.
        let wait = Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        (left, if fits { Ok(()) } else { Err(wait) })
    }

    /// What was taken last was not meant to count.
    pub(crate) fn give_back(&self, who: &K) {
        if let Some(bucket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(who) {
            bucket.used = (bucket.used - 1.0).max(0.0);
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is clamped to what fits")]
fn whole(number: f64) -> u32 {
    number.clamp(0.0, f64::from(u32::MAX)) as u32
}

/// Counts the request of an address, and tells what is left.
pub(super) async fn surround(State(control): State<Arc<Control>>, mut request: Request, next: Next) -> Response {
    let slot = Slot::default();
    // Who watches over this server must not be told to come again later.
    let is_watched = request.uri().path() == "/health";
    let address = request.extensions().get::<Peer>().and_then(Peer::ip).filter(|_| !is_watched);
    request.extensions_mut().insert(slot.clone());
    let counted = address.map_or(Ok(()), |address| control.rates.count(Who::Network(network_of(address)), Some(&slot)));
    let mut response = match counted {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    let left = *slot.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(Left { limit, remaining, reset_seconds }) = left {
        let headers = response.headers_mut();
        headers.insert(LIMIT, HeaderValue::from(limit.get()));
        headers.insert(REMAINING, HeaderValue::from(remaining));
        headers.insert(RESET, HeaderValue::from(reset_seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_is_filled_evenly() {
        let rate = Rate { requests: NonZeroU32::new(3).expect("three"), per: Duration::from_secs(30) };
        let rates = Rates::new(Some(rate), None);
        let (ours, others) = (Who::Team(TeamId::generate()), Who::Team(TeamId::generate()));
        let take = |who| {
            let (left, outcome) = rates.buckets.take(who, rate, Instant::now());
            (left.remaining, left.reset_seconds, outcome.map_err(|wait| wait.as_secs()))
        };
        assert_eq!([take(ours), take(ours), take(ours)], [(2, 10, Ok(())), (1, 20, Ok(())), (0, 30, Ok(()))]);
        assert_eq!(take(ours), (0, 30, Err(10)));
        assert_eq!(take(others), (2, 10, Ok(())), "each has a bucket of their own");
        tokio::time::advance(Duration::from_millis(9_500)).await;
        assert_eq!(take(ours), (0, 21, Err(1)));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(take(ours), (0, 30, Ok(())));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(take(ours), (2, 10, Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_take_bounded_memory_and_hide_nobody() {
        let rate = Rate { requests: NonZeroU32::MIN, per: Duration::from_secs(3600) };
        let rates = Rates::new(None, Some(rate));
        let network =
            |number: usize| Who::Network(IpAddr::from((u128::try_from(number).expect("small") << 64).to_be_bytes()));
        let busy = network(BUCKETS_MAX * 4);
        rates.count(busy, None).expect("its first");
        for number in 0..BUCKETS_MAX * 3 {
            rates.count(network(number), None).expect("the first of each");
            if number % 1000 == 0 {
                rates.count(busy, None).expect_err("it is remembered");
            }
        }
        rates.count(network(0), None).expect("the idle ones are forgotten");
        assert_eq!(rates.buckets.0.lock().expect("no panic").len(), BUCKETS_MAX);
    }

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
