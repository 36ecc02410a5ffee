//! Verification of user tokens.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hearth_api::{Config, KeySet, UserTokens};
use hearth_types::Secret;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::world::{USER_SECRET, World, claims, config, token};

/// RSA test key in PKCS #1 format.
const RSA: &str = "\
    MIIEowIBAAKCAQEAqPWlwIVi3u1r4fFBB+AX+tBolKb/d3Du40D/ut22TUs5ZhP/ZxcUzCghOezH8KzQrjzDvdyN4OO2ZhkZ24TQK/dxdQNd\
    I1SAd5ArqSsgUCEqHl2rysH3y5+6+zujCBNPhBjRK0K65VSTTHu8bgpWpCTt/lMpSHMnamd//kbmlgPHXLij5EBNbPGgkBfteFbdWwdt5/9L\
    qF/ZrWA4jIkyW81RMXz5CF6mGx7VJdgMRX44JskSAHNzvUZIDMKH7ExmgQHkO1zJ6nlAm120mD3X/LbFAX4c06iaA6w7ULL+/bNNDtFk2RcL\
    Z2MAIYYRdV6JqI0FoM//yInXNOTmRiksaQIDAQABAoIBAAFFNY2UwylLbjH48yT4w51kZ0Dk34tZm0Y0pSeVxqrem6wfjt5Kz2J4k8VgeSFf\
    X0NMHCmniJ6N/79VRXs/zKPj/KOlVpQvLLcZa6aeNyQ7F5q6WBIScsdCaHC+oktrf7/NwvbZDdgvEltzG7fVFpEt4Oc2X1tW2E9Fv3HdPRsY\
    IY0NeRAjdvHyxqzKUZzdKMSCvYcQbQvVOydBt8oo+J1qTDmWkxh+r+q/HDWOvt+qgjBTBxlpwqlrH0JkQFlIWVlRY8V/DG6nU3VDKGNJOj1Z\
    N0hGiXa2lrEM3os6F0UUL/Ai7S80bKifjsNOo1D/XPEJW9ROScaLOxCcjDLc8oECgYEA1GPgD6/OqSxOk/HPyBjPppOTT+Xgj0tGOmO5buhP\
    rSs/cpqXeP8nUt8q0qsGr49PEcm6ev2EIevwOG1z61h+eoClTCGuL11Lh1hA7LNiZs56M7ZIi9z7SRnFIQlk8yZsdcvhLGK9JH5PGKXTZv8J\
    TbuKg1QF2Xzkl+iGJAYDAsECgYEAy6bgklQe/gwMlJJV9seu49NE0d5L4Lnz1VNUauPcpAfyMksmFiUfu29fcjjcTtwr2St1f0YHDKB7gUNY\
    GR4oQJk9gW4R3yebBwQwULC2zTp3/HOyY8ObDU1cmR/hVeqFkNORoPM+DErEeYrQ3U5dlAnyml9uiiIUXvEiM69iG6kCgYBpMFXmLwJBUwpP\
    x3FK/s7JB0nsRkOjdHqBrKZIQZJEh6jSz7G5YVVOe+yvjbiv9mAIxUowY6KvUjUVHVBN/PQXI+O6AuxL1P71N0ZgdK+FjzmCpwLjEjz6BWNW\
    a1qt+he5d5I782MN0ejGokpDNoibEQkW5eRHxM1KVwUojjmrgQKBgQC1hU4gP6jMSpMgDntfFsdVPKfX5Kt/aF/lYnwZNnchIhAIMiGFlZt+\
    JxxNJE+CXw8aaHk3c4SvBZBwPEWXReEdCzneVuzJGnU9QMeL9KdLsHToaXu1HtHifnUt61OfkAVzfJEOhCFnNXGA4HGhAMu6O0+pt6xApXXA\
    1m/k38uz2QKBgA07X9KeccNGlHTjNFQHg/guzBOsk1z8mnWgysln9bdVrqQb9vrX3eDeivLMliQu9ZeWi9chERnQe5i1/OzunPKNZUmjhmGL\
    fAz8uDTuG1tjL9H1jKNO3nhj8Fe9kKVw/RuQ50ceV679cYE/p823iraKe5jgp7bTJzlHPuVM37oG";

/// EC test key (P-256) in PKCS #8 format.
const EC: &str = "\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg6kyuLrvVlFA+CqPPC4XGqDd2ECMVo+BpE6u/O50DzhqhRANCAATdmvbEb/wd\
    y/Bht/Cjgnc1ZEmBcMcFAq2nJ3CkuEMq0YfGPTjO81j+kt+LonaxCa9jJ1zq2NjEmIOLG25zFK/B";

fn key(text: &str, read: fn(&[u8]) -> EncodingKey) -> EncodingKey {
    read(&STANDARD.decode(text).expect("base64"))
}

fn rsa() -> EncodingKey {
    key(RSA, EncodingKey::from_rsa_der)
}

fn ec() -> EncodingKey {
    key(EC, EncodingKey::from_ec_der)
}

/// Returns the public key in JWK format, as an issuer publishes it.
fn published(key: &EncodingKey, algorithm: Algorithm, id: Option<&str>) -> Value {
    let mut jwk = Jwk::from_encoding_key(key, algorithm).expect("a key that can be published");
    jwk.common.key_id = id.map(str::to_owned);
    serde_json::to_value(jwk).expect("JSON")
}

fn signed(key: &EncodingKey, algorithm: Algorithm, id: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: id.map(str::to_owned), ..Header::new(algorithm) };
    encode(&header, claims, key).expect("a token")
}

fn with(user_tokens: UserTokens) -> Config {
    Config { user_tokens, ..config() }
}

async fn is_accepted(world: &World, token: &str) -> bool {
    let header = format!("Bearer {token}");
    let reply = world.client_with(None).send("GET", "/teams", &[("authorization", &header)], "").await;
    match reply.status.as_u16() {
        200 => true,
        401 => {
            reply.assert_error(401, "invalid user token");
            false
        }
        _ => panic!("{reply:?}"),
    }
}

/// Returns the claims with one claim changed, or removed if the value is null.
fn but(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    let members = claims.as_object_mut().expect("an object");
    if value.is_null() {
        members.remove(name);
    } else {
        members.insert(name.to_owned(), value);
    }
    claims
}

#[tokio::test]
async fn claims_are_checked() {
    let issuer = "https://auth.example.com/auth/v1";
    let tokens = UserTokens { issuer: Some(issuer.to_owned()), ..config().user_tokens };
    let world = World::with(with(tokens)).await;
    let (user, _) = world.user("ada@example.com", &[&world.team]).await;
    let good = but(&claims(&user.subject), "iss", json!(issuer));
    let now = jiff::Timestamp::now().as_second();
    for (name, value, expected) in [
        ("role", Value::Null, true),
        ("iat", Value::Null, true),
        ("aud", json!(["other", "authenticated"]), true),
        ("aud", json!("anon"), false),
        ("aud", json!([]), false),
        ("aud", Value::Null, false),
        ("iss", json!("https://evil.example.com"), false),
        ("iss", Value::Null, false),
        ("sub", Value::Null, false),
        ("sub", json!(""), false),
        ("sub", json!("caller else"), false),
        ("sub", json!(7), false),
        ("sub", json!("\u{0}"), false),
        ("exp", Value::Null, false),
        ("exp", json!("tomorrow"), false),
        ("exp", json!(now - 3600), false),
        // Clocks may differ by up to one minute.
        ("exp", json!(now - 30), true),
        ("exp", json!(now - 90), false),
        ("nbf", json!(now - 3600), true),
        ("nbf", json!(now + 30), true),
        ("nbf", json!(now + 90), false),
    ] {
        let token = token(&but(&good, name, value.clone()));
        assert_eq!(is_accepted(&world, &token).await, expected, "{name}: {value}");
    }
}

#[tokio::test]
async fn only_tokens_of_the_issuer_are_accepted() {
    let world = World::start().await;
    let (user, good) = world.user("ada@example.com", &[&world.team]).await;
    let claims = claims(&user.subject);
    assert!(is_accepted(&world, &good).await);
    let (head, rest) = good.split_once('.').expect("three parts");
    let (body, signature) = rest.split_once('.').expect("three parts");
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = part(json!({"alg": "none", "typ": "JWT"}));
    let forged = part(but(&claims, "sub", json!("root")));
    let with_secret =
        |secret: &str, algorithm| signed(&EncodingKey::from_secret(secret.as_bytes()), algorithm, None, &claims);
    let critical = Header { crit: Some(vec!["exp".to_owned()]), ..Header::default() };
    let critical = encode(&critical, &claims, &EncodingKey::from_secret(USER_SECRET.as_bytes())).expect("a token");
    for invalid in [
        critical,
        String::new(),
        "x".to_owned(),
        "..".to_owned(),
        format!("{head}.{body}"),
        format!("{head}.{body}."),
        format!("{unsigned}.{body}."),
        format!("{unsigned}.{body}.{signature}"),
        format!("{head}.{forged}.{signature}"),
        format!("{good}x"),
        format!("{good}.x"),
        "x".repeat(20_000),
        with_secret("another-secret-of-32-characters!", Algorithm::HS256),
        with_secret("", Algorithm::HS256),
        with_secret(USER_SECRET, Algorithm::HS512),
        signed(&rsa(), Algorithm::RS256, None, &claims),
    ] {
        assert!(!is_accepted(&world, &invalid).await, "{invalid}");
    }
}

#[tokio::test]
async fn published_keys_are_accepted_only_for_their_algorithm() {
    let set = json!({"keys": [
        published(&rsa(), Algorithm::RS256, Some("rsa-1")),
        published(&ec(), Algorithm::ES256, Some("ec-1")),
        {"kty": "RSA", "use": "enc", "kid": "enc-1", "n": "AQAB", "e": "AQAB"},
    ]});
    let tokens = UserTokens {
        jwks: Some(KeySet::Text(set.to_string())),
        audience: Some("authenticated".to_owned()),
        ..UserTokens::default()
    };
    let world = World::with(with(tokens)).await;
    let (user, shared) = world.user("ada@example.com", &[&world.team]).await;
    let claims = claims(&user.subject);
    let modulus = published(&rsa(), Algorithm::RS256, None)["n"].as_str().expect("a text").to_owned();
    for (token, expected, what) in [
        (signed(&rsa(), Algorithm::RS256, Some("rsa-1"), &claims), true, "RSA"),
        (signed(&ec(), Algorithm::ES256, Some("ec-1"), &claims), true, "EC"),
        (signed(&rsa(), Algorithm::RS256, None, &claims), true, "without a key ID"),
        (signed(&rsa(), Algorithm::RS256, Some("rsa-2"), &claims), false, "an unknown key ID"),
        (signed(&rsa(), Algorithm::RS256, Some("ec-1"), &claims), false, "a key of another type"),
        (signed(&rsa(), Algorithm::RS512, Some("rsa-1"), &claims), false, "an algorithm that the key does not allow"),
        (shared, false, "no shared secret is configured"),
        // A public key must never be usable as a shared secret.
        (
            signed(&EncodingKey::from_secret(modulus.as_bytes()), Algorithm::HS256, Some("rsa-1"), &claims),
            false,
            "the public key as a secret",
        ),
    ] {
        assert_eq!(is_accepted(&world, &token).await, expected, "{what}");
    }
}

#[tokio::test]
async fn unusable_keys_fail_the_start() {
    let secret = json!({"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]}).to_string();
    let text = |text: &str| KeySet::Text(text.to_owned());
    let address = |text: &str| KeySet::Address(text.to_owned());
    for (jwks, message) in [
        (text("{"), "parsing the key set"),
        (text("[]"), "parsing the key set"),
        (text(r#"{"keys":[]}"#), "no RSA"),
        (text(&secret), "symmetric"),
        (address("ftp://example.com/keys"), "https://"),
        (address("/keys"), "https://"),
        (address("https:///keys"), "https://"),
        (KeySet::Issuer("login.example.com".to_owned()), "https://"),
    ] {
        let tokens = UserTokens { jwks: Some(jwks), leeway: Duration::ZERO, ..UserTokens::default() };
        let cause = World::start_error(Config { user_tokens: tokens, ..Config::new(Secret::new("x"), None) }).await;
        assert!(cause.contains(message), "{message}: {cause}");
    }
}

#[tokio::test]
async fn keys_are_fetched_again_when_the_issuer_rotates_them() {
    let keys = std::sync::Arc::new(std::sync::Mutex::new(json!({"keys": []})));
    let shown = std::sync::Arc::clone(&keys);
    let show = move || async move { axum::Json(shown.lock().expect("no panic").clone()) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}/jwks.json", listener.local_addr().expect("an address"));
    let issuer = axum::Router::new().route("/jwks.json", axum::routing::get(show));
    let serving = tokio::spawn(async move { axum::serve(listener, issuer).await.expect("serving") });
    let tokens = UserTokens {
        jwks: Some(KeySet::Address(address)),
        refetch_interval_min: Duration::from_millis(50),
        ..UserTokens::default()
    };
    let world = World::with(with(tokens)).await;
    let (user, _) = world.user("ada@example.com", &[&world.team]).await;
    let claims = claims(&user.subject);
    let first = signed(&rsa(), Algorithm::RS256, Some("rsa-1"), &claims);
    let second = signed(&ec(), Algorithm::ES256, Some("ec-1"), &claims);
    let eventually = async |token: &str| {
        world
            .eventually("the token is accepted", async || match is_accepted(&world, token).await {
                true => Ok(()),
                false => Err("not yet".to_owned()),
            })
            .await;
    };
    assert!(!is_accepted(&world, &first).await, "nothing is published yet");
    *keys.lock().expect("no panic") = json!({"keys": [published(&rsa(), Algorithm::RS256, Some("rsa-1"))]});
    eventually(&first).await;
    assert!(!is_accepted(&world, &second).await);
    *keys.lock().expect("no panic") = json!({"keys": [published(&ec(), Algorithm::ES256, Some("ec-1"))]});
    eventually(&second).await;
    assert!(!is_accepted(&world, &first).await, "a withdrawn key is no longer accepted");
    // The last keys stay valid while the issuer is unreachable.
    serving.abort();
    let unknown = signed(&rsa(), Algorithm::RS256, Some("rsa-2"), &claims);
    assert!(!is_accepted(&world, &unknown).await);
    assert!(is_accepted(&world, &second).await);
}

#[tokio::test]
async fn the_issuer_s_configuration_has_the_address_of_its_keys() {
    let named = std::sync::Arc::new(std::sync::Mutex::new("https://other.example.com".to_owned()));
    let shown = std::sync::Arc::clone(&named);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let issuer = format!("http://{}/realm", listener.local_addr().expect("an address"));
    let keys = format!("{issuer}/keys");
    let configuration = move || {
        let issuer = shown.lock().expect("no panic").clone();
        async move { axum::Json(json!({"issuer": issuer, "jwks_uri": keys})) }
    };
    let set = json!({"keys": [published(&rsa(), Algorithm::RS256, Some("rsa-1"))]});
    let routes = axum::Router::new()
        .route("/realm/.well-known/openid-configuration", axum::routing::get(configuration))
        .route("/realm/keys", axum::routing::get(async move || axum::Json(set)));
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serving") });
    let tokens = UserTokens {
        jwks: Some(KeySet::Issuer(issuer.clone())),
        issuer: Some(issuer.clone()),
        refetch_interval_min: Duration::from_millis(50),
        ..UserTokens::default()
    };
    let world = World::with(with(tokens)).await;
    let (user, _) = world.user("ada@example.com", &[&world.team]).await;
    let claims = but(&claims(&user.subject), "iss", json!(issuer));
    let token = signed(&rsa(), Algorithm::RS256, Some("rsa-1"), &claims);
    assert!(!is_accepted(&world, &token).await, "the configuration names another issuer");
    *named.lock().expect("no panic") = issuer;
    world
        .eventually("the token is accepted", async || match is_accepted(&world, &token).await {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        })
        .await;
    let foreign = but(&claims, "iss", json!("https://other.example.com"));
    assert!(!is_accepted(&world, &signed(&rsa(), Algorithm::RS256, Some("rsa-1"), &foreign)).await);
    serving.abort();
}
