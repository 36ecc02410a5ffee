//! Rate limits of teams and client addresses.

use std::num::NonZeroU32;
use std::time::Duration;

use hearth_api::{Config, Rate};

use crate::world::{LIMITS, PEER_HEADER, World, config};

fn rate(requests: u32) -> Option<Rate> {
    Some(Rate { requests: NonZeroU32::new(requests).expect("some"), per: Duration::from_secs(3600) })
}

#[tokio::test]
async fn replies_have_the_remaining_quota_and_the_time_to_retry_after() {
    let world = World::with(Config { team_rate: rate(3), ..config() }).await;
    let (_, other) = world.other_team("other", LIMITS).await;
    for remaining in ["2", "1", "0"] {
        let reply = world.client.get("/v2/sandboxes").await.assert_status(200);
        assert_eq!(reply.header("ratelimit-limit"), Some("3"));
        assert_eq!(reply.header("ratelimit-remaining"), Some(remaining));
        let reset: u32 = reply.header("ratelimit-reset").expect("a header").parse().expect("seconds");
        assert!((1..=3600).contains(&reset), "{reset}");
    }
    // A rejected create creates nothing, so it may be retried.
    let reply = world.create(r#"{"templateID":"base"}"#).await.assert_error(429, "too many requests");
    assert_eq!(reply.header("should-retry"), Some("true"));
    let wait: u32 = reply.header("retry-after").expect("a header").parse().expect("whole seconds");
    assert!((1100..=1200).contains(&wait), "{wait}");
    assert_eq!(reply.header("ratelimit-remaining"), Some("0"));
    assert!(world.node.state().creates.is_empty());
    assert_eq!(other.get("/v2/sandboxes").await.assert_status(200).header("ratelimit-remaining"), Some("2"));
    // A request without credentials has no team, and so no quota.
    assert_eq!(world.client_with(None).get("/v2/sandboxes").await.assert_status(401).header("ratelimit-limit"), None);
}

#[tokio::test]
async fn an_address_is_limited_before_authentication() {
    let mut world = World::with(Config { address_rate: rate(2), ..config() }).await;
    let address = "192.0.2.7:4711".parse().expect("an address");
    world.stop_server().await;
    world.peer = Some(address);
    world.start_server().await;
    let anonymous = world.client_with(None);
    for remaining in ["1", "0"] {
        let reply = anonymous.get("/v2/sandboxes").await.assert_error(401, "no API key");
        assert_eq!(reply.header("ratelimit-remaining"), Some(remaining));
    }
    let rejected = world.client.get("/v2/sandboxes").await.assert_error(429, "too many requests");
    assert!(rejected.header("retry-after").is_some());
    anonymous.get("/health").await.assert_status(200);
}

#[tokio::test]
async fn addresses_of_one_network_share_a_limit() {
    let world = World::with(Config { address_rate: rate(2), ..config() }).await;
    for (from, status) in [
        ("2001:db8:1:2::1", 401),
        ("2001:db8:1:2:ffff::2", 401),
        ("2001:db8:1:2::3", 429),
        ("2001:db8:1:3::1", 401),
        ("192.0.2.1", 401),
        ("::ffff:192.0.2.1", 401),
        ("192.0.2.1", 429),
        ("192.0.2.2", 401),
    ] {
        world.client_with(None).send("GET", "/v2/sandboxes", &[(PEER_HEADER, from)], "").await.assert_status(status);
    }
}

#[tokio::test]
async fn requests_are_not_limited_by_default() {
    let world = World::start().await;
    let reply = world.client.get("/v2/sandboxes").await.assert_status(200);
    assert_eq!(reply.header("ratelimit-limit"), None);
}
