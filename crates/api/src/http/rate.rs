//! Rate limits for teams and client addresses.
//!
//! Each team and each network has a token bucket that refills evenly. Limits are off unless the operator configures
//! them. With a limit, every reply has `RateLimit-*` headers, and a request above the limit is rejected with a time to
//! retry after. Nothing was done for a rejected request, so a retry is safe.

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

/// Maximum number of buckets, which take a few MiB.
///
/// Another bucket replaces the least recently used one, so many addresses cannot evict the bucket of an active caller.
const BUCKETS_MAX: usize = 65_536;

/// Subject of a rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RateKey {
    Team(TeamId),
    /// Result of [`network_of`].
    Network(IpAddr),
}

/// Returns the network of one client: the IPv4 address, or the /64 prefix of an IPv6 address.
///
/// Each machine chooses the lower half of its IPv6 address itself.
pub(crate) fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Rate limiter for teams and networks.
#[derive(Debug)]
pub(crate) struct Rates {
    team: Option<Rate>,
    address: Option<Rate>,
    buckets: Buckets<RateKey>,
}

/// Token buckets by key.
#[derive(Debug)]
pub(crate) struct Buckets<K>(Mutex<LruCache<K, Bucket, RandomState>>);

impl<K: Eq + Hash> Default for Buckets<K> {
    fn default() -> Self {
        // Callers choose the keys, so the hash is randomly seeded.
        Self(Mutex::new(LruCache::with_hasher(BUCKETS_MAX, RandomState::new())))
    }
}

/// Token bucket.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Tokens missing from the full bucket at `at`.
    used: f64,
    at: Instant,
}

/// Remaining quota of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    limit: NonZeroU32,
    remaining: u32,
    /// Seconds until the bucket is full.
    reset_seconds: u64,
}

/// Request extension that carries the last [`Quota`] to the middleware, which adds the headers.
#[derive(Debug, Clone, Default)]
pub(crate) struct QuotaCell(Arc<Mutex<Option<Quota>>>);

impl Rates {
    pub(crate) fn new(team: Option<Rate>, address: Option<Rate>) -> Self {
        Self { team, address, buckets: Buckets::default() }
    }

    /// Counts one request, or rejects it. Stores the remaining quota in `cell`.
    pub(crate) fn count(&self, key: RateKey, cell: Option<&QuotaCell>) -> Result<(), Failure> {
        let rate = match key {
            RateKey::Team(_) => self.team,
            RateKey::Network(_) => self.address,
        };
        let Some(rate) = rate else { return Ok(()) };
        let (quota, outcome) = self.buckets.take(key, rate, Instant::now());
        if let Some(QuotaCell(cell)) = cell {
            *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(quota);
        }
        outcome.map_err(|wait| {
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "too many requests: retry later").worth_retrying_after(wait)
        })
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// Takes a token. Returns the remaining quota, and the time until a token is available as an error.
    ///
    /// The time is rounded up to whole seconds.
    pub(crate) fn take(&self, key: K, rate: Rate, now: Instant) -> (Quota, Result<(), Duration>) {
        let capacity = f64::from(rate.requests.get());
        let per_second = capacity / rate.per.as_secs_f64().max(f64::MIN_POSITIVE);
        let refilled = |bucket: &Bucket| {
            (bucket.used - now.saturating_duration_since(bucket.at).as_secs_f64() * per_second).max(0.0)
        };
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get(&key).copied().unwrap_or(Bucket { used: 0.0, at: now });
        let used = refilled(&bucket);
        let fits = used + 1.0 <= capacity;
        let used = if fits { used + 1.0 } else { used };
        buckets.insert(key, Bucket { used, at: now });
        drop(buckets);
        let quota = Quota {
            limit: rate.requests,
            // Rounded down to whole requests.
            remaining: whole(capacity - used),
            reset_seconds: u64::from(whole((used / per_second).ceil())),
        };
        let wait = Duration::try_from_secs_f64((used + 1.0 - capacity) / per_second).unwrap_or(rate.per);
        // Rounded up, so that a client that waits this long is not too early.
        let wait = Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        (quota, if fits { Ok(()) } else { Err(wait) })
    }

    /// Returns the last token to its bucket.
    pub(crate) fn refund(&self, key: &K) {
        if let Some(bucket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
            bucket.used = (bucket.used - 1.0).max(0.0);
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is clamped to what fits")]
fn whole(number: f64) -> u32 {
    number.clamp(0.0, f64::from(u32::MAX)) as u32
}

/// Applies the rate limit of the client's network, and adds the `RateLimit-*` headers.
pub(super) async fn limit_requests(State(control): State<Arc<Control>>, mut request: Request, next: Next) -> Response {
    let cell = QuotaCell::default();
    // Health checks are never limited.
    let is_health_check = request.uri().path() == "/health";
    let address = request.extensions().get::<Peer>().and_then(Peer::ip).filter(|_| !is_health_check);
    request.extensions_mut().insert(cell.clone());
    let counted =
        address.map_or(Ok(()), |address| control.rates.count(RateKey::Network(network_of(address)), Some(&cell)));
    let mut response = match counted {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    let quota = *cell.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(Quota { limit, remaining, reset_seconds }) = quota {
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
    async fn a_bucket_refills_evenly() {
        let rate = Rate { requests: NonZeroU32::new(3).expect("three"), per: Duration::from_secs(30) };
        let rates = Rates::new(Some(rate), None);
        let (first, second) = (RateKey::Team(TeamId::generate()), RateKey::Team(TeamId::generate()));
        let take = |key| {
            let (quota, outcome) = rates.buckets.take(key, rate, Instant::now());
            (quota.remaining, quota.reset_seconds, outcome.map_err(|wait| wait.as_secs()))
        };
        assert_eq!([take(first), take(first), take(first)], [(2, 10, Ok(())), (1, 20, Ok(())), (0, 30, Ok(()))]);
        assert_eq!(take(first), (0, 30, Err(10)));
        assert_eq!(take(second), (2, 10, Ok(())), "each team has its own bucket");
        tokio::time::advance(Duration::from_millis(9_500)).await;
        assert_eq!(take(first), (0, 21, Err(1)));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(take(first), (0, 30, Ok(())));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(take(first), (2, 10, Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_use_bounded_memory_and_evict_no_active_caller() {
        let rate = Rate { requests: NonZeroU32::MIN, per: Duration::from_secs(3600) };
        let rates = Rates::new(None, Some(rate));
        let network = |number: usize| {
            RateKey::Network(IpAddr::from((u128::try_from(number).expect("small") << 64).to_be_bytes()))
        };
        let busy = network(BUCKETS_MAX * 4);
        rates.count(busy, None).expect("the first request");
        for number in 0..BUCKETS_MAX * 3 {
            rates.count(network(number), None).expect("the first request of each network");
            if number % 1000 == 0 {
                rates.count(busy, None).expect_err("an active caller is not evicted");
            }
        }
        rates.count(network(0), None).expect("idle networks are evicted");
        assert_eq!(rates.buckets.0.lock().expect("no panic").len(), BUCKETS_MAX);
    }

    #[test]
    fn addresses_map_to_their_network() {
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
