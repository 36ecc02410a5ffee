//! Logins with a password, their renewal and their end.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use hearth_api::{Config, Identity, Rate};
use hearth_store::{PasswordHash, Standing, User};
use hearth_types::Secret;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::client::Reply;
use crate::world::{PEER_HEADER, USER_SECRET, World, claims, config, token};

const PAGE: &str = "/docs/api/cli";
const NEXT: &str = "http://localhost:4711";
const PASSWORD: &str = "correct horse battery";
const KEY: &str = "a-signing-key-of-at-least-32-bytes";

fn identity() -> Identity {
    Identity::new(Secret::new(KEY), "http://127.0.0.1:3000".to_owned())
}

async fn world() -> World {
    World::with(Config { identity: identity(), ..config() }).await
}

async fn set_password(world: &World, user: &User, password: &'static str) {
    let hash = tokio::task::spawn_blocking(move || PasswordHash::of(&Secret::new(password)).expect("long enough"));
    assert!(world.store.set_password(user.id, Some(&hash.await.expect("no panic"))).await.expect("a write"));
}

/// Creates a member of the world's team with a password.
async fn ada(world: &World) -> User {
    let (user, _) = world.user("ada@example.com", &[&world.team]).await;
    set_password(world, &user, PASSWORD).await;
    user
}

fn form(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

async fn post(world: &World, path: &str, headers: &[(&str, &str)], pairs: &[(&str, &str)]) -> Reply {
    let headers = [&[("content-type", "application/x-www-form-urlencoded")], headers].concat();
    world.client_with(None).send("POST", path, &headers, form(pairs)).await
}

async fn submit(world: &World, email: &str, password: &str) -> Reply {
    post(world, PAGE, &[], &[("next", NEXT), ("email", email), ("password", password)]).await
}

/// Returns the parameters of the redirect to the command line.
fn redirect_parameters(reply: &Reply) -> BTreeMap<String, String> {
    assert_eq!(reply.status, 303, "{reply:?}");
    let location = reply.header("location").expect("a redirect");
    let query = location.strip_prefix("http://localhost:4711/?").expect("to the command line");
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

async fn log_in(world: &World) -> BTreeMap<String, String> {
    redirect_parameters(&submit(world, "ada@example.com", PASSWORD).await)
}

async fn is_accepted(world: &World, token: &str) -> bool {
    let bearer = format!("Bearer {token}");
    let reply = world.client_with(None).send("GET", "/teams", &[("authorization", &bearer)], "").await;
    assert!([200, 401].contains(&reply.status.as_u16()), "{reply:?}");
    reply.status == 200
}

async fn renew(world: &World, refresh_token: &str) -> Reply {
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", refresh_token), ("client_id", "hearth-cli")];
    post(world, "/oauth/token", &[], &pairs).await
}

#[track_caller]
fn assert_private(reply: &Reply) {
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{reply:?}");
    assert_eq!(reply.header("access-control-allow-origin"), None, "{reply:?}");
}

#[tokio::test]
async fn the_page_shows_the_form_or_the_result() {
    let world = world().await;
    let get = async |query: &str| world.client_with(None).get(&format!("{PAGE}{query}")).await;
    let next = format!("?{}", form(&[("next", NEXT), ("cliVersion", "2.19.0")]));
    let empty = get(&next).await.assert_status(200);
    assert!(empty.text.contains("hearth user password EMAIL") && !empty.text.contains("<form"), "{}", empty.text);
    ada(&world).await;
    let bad_next = ["", "http://evil.example:80", "https://localhost:1", "http://localhost:1/x", "javascript:alert(1)"];
    let bad_next =
        bad_next.map(|next| (format!("?{}", form(&[("next", next)])), 400, "must be a port of this computer"));
    let repeated = format!("{next}&next=http://evil.example:80");
    for (query, status, part) in [
        (next, 200, "port 4711"),
        ("?state=success&email=ada%40example.com".to_owned(), 200, "<strong>ada@example.com</strong>"),
        ("?state=success".to_owned(), 200, "You are logged in"),
        ("?state=error&error=no+luck".to_owned(), 200, "no luck"),
        ("?state=error".to_owned(), 200, "no reason was given"),
        (String::new(), 400, "`next` is missing or repeated"),
        ("?state=other".to_owned(), 400, "`next` is missing or repeated"),
        (repeated, 400, "`next` is missing or repeated"),
    ]
    .into_iter()
    .chain(bad_next)
    {
        let reply = get(&query).await.assert_status(status);
        assert!(reply.text.contains(part), "{query}: {}", reply.text);
        assert_eq!(reply.text.contains("<form"), query.contains("4711") && status == 200, "{query}");
        assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = reply.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("script"), "{policy}");
        let forms = if reply.text.contains("<form") {
            "form-action 'self' http://localhost:4711;"
        } else {
            "form-action 'none'"
        };
        assert!(policy.contains(forms), "{policy}");
        assert_private(&reply);
    }
    world.client_with(None).send("PUT", PAGE, &[], "").await.assert_error(405, "method");
}

#[tokio::test]
async fn input_never_becomes_markup() {
    let world = world().await;
    ada(&world).await;
    let hostile = "\"'><script>alert(1)</script>";
    let get = async |pairs: &[(&str, &str)]| world.client_with(None).get(&format!("{PAGE}?{}", form(pairs))).await;
    for reply in [
        get(&[("state", "success"), ("email", hostile)]).await,
        get(&[("state", "error"), ("error", hostile)]).await,
        get(&[("next", hostile)]).await,
        submit(&world, hostile, "wrong").await,
        post(&world, PAGE, &[], &[("next", hostile), ("email", "a"), ("password", "b")]).await,
    ] {
        assert!(!reply.text.contains("<script") && !reply.text.contains("\"'"), "{}", reply.text);
    }
    let long = get(&[("state", "error"), ("error", &"x".repeat(5000))]).await;
    assert!(!long.text.contains(&"x".repeat(501)), "a long text is truncated");
}

#[tokio::test]
async fn a_password_redirects_to_the_command_line_with_a_valid_token() {
    let world = world().await;
    ada(&world).await;
    let reply = submit(&world, " ada@example.com ", PASSWORD).await;
    assert_private(&reply);
    let parameters = redirect_parameters(&reply);
    assert_eq!((parameters["email"].as_str(), parameters["clientId"].as_str()), ("ada@example.com", "hearth-cli"));
    assert!(
        parameters["tokenEndpoint"].starts_with("http://127.0.0.1:")
            && parameters["tokenEndpoint"].ends_with("/oauth/token")
    );
    assert!(parameters["revokeEndpoint"].ends_with("/oauth/revoke"), "{parameters:?}");
    let bearer = format!("Bearer {}", parameters["accessToken"]);
    let teams = world.client_with(None).send("GET", "/teams", &[("authorization", &bearer)], "").await;
    assert_eq!(teams.assert_status(200).json()[0]["teamID"], world.team.id.to_string());
    let team_id = world.team.id.to_string();
    let headers = [("authorization", bearer.as_str()), ("x-team-id", &team_id)];
    world.client_with(None).send("GET", "/api-keys", &headers, "").await.assert_status(200);
}

#[tokio::test]
async fn rejected_logins_do_not_reveal_accounts() {
    let world = world().await;
    ada(&world).await;
    world.user("without@example.com", &[&world.team]).await;
    let (without_team, _) = world.user("no-team@example.com", &[]).await;
    set_password(&world, &without_team, PASSWORD).await;
    let mut messages = Vec::new();
    for (email, password) in [
        ("ada@example.com", "wrong horse battery"),
        ("ada@example.com", ""),
        ("ada@example.com", &"x".repeat(5000)),
        ("without@example.com", PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("", ""),
        ("ada@example.com\0", PASSWORD),
    ] {
        let reply = submit(&world, email, password).await.assert_status(403);
        assert!(!reply.text.contains(PASSWORD), "the page does not contain the password");
        assert_private(&reply);
        let message = reply.text.split_once("role=\"alert\">").expect("a message").1;
        messages.push(message.split_once("</p>").expect("a message").0.to_owned());
    }
    messages.dedup();
    assert_eq!(messages, ["There is nobody with this address and this password."], "the message is always the same");
    let reply = submit(&world, "no-team@example.com", PASSWORD).await.assert_status(403);
    assert!(reply.text.contains("hearth user join"), "{}", reply.text);
    world.store.set_team_standing(world.team.id, &Standing::Banned { reason: String::new() }).await.expect("a write");
    submit(&world, "ada@example.com", PASSWORD).await.assert_status(403);
}

#[tokio::test]
async fn only_the_server_s_own_form_is_accepted() {
    let world = world().await;
    ada(&world).await;
    let good = [("next", NEXT), ("email", "ada@example.com"), ("password", PASSWORD)];
    for (site, status) in [("same-origin", 303), ("none", 303), ("same-site", 403), ("cross-site", 403)] {
        post(&world, PAGE, &[("sec-fetch-site", site)], &good).await.assert_status(status);
    }
    for (pairs, status) in [
        (&good[..2], 400),
        (&good[1..], 400),
        (&[("next", NEXT), ("email", "ada@example.com"), ("password", PASSWORD), ("password", "x")], 400),
        (&[("next", "http://evil.example:80"), good[1], good[2]], 400),
    ] {
        assert_private(&post(&world, PAGE, &[], pairs).await.assert_status(status));
    }
    let client = world.client_with(None);
    client.post(PAGE, &json!({"next": NEXT}).to_string()).await.assert_status(415);
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    client.send("POST", PAGE, &kind, vec![b'x'; 65 * 1024]).await.assert_status(413);
    client.get("/docs/api/cli/start?next=http://localhost:4711").await.assert_status(404);
    client.get("/docs/api/cli/callback?code=a&state=b").await.assert_status(404);
}

#[tokio::test]
async fn password_attempts_are_limited() {
    let rate = |requests| Rate { requests: NonZeroU32::new(requests).expect("some"), per: Duration::from_secs(3600) };
    let identity = Identity { account_attempts: rate(3), network_attempts: rate(5), ..identity() };
    let mut world = World::with(Config { identity, ..config() }).await;
    world.stop_server().await;
    world.peer = Some("192.0.2.7:4711".parse().expect("an address"));
    world.start_server().await;
    ada(&world).await;
    for _ in 0..10 {
        // A correct password does not count.
        log_in(&world).await;
    }
    for _ in 0..3 {
        submit(&world, "ada@example.com", "wrong horse battery").await.assert_status(403);
    }
    for email in ["ada@example.com", "Ada@Example.com"] {
        // Now the correct password is rejected too.
        let reply = submit(&world, email, PASSWORD).await.assert_status(429);
        let wait: u32 = reply.header("retry-after").expect("a header").parse().expect("seconds");
        assert!((1100..=1200).contains(&wait), "{wait}");
        assert!(reply.text.contains("Try again in 20 minutes") && reply.text.contains("<form"), "{}", reply.text);
    }
    // All attempts counted against the limit of the network.
    submit(&world, "bob@example.com", "wrong horse battery").await.assert_status(429);
    world.stop_server().await;
    world.peer = Some("192.0.2.8:4711".parse().expect("an address"));
    world.start_server().await;
    for (email, status) in [("a@b", 403), ("a@b", 403), ("a@b", 403), ("a@b", 429), ("c@d", 403), ("e@f", 429)] {
        submit(&world, email, "wrong horse battery").await.assert_status(status);
    }
}

#[tokio::test]
async fn guesses_of_others_do_not_lock_the_owner_out() {
    let rate = |requests| Rate { requests: NonZeroU32::new(requests).expect("some"), per: Duration::from_secs(3600) };
    let identity = Identity {
        account_attempts: rate(3),
        account_attempts_all_networks: rate(10),
        network_attempts: rate(1000),
        ..identity()
    };
    let world = World::with(Config { identity, ..config() }).await;
    ada(&world).await;
    let try_from = async |from: &str, password: &str| {
        let pairs = [("next", NEXT), ("email", "ada@example.com"), ("password", password)];
        post(&world, PAGE, &[(PEER_HEADER, from)], &pairs).await.status.as_u16()
    };
    let home = ["192.0.2.1", "2001:db8:1:2::1"];
    for from in home {
        assert_eq!(try_from(from, PASSWORD).await, 303, "{from}");
    }
    // Attempts from many other networks.
    for _ in 0..4 {
        try_from("198.51.100.1", "wrong horse battery").await;
    }
    assert_eq!(try_from("198.51.100.1", PASSWORD).await, 429, "one network is limited");
    assert_eq!(try_from("::ffff:198.51.100.1", PASSWORD).await, 429, "the mapped address is the same network");
    for number in 0..10 {
        try_from(&format!("203.0.113.{number}"), "wrong horse battery").await;
    }
    assert_eq!(try_from("203.0.113.77", PASSWORD).await, 429, "all networks together are limited");
    for from in [home[0], "2001:db8:1:2::ffff"] {
        assert_eq!(
            try_from(from, "wrong horse battery").await,
            403,
            "{from}: the limit of all networks does not apply to a network that logged in before"
        );
        assert_eq!(try_from(from, PASSWORD).await, 303, "{from}");
    }
    assert_eq!(try_from("2001:db8:1:3::1", PASSWORD).await, 429, "another network");
    for _ in 0..4 {
        try_from(home[0], "wrong horse battery").await;
    }
    assert_eq!(try_from(home[0], PASSWORD).await, 429, "the limit of one network still applies");
}

#[tokio::test]
async fn a_form_of_another_origin_is_rejected_without_fetch_metadata() {
    let world = world().await;
    ada(&world).await;
    let pairs = [("next", NEXT), ("email", "ada@example.com"), ("password", PASSWORD)];
    let own_origin = format!("http://{}", world.client.url("").trim_start_matches("http://"));
    for (headers, status) in [
        (&[][..], 303),
        (&[("origin", own_origin.as_str())], 303),
        (&[("origin", "https://hearth.test:3002")], 303),
        (&[("origin", "null"), ("sec-fetch-site", "same-origin")], 303),
        (&[("origin", "null")], 403),
        (&[("origin", "https://evil.example")], 403),
        (&[("origin", "https://8080-i0123.hearth.test:3002")], 403),
        (&[("origin", "http://127.0.0.1:1")], 403),
        (&[("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")], 403),
    ] {
        let reply = post(&world, PAGE, headers, &pairs).await;
        assert_eq!(reply.status.as_u16(), status, "{headers:?}");
    }
}

#[tokio::test]
async fn a_login_is_renewed_until_a_token_is_used_twice() {
    let world = world().await;
    ada(&world).await;
    let (first, other) = (log_in(&world).await, log_in(&world).await);
    let renewed = renew(&world, &first["refreshToken"]).await.assert_status(200);
    assert_private(&renewed);
    assert_eq!((&renewed.json()["token_type"], &renewed.json()["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let (access, refresh) = (renewed.text_of("access_token"), renewed.text_of("refresh_token"));
    assert_ne!(refresh, first["refreshToken"]);
    assert!(is_accepted(&world, &access).await && is_accepted(&world, &first["accessToken"]).await);
    let replayed = renew(&world, &first["refreshToken"]).await.assert_status(400);
    assert_eq!(replayed.json()["error"], "invalid_grant");
    assert_eq!(renew(&world, &refresh).await.assert_status(400).json()["error"], "invalid_grant");
    assert!(!is_accepted(&world, &access).await && !is_accepted(&world, &first["accessToken"]).await);
    assert!(is_accepted(&world, &other["accessToken"]).await, "other logins stay valid");
    renew(&world, &other["refreshToken"]).await.assert_status(200);
}

#[tokio::test]
async fn an_ended_login_is_rejected_immediately() {
    let world = world().await;
    let user = ada(&world).await;
    for (token, is_refresh) in [("refreshToken", true), ("accessToken", false)] {
        let login = log_in(&world).await;
        let hint = if is_refresh { "refresh_token" } else { "access_token" };
        let pairs = [("token", login[token].as_str()), ("token_type_hint", hint), ("client_id", "hearth-cli")];
        for _ in 0..2 {
            let revoked = post(&world, "/oauth/revoke", &[], &pairs).await.assert_status(200);
            assert_private(&revoked);
        }
        assert!(!is_accepted(&world, &login["accessToken"]).await, "revoked with its {token}");
        assert_eq!(renew(&world, &login["refreshToken"]).await.assert_status(400).json()["error"], "invalid_grant");
    }
    // The login expired.
    let login = log_in(&world).await;
    world.sql("UPDATE login SET expires_at_us = 1").await;
    assert!(!is_accepted(&world, &login["accessToken"]).await);
    renew(&world, &login["refreshToken"]).await.assert_status(400);
    // The password was changed.
    let login = log_in(&world).await;
    set_password(&world, &user, "another horse battery").await;
    assert!(!is_accepted(&world, &login["accessToken"]).await);
    // The user was deleted.
    let login = redirect_parameters(&submit(&world, "ada@example.com", "another horse battery").await);
    world.store.delete_user(user.id).await.expect("a write");
    assert!(!is_accepted(&world, &login["accessToken"]).await);
    assert_eq!(renew(&world, &login["refreshToken"]).await.assert_status(400).json()["error"], "invalid_grant");
}

#[tokio::test]
async fn logins_survive_a_restart_and_expired_ones_are_deleted() {
    let mut world = world().await;
    ada(&world).await;
    let login = log_in(&world).await;
    world.restart().await;
    assert!(is_accepted(&world, &login["accessToken"]).await);
    world.sql("UPDATE login SET expires_at_us = 1").await;
    world
        .eventually("the reconciler deletes the login", async || {
            let deleted = world.store.delete_expired_logins(jiff::Timestamp::now()).await.expect("a write");
            if deleted == 0 { Ok(()) } else { Err("the login still existed".to_owned()) }
        })
        .await;
}

#[tokio::test]
async fn oauth_errors_have_the_codes_of_the_rfc() {
    let world = world().await;
    ada(&world).await;
    let login = log_in(&world).await;
    let (refresh, access) = (login["refreshToken"].as_str(), login["accessToken"].as_str());
    let (grant, client) = (("grant_type", "refresh_token"), ("client_id", "hearth-cli"));
    let unknown = format!("hearth_refresh_{}_{}", "0".repeat(32), "0".repeat(64));
    for (path, pairs, error) in [
        ("/oauth/token", vec![], "invalid_request"),
        ("/oauth/token", vec![client, ("refresh_token", refresh)], "invalid_request"),
        ("/oauth/token", vec![grant, ("refresh_token", refresh)], "invalid_request"),
        ("/oauth/token", vec![grant, client], "invalid_request"),
        ("/oauth/token", vec![grant, client, ("refresh_token", "")], "invalid_request"),
        (
            "/oauth/token",
            vec![grant, client, ("refresh_token", refresh), ("refresh_token", refresh)],
            "invalid_request",
        ),
        ("/oauth/token", vec![("grant_type", "password"), client], "unsupported_grant_type"),
        ("/oauth/token", vec![grant, ("client_id", "other"), ("refresh_token", refresh)], "invalid_client"),
        ("/oauth/token", vec![grant, client, ("refresh_token", "x")], "invalid_grant"),
        ("/oauth/token", vec![grant, client, ("refresh_token", access)], "invalid_grant"),
        ("/oauth/token", vec![grant, client, ("refresh_token", &unknown)], "invalid_grant"),
        ("/oauth/revoke", vec![client], "invalid_request"),
        ("/oauth/revoke", vec![("client_id", "other"), ("token", refresh)], "invalid_client"),
    ] {
        let reply = post(&world, path, &[], &pairs).await.assert_status(400);
        assert_eq!(reply.json()["error"], error, "{path} {pairs:?}");
        assert!(reply.json()["error_description"].is_string());
        assert_private(&reply);
    }
    // An unknown token counts as revoked.
    post(&world, "/oauth/revoke", &[], &[("token", "x")]).await.assert_status(200);
    post(&world, "/oauth/revoke", &[], &[("token", &unknown), client]).await.assert_status(200);
    let json = world.client_with(None).post("/oauth/token", "{}").await.assert_status(415);
    assert_eq!(json.json()["error"], "invalid_request");
    world.client_with(None).get("/oauth/token").await.assert_error(405, "method");
    renew(&world, refresh).await.assert_status(200);
}

#[tokio::test]
async fn tokens_are_verified_with_the_keys_of_their_issuer() {
    let world = world().await;
    let user = ada(&world).await;
    let login = log_in(&world).await;
    let own: Value = jsonwebtoken::dangerous::insecure_decode_claims(&login["accessToken"]).expect("a token");
    assert_eq!((&own["iss"], &own["sub"]), (&json!("urn:hearth:identity"), &json!(user.id.to_string())));
    let external = claims(&user.subject);
    let at = |kind: &str| Header { typ: Some(kind.to_owned()), ..Header::default() };
    let signed = |header: &Header, claims: &Value, key: &str| {
        encode(header, claims, &EncodingKey::from_secret(key.as_bytes())).expect("a token")
    };
    let but = |claims: &Value, name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    for (token, expected, what) in [
        (signed(&at("at+jwt"), &own, KEY), true, "Hearth's token"),
        (token(&external), true, "external token"),
        (signed(&at("at+jwt"), &own, USER_SECRET), false, "Hearth's claims, signed with the external secret"),
        (signed(&at("JWT"), &external, KEY), false, "external claims, signed with Hearth's key"),
        (token(&but(&external, "iss", json!("urn:hearth:identity"))), false, "external token with Hearth's issuer"),
        (signed(&at("at+jwt"), &but(&external, "iss", own["iss"].clone()), KEY), false, "no login"),
        (signed(&at("JWT"), &own, KEY), false, "another token type"),
        (signed(&at("at+jwt"), &but(&own, "aud", json!("authenticated")), KEY), false, "another audience"),
        (signed(&at("at+jwt"), &but(&own, "exp", json!(1)), KEY), false, "expired"),
        (signed(&at("at+jwt"), &but(&own, "sid", json!(user.id.to_string())), KEY), false, "unknown login"),
        (signed(&at("at+jwt"), &but(&own, "iss", json!(["urn:hearth:identity"])), KEY), false, "list of issuers"),
    ] {
        assert_eq!(is_accepted(&world, &token).await, expected, "{what}");
    }
}

#[tokio::test]
async fn endpoints_use_the_address_of_the_request() {
    let world = world().await;
    ada(&world).await;
    for (host, expected) in [
        ("api.hearth.test:3002", "https://api.hearth.test:3002"),
        ("hearth.test:3002", "https://hearth.test:3002"),
        ("192.0.2.7:3000", "http://192.0.2.7:3000"),
        ("evil.example", "https://api.hearth.test:3002"),
    ] {
        let pairs = [("next", NEXT), ("email", "ada@example.com"), ("password", PASSWORD)];
        let parameters = redirect_parameters(&post(&world, PAGE, &[("host", host)], &pairs).await);
        assert_eq!(parameters["tokenEndpoint"], format!("{expected}/oauth/token"), "{host}");
        assert_eq!(parameters["revokeEndpoint"], format!("{expected}/oauth/revoke"), "{host}");
    }
}
