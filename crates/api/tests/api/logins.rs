//! Users log in with a password; clients renew that, and end it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use hearth_api::{Config, Identity, Rate};
use hearth_store::{PasswordHash, Standing, User};
use hearth_types::Secret;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::client::Answer;
use crate::world::{COMES_FROM, USER_SECRET, World, claims, config, token};

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

/// A member of the world's team with a password.
async fn ada(world: &World) -> User {
    let (user, _) = world.user("ada@example.com", &[&world.team]).await;
    set_password(world, &user, PASSWORD).await;
    user
}

fn form(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

async fn post(world: &World, path: &str, headers: &[(&str, &str)], pairs: &[(&str, &str)]) -> Answer {
    let headers = [&[("content-type", "application/x-www-form-urlencoded")], headers].concat();
    world.client_with(None).send("POST", path, &headers, form(pairs)).await
}

async fn submit(world: &World, email: &str, password: &str) -> Answer {
    post(world, PAGE, &[], &[("next", NEXT), ("email", email), ("password", password)]).await
}

/// What the command line is told.
fn told(answer: &Answer) -> BTreeMap<String, String> {
    assert_eq!(answer.status, 303, "{answer:?}");
    let location = answer.header("location").expect("a redirect");
    let query = location.strip_prefix("http://localhost:4711/?").expect("to the command line");
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

async fn log_in(world: &World) -> BTreeMap<String, String> {
    told(&submit(world, "ada@example.com", PASSWORD).await)
}

async fn is_believed(world: &World, token: &str) -> bool {
    let bearer = format!("Bearer {token}");
    let answer = world.client_with(None).send("GET", "/teams", &[("authorization", &bearer)], "").await;
    assert!([200, 401].contains(&answer.status.as_u16()), "{answer:?}");
    answer.status == 200
}

async fn renew(world: &World, refresh_token: &str) -> Answer {
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", refresh_token), ("client_id", "hearth-cli")];
    post(world, "/oauth/token", &[], &pairs).await
}

#[track_caller]
fn assert_private(answer: &Answer) {
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
}

#[tokio::test]
async fn the_page_says_what_it_is_asked() {
    let world = world().await;
    let get = async |query: &str| world.client_with(None).get(&format!("{PAGE}{query}")).await;
    let next = format!("?{}", form(&[("next", NEXT), ("cliVersion", "2.19.0")]));
    let empty = get(&next).await.assert_status(200);
    assert!(empty.text.contains("hearth user password EMAIL") && !empty.text.contains("<form"), "{}", empty.text);
    ada(&world).await;
    let bad_next = ["", "http://evil.example:80", "https://localhost:1", "http://localhost:1/x", "javascript:alert(1)"];
    let bad_next =
        bad_next.map(|next| (format!("?{}", form(&[("next", next)])), 400, "has to be a port of this computer"));
    let repeated = format!("{next}&next=http://evil.example:80");
    for (query, status, part) in [
        (next, 200, "port 4711"),
        ("?state=success&email=ada%40example.com".to_owned(), 200, "<strong>ada@example.com</strong>"),
        ("?state=success".to_owned(), 200, "You are logged in"),
        ("?state=error&error=no+luck".to_owned(), 200, "no luck"),
        ("?state=error".to_owned(), 200, "no reason was given"),
        (String::new(), 400, "Nothing asks for a login"),
        ("?state=other".to_owned(), 400, "Nothing asks for a login"),
        (repeated, 400, "Nothing asks for a login"),
    ]
    .into_iter()
    .chain(bad_next)
    {
        let answer = get(&query).await.assert_status(status);
        assert!(answer.text.contains(part), "{query}: {}", answer.text);
        assert_eq!(answer.text.contains("<form"), query.contains("4711") && status == 200, "{query}");
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("script"), "{policy}");
        let forms = if answer.text.contains("<form") {
            "form-action 'self' http://localhost:4711;"
        } else {
            "form-action 'none'"
        };
        assert!(policy.contains(forms), "{policy}");
        assert_private(&answer);
    }
    world.client_with(None).send("PUT", PAGE, &[], "").await.assert_error(405, "method");
}

#[tokio::test]
async fn nothing_that_is_sent_becomes_markup() {
    let world = world().await;
    ada(&world).await;
    let hostile = "\"'><script>alert(1)</script>";
    let get = async |pairs: &[(&str, &str)]| world.client_with(None).get(&format!("{PAGE}?{}", form(pairs))).await;
    for answer in [
        get(&[("state", "success"), ("email", hostile)]).await,
        get(&[("state", "error"), ("error", hostile)]).await,
        get(&[("next", hostile)]).await,
        submit(&world, hostile, "wrong").await,
        post(&world, PAGE, &[], &[("next", hostile), ("email", "a"), ("password", "b")]).await,
    ] {
        assert!(!answer.text.contains("<script") && !answer.text.contains("\"'"), "{}", answer.text);
    }
    let long = get(&[("state", "error"), ("error", &"x".repeat(5000))]).await;
    assert!(!long.text.contains(&"x".repeat(501)), "a long text is cut");
}

#[tokio::test]
async fn a_password_leads_to_the_command_line_and_its_token_to_teams() {
    let world = world().await;
    ada(&world).await;
    let answer = submit(&world, " ada@example.com ", PASSWORD).await;
    assert_private(&answer);
    let told = told(&answer);
    assert_eq!((told["email"].as_str(), told["clientId"].as_str()), ("ada@example.com", "hearth-cli"));
    assert!(told["tokenEndpoint"].starts_with("http://127.0.0.1:") && told["tokenEndpoint"].ends_with("/oauth/token"));
    assert!(told["revokeEndpoint"].ends_with("/oauth/revoke"), "{told:?}");
    let bearer = format!("Bearer {}", told["accessToken"]);
    let teams = world.client_with(None).send("GET", "/teams", &[("authorization", &bearer)], "").await;
    assert_eq!(teams.assert_status(200).json()[0]["teamID"], world.team.id.to_string());
    let team_id = world.team.id.to_string();
    let headers = [("authorization", bearer.as_str()), ("x-team-id", &team_id)];
    world.client_with(None).send("GET", "/api-keys", &headers, "").await.assert_status(200);
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why_and_no_more() {
    let world = world().await;
    ada(&world).await;
    world.user("without@example.com", &[&world.team]).await;
    let (lonely, _) = world.user("lonely@example.com", &[]).await;
    set_password(&world, &lonely, PASSWORD).await;
    let mut said = Vec::new();
    for (email, password) in [
        ("ada@example.com", "wrong horse battery"),
        ("ada@example.com", ""),
        ("ada@example.com", &"x".repeat(5000)),
        ("without@example.com", PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("", ""),
        ("ada@example.com\0", PASSWORD),
    ] {
        let answer = submit(&world, email, password).await.assert_status(403);
        assert!(!answer.text.contains(PASSWORD), "a password is not sent back");
        assert_private(&answer);
        let wrong = answer.text.split_once("role=\"alert\">").expect("a message").1;
        said.push(wrong.split_once("</p>").expect("a message").0.to_owned());
    }
    said.dedup();
    assert_eq!(said, ["There is nobody with this address and this password."], "the same to all of them");
    let answer = submit(&world, "lonely@example.com", PASSWORD).await.assert_status(403);
    assert!(answer.text.contains("hearth user join"), "{}", answer.text);
    world.store.set_team_standing(world.team.id, &Standing::Banned { reason: String::new() }).await.expect("a write");
    submit(&world, "ada@example.com", PASSWORD).await.assert_status(403);
}

#[tokio::test]
async fn only_our_own_form_is_taken() {
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
async fn guessing_is_slow() {
    let rate = |requests| Rate { requests: NonZeroU32::new(requests).expect("some"), per: Duration::from_secs(3600) };
    let identity = Identity { account_attempts: rate(3), network_attempts: rate(5), ..identity() };
    let mut world = World::with(Config { identity, ..config() }).await;
    world.stop_server().await;
    world.comes_from = Some("192.0.2.7:4711".parse().expect("an address"));
    world.start_server().await;
    ada(&world).await;
    for _ in 0..10 {
        // Whoever knows the password is not counted.
        log_in(&world).await;
    }
    for _ in 0..3 {
        submit(&world, "ada@example.com", "wrong horse battery").await.assert_status(403);
    }
    for email in ["ada@example.com", "Ada@Example.com"] {
        // Now even the right one.
        let answer = submit(&world, email, PASSWORD).await.assert_status(429);
        let wait: u32 = answer.header("retry-after").expect("told").parse().expect("seconds");
        assert!((1100..=1200).contains(&wait), "{wait}");
        assert!(answer.text.contains("Try again in 20 minutes") && answer.text.contains("<form"), "{}", answer.text);
    }
    // Those counted for the network.
    submit(&world, "bob@example.com", "wrong horse battery").await.assert_status(429);
    world.stop_server().await;
    world.comes_from = Some("192.0.2.8:4711".parse().expect("an address"));
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
        account_attempts_in_all: rate(10),
        network_attempts: rate(1000),
        ..identity()
    };
    let world = World::with(Config { identity, ..config() }).await;
    ada(&world).await;
    let try_from = async |from: &str, password: &str| {
        let pairs = [("next", NEXT), ("email", "ada@example.com"), ("password", password)];
        post(&world, PAGE, &[(COMES_FROM, from)], &pairs).await.status.as_u16()
    };
    let home = ["192.0.2.1", "2001:db8:1:2::1"];
    for from in home {
        assert_eq!(try_from(from, PASSWORD).await, 303, "{from}");
    }
    // Many networks of somebody else.
    for _ in 0..4 {
        try_from("198.51.100.1", "wrong horse battery").await;
    }
    assert_eq!(try_from("198.51.100.1", PASSWORD).await, 429, "one network is slow");
    assert_eq!(try_from("::ffff:198.51.100.1", PASSWORD).await, 429, "and is the same however it is written");
    for number in 0..10 {
        try_from(&format!("203.0.113.{number}"), "wrong horse battery").await;
    }
    assert_eq!(try_from("203.0.113.77", PASSWORD).await, 429, "so are all together");
    for from in [home[0], "2001:db8:1:2::ffff"] {
        assert_eq!(
            try_from(from, "wrong horse battery").await,
            403,
            "{from}: whoever was here is not counted with them"
        );
        assert_eq!(try_from(from, PASSWORD).await, 303, "{from}");
    }
    assert_eq!(try_from("2001:db8:1:3::1", PASSWORD).await, 429, "another network");
    for _ in 0..4 {
        try_from(home[0], "wrong horse battery").await;
    }
    assert_eq!(try_from(home[0], PASSWORD).await, 429, "but by itself");
}

#[tokio::test]
async fn a_form_of_another_page_is_refused_also_without_fetch_metadata() {
    let world = world().await;
    ada(&world).await;
    let pairs = [("next", NEXT), ("email", "ada@example.com"), ("password", PASSWORD)];
    let here = format!("http://{}", world.client.url("").trim_start_matches("http://"));
    for (headers, status) in [
        (&[][..], 303),
        (&[("origin", here.as_str())], 303),
        (&[("origin", "https://hearth.test:3002")], 303),
        (&[("origin", "null"), ("sec-fetch-site", "same-origin")], 303),
        (&[("origin", "null")], 403),
        (&[("origin", "https://evil.example")], 403),
        (&[("origin", "https://8080-i0123.hearth.test:3002")], 403),
        (&[("origin", "http://127.0.0.1:1")], 403),
        (&[("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")], 403),
    ] {
        let answer = post(&world, PAGE, headers, &pairs).await;
        assert_eq!(answer.status.as_u16(), status, "{headers:?}");
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
    assert!(is_believed(&world, &access).await && is_believed(&world, &first["accessToken"]).await);
    let replayed = renew(&world, &first["refreshToken"]).await.assert_status(400);
    assert_eq!(replayed.json()["error"], "invalid_grant");
    assert_eq!(renew(&world, &refresh).await.assert_status(400).json()["error"], "invalid_grant");
    assert!(!is_believed(&world, &access).await && !is_believed(&world, &first["accessToken"]).await);
    assert!(is_believed(&world, &other["accessToken"]).await, "other logins go on");
    renew(&world, &other["refreshToken"]).await.assert_status(200);
}

#[tokio::test]
async fn a_login_that_ends_is_over_at_once() {
    let world = world().await;
    let user = ada(&world).await;
    for (how, is_refresh) in [("refreshToken", true), ("accessToken", false)] {
        let login = log_in(&world).await;
        let hint = if is_refresh { "refresh_token" } else { "access_token" };
        let pairs = [("token", login[how].as_str()), ("token_type_hint", hint), ("client_id", "hearth-cli")];
        for _ in 0..2 {
            let revoked = post(&world, "/oauth/revoke", &[], &pairs).await.assert_status(200);
            assert_private(&revoked);
        }
        assert!(!is_believed(&world, &login["accessToken"]).await, "revoked by its {how}");
        assert_eq!(renew(&world, &login["refreshToken"]).await.assert_status(400).json()["error"], "invalid_grant");
    }
    // By time.
    let login = log_in(&world).await;
    world.sql("UPDATE login SET expires_at_us = 1").await;
    assert!(!is_believed(&world, &login["accessToken"]).await);
    renew(&world, &login["refreshToken"]).await.assert_status(400);
    // By another password.
    let login = log_in(&world).await;
    set_password(&world, &user, "another horse battery").await;
    assert!(!is_believed(&world, &login["accessToken"]).await);
    // With the user.
    let login = told(&submit(&world, "ada@example.com", "another horse battery").await);
    world.store.delete_user(user.id).await.expect("a write");
    assert!(!is_believed(&world, &login["accessToken"]).await);
    assert_eq!(renew(&world, &login["refreshToken"]).await.assert_status(400).json()["error"], "invalid_grant");
}

#[tokio::test]
async fn logins_outlive_a_restart_and_expired_ones_are_swept() {
    let mut world = world().await;
    ada(&world).await;
    let login = log_in(&world).await;
    world.restart().await;
    assert!(is_believed(&world, &login["accessToken"]).await);
    world.sql("UPDATE login SET expires_at_us = 1").await;
    world
        .eventually("it is swept", async || {
            let swept = world.store.forget_expired_logins(jiff::Timestamp::now()).await.expect("a write");
            if swept == 0 { Ok(()) } else { Err("the reconciler was not there yet".to_owned()) }
        })
        .await;
}

#[tokio::test]
async fn oauth_clients_are_told_what_is_wrong() {
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
        let answer = post(&world, path, &[], &pairs).await.assert_status(400);
        assert_eq!(answer.json()["error"], error, "{path} {pairs:?}");
        assert!(answer.json()["error_description"].is_string());
        assert_private(&answer);
    }
    // What means nothing is revoked already.
    post(&world, "/oauth/revoke", &[], &[("token", "x")]).await.assert_status(200);
    post(&world, "/oauth/revoke", &[], &[("token", &unknown), client]).await.assert_status(200);
    let json = world.client_with(None).post("/oauth/token", "{}").await.assert_status(415);
    assert_eq!(json.json()["error"], "invalid_request");
    world.client_with(None).get("/oauth/token").await.assert_error(405, "method");
    renew(&world, refresh).await.assert_status(200);
}

#[tokio::test]
async fn nobody_makes_tokens_for_another_issuer() {
    let world = world().await;
    let user = ada(&world).await;
    let login = log_in(&world).await;
    let ours: Value = jsonwebtoken::dangerous::insecure_decode_claims(&login["accessToken"]).expect("a token");
    assert_eq!((&ours["iss"], &ours["sub"]), (&json!("urn:hearth:identity"), &json!(user.id.to_string())));
    let theirs = claims(&user.subject);
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
        (signed(&at("at+jwt"), &ours, KEY), true, "ours"),
        (token(&theirs), true, "the issuer's"),
        (signed(&at("at+jwt"), &ours, USER_SECRET), false, "ours, signed with their secret"),
        (signed(&at("JWT"), &theirs, KEY), false, "theirs, signed with our key"),
        (token(&but(&theirs, "iss", json!("urn:hearth:identity"))), false, "theirs, that says it is ours"),
        (signed(&at("at+jwt"), &but(&theirs, "iss", ours["iss"].clone()), KEY), false, "ours, without a login"),
        (signed(&at("JWT"), &ours, KEY), false, "of another kind"),
        (signed(&at("at+jwt"), &but(&ours, "aud", json!("authenticated")), KEY), false, "for somebody else"),
        (signed(&at("at+jwt"), &but(&ours, "exp", json!(1)), KEY), false, "expired"),
        (signed(&at("at+jwt"), &but(&ours, "sid", json!(user.id.to_string())), KEY), false, "of no login"),
        (signed(&at("at+jwt"), &but(&ours, "iss", json!(["urn:hearth:identity"])), KEY), false, "of two issuers"),
    ] {
        assert_eq!(is_believed(&world, &token).await, expected, "{what}");
    }
}

#[tokio::test]
async fn endpoints_are_where_the_page_was_asked_for() {
    let world = world().await;
    ada(&world).await;
    for (host, expected) in [
        ("api.hearth.test:3002", "https://api.hearth.test:3002"),
        ("hearth.test:3002", "https://hearth.test:3002"),
        ("192.0.2.7:3000", "http://192.0.2.7:3000"),
        ("evil.example", "https://api.hearth.test:3002"),
    ] {
        let pairs = [("next", NEXT), ("email", "ada@example.com"), ("password", PASSWORD)];
        let told = told(&post(&world, PAGE, &[("host", host)], &pairs).await);
        assert_eq!(told["tokenEndpoint"], format!("{expected}/oauth/token"), "{host}");
        assert_eq!(told["revokeEndpoint"], format!("{expected}/oauth/revoke"), "{host}");
    }
}
