//! How often teams and addresses may call.

use std::num::NonZeroU32;
use std::time::Duration;

use hearth_api::{Config, Rate};

use crate::world::{COMES_FROM, LIMITS, World, config};

fn rate(requests: u32) -> Option<Rate> {
    Some(Rate { requests: NonZeroU32::new(requests).expect("some"), per: Duration::from_secs(3600) })
}

#[tokio::test]
async fn a_team_is_told_what_is_left_and_when_to_come_again() {
    let world = World::with(Config { team_rate: rate(3), ..config() }).await;
    let (_, other) = world.other_team("other", LIMITS).await;
    for remaining in ["2", "1", "0"] {
        let answer = world.client.get("/v2/sandboxes").await.assert_status(200);
        assert_eq!(answer.header("ratelimit-limit"), Some("3"));
        assert_eq!(answer.header("ratelimit-remaining"), Some(remaining));
        let reset: u32 = answer.header("ratelimit-reset").expect("told").parse().expect("seconds");
        assert!((1..=3600).contains(&reset), "{reset}");
    }
    // Also where something would be created: nothing was.
    let answer = world.create(r#"{"templateID":"base"}"#).await.assert_error(429, "too many requests");
    assert_eq!(answer.header("should-retry"), Some("true"));
    let wait: u32 = answer.header("retry-after").expect("told").parse().expect("whole seconds");
    assert!((1100..=1200).contains(&wait), "{wait}");
    assert_eq!(answer.header("ratelimit-remaining"), Some("0"));
    assert!(world.node.state().creates.is_empty());
    assert_eq!(other.get("/v2/sandboxes").await.assert_status(200).header("ratelimit-remaining"), Some("2"));
    // Who is nobody is no team either.
    assert_eq!(world.client_with(None).get("/v2/sandboxes").await.assert_status(401).header("ratelimit-limit"), None);
}

#[tokio::test]
async fn an_address_is_refused_before_anybody_looks_at_its_key() {
    let mut world = World::with(Config { address_rate: rate(2), ..config() }).await;
    let address = "192.0.2.7:4711".parse().expect("an address");
    world.stop_server().await;
    world.comes_from = Some(address);
    world.start_server().await;
    let nobody = world.client_with(None);
    for remaining in ["1", "0"] {
        let answer = nobody.get("/v2/sandboxes").await.assert_error(401, "no API key");
        assert_eq!(answer.header("ratelimit-remaining"), Some(remaining));
    }
    let refused = world.client.get("/v2/sandboxes").await.assert_error(429, "too many requests");
    assert!(refused.header("retry-after").is_some());
    nobody.get("/health").await.assert_status(200);
}

#[tokio::test]
async fn addresses_of_one_network_are_one() {
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
        world.client_with(None).send("GET", "/v2/sandboxes", &[(COMES_FROM, from)], "").await.assert_status(status);
    }
}

#[tokio::test]
async fn nobody_is_counted_by_default() {
    let world = World::start().await;
    let answer = world.client.get("/v2/sandboxes").await.assert_status(200);
    assert_eq!(answer.header("ratelimit-limit"), None);
}
