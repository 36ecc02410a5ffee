//! Teams, API keys and operators, and the credentials of each route.

use hearth_store::{KeySecret, LOGIN_KEYS_MAX, Standing, Team};
use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::world::{ADMIN_TOKEN, LIMITS, World, token};

const BASE: &str = r#"{"templateID":"base"}"#;

/// Client with fixed credential headers.
struct As<'a> {
    client: Client,
    headers: Vec<(&'static str, &'a str)>,
}

impl As<'_> {
    async fn send(&self, method: &str, path: &str, body: &str) -> Reply {
        self.client.send(method, path, &self.headers, body.to_owned()).await
    }
}

/// Combination of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Nothing,
    Key,
    User,
    UserAndTeam,
    Admin,
    AdminAndTeam,
    AccessToken,
}

#[tokio::test]
async fn each_route_accepts_the_credentials_of_the_contract() {
    use Scheme::*;
    let world = World::start().await;
    let id = world.running().await;
    let team_id = world.team.id.to_string();
    let (_, bearer) = world.user("ada@example.com", &[&world.team]).await;
    let bearer = format!("Bearer {bearer}");
    let team_schemes = [Key, UserAndTeam, AdminAndTeam].as_slice();
    let key_id = world.store.api_keys(world.team.id).await.expect("reads")[0].0.id;
    let unknown = hearth_types::ApiKeyId::generate();
    let detail = format!("/sandboxes/{id}");
    let (timeout, patch) = (format!("/sandboxes/{id}/timeout"), format!("/api-keys/{key_id}"));
    let (delete, admin_keys) = (format!("/api-keys/{unknown}"), format!("/admin/teams/{team_id}/api-keys"));
    let revoke = format!("{admin_keys}/{unknown}");
    let kill = "/admin/teams/00000000-0000-0000-0000-000000000000/sandboxes/kill";
    let name = r#"{"name":"x"}"#;
    let routes: &[(&str, &str, &str, u16, &[Scheme])] = &[
        ("GET", "/v2/sandboxes", "", 200, team_schemes),
        ("POST", "/v2/sandboxes", BASE, 201, team_schemes),
        ("GET", &detail, "", 200, team_schemes),
        ("POST", &timeout, r#"{"timeout":60}"#, 204, team_schemes),
        ("GET", "/templates/aliases/base", "", 403, team_schemes),
        ("GET", "/snapshots", "", 501, team_schemes),
        ("GET", "/teams", "", 200, &[User, UserAndTeam]),
        ("GET", "/api-keys", "", 200, &[UserAndTeam, AdminAndTeam]),
        ("POST", "/api-keys", name, 201, &[UserAndTeam]),
        ("PATCH", &patch, name, 200, &[UserAndTeam, AdminAndTeam]),
        ("DELETE", &delete, "", 404, &[UserAndTeam, AdminAndTeam]),
        ("GET", "/nodes", "", 200, &[Admin, AdminAndTeam]),
        ("GET", "/admin/sandboxes/running-counts", "", 200, &[Admin, AdminAndTeam]),
        ("POST", &admin_keys, name, 201, &[Admin, AdminAndTeam]),
        ("DELETE", &revoke, "", 404, &[Admin, AdminAndTeam]),
        ("GET", "/health", "", 200, &[Nothing, Key, User, UserAndTeam, Admin, AdminAndTeam, AccessToken]),
        ("POST", kill, "", 404, &[Admin, AdminAndTeam]),
    ];
    for scheme in [Nothing, Key, User, UserAndTeam, Admin, AdminAndTeam, AccessToken] {
        let headers = match scheme {
            Nothing => vec![],
            Key => vec![("x-api-key", world.client.key())],
            User => vec![("authorization", bearer.as_str())],
            UserAndTeam => vec![("authorization", bearer.as_str()), ("x-team-id", team_id.as_str())],
            Admin => vec![("x-admin-token", ADMIN_TOKEN)],
            AdminAndTeam => vec![("x-admin-token", ADMIN_TOKEN), ("x-team-id", team_id.as_str())],
            AccessToken => vec![("authorization", "Bearer sk_e2b_0123456789012345678901234567890123456789")],
        };
        let caller = As { client: world.client_with(None), headers };
        for (method, path, body, status, schemes) in routes {
            let reply = caller.send(method, path, body).await;
            let expected = if schemes.contains(&scheme) { *status } else { 401 };
            assert_eq!(reply.status.as_u16(), expected, "{scheme:?} {method} {path}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn one_valid_scheme_is_enough() {
    let world = World::start().await;
    let (other, _) = world.other_team("other", LIMITS).await;
    let (_, bearer) = world.user("ada@example.com", &[&world.team]).await;
    let bearer = format!("Bearer {bearer}");
    let (own, foreign) = (world.team.id.to_string(), other.id.to_string());
    let anonymous = world.client_with(None);
    let wrong_key = ("x-api-key", "e2b_0000000000000000000000000000000000000000");
    for (headers, status, message) in [
        (vec![wrong_key, ("authorization", bearer.as_str()), ("x-team-id", own.as_str())], 200, ""),
        (vec![wrong_key, ("x-admin-token", ADMIN_TOKEN), ("x-team-id", foreign.as_str())], 200, ""),
        (vec![wrong_key, ("authorization", bearer.as_str())], 401, "invalid API key"),
        (vec![("authorization", bearer.as_str())], 401, "X-Team-ID"),
        (vec![("authorization", bearer.as_str()), ("x-team-id", "x")], 401, "no team ID"),
        (vec![("authorization", bearer.as_str()), ("x-team-id", foreign.as_str())], 401, "not a member"),
        (vec![("authorization", "Basic x"), ("x-team-id", own.as_str())], 401, "invalid user token"),
        (vec![("x-admin-token", ADMIN_TOKEN), ("x-team-id", "00000000-0000-0000-0000-000000000000")], 404, "team"),
        (vec![("x-admin-token", "admin-token-for-test"), ("x-team-id", own.as_str())], 401, "invalid admin token"),
        (vec![("x-admin-token", ""), ("x-team-id", own.as_str())], 401, "invalid admin token"),
    ] {
        let reply = anonymous.send("GET", "/v2/sandboxes", &headers, "").await;
        match status {
            200 => drop(reply.assert_status(200)),
            status => drop(reply.assert_error(status, message)),
        }
    }
}

#[tokio::test]
async fn without_a_configured_admin_token_no_token_is_valid() {
    let world = World::with(hearth_api::Config { admin_token: None, ..crate::world::config() }).await;
    for token in ["", ADMIN_TOKEN] {
        let headers = [("x-admin-token", token)];
        world
            .client
            .send("GET", "/admin/sandboxes/running-counts", &headers, "")
            .await
            .assert_error(401, "admin token");
    }
}

#[tokio::test]
async fn listing_teams_creates_a_key_for_each_team() {
    let world = World::start().await;
    let (other, _) = world.other_team("other", LIMITS).await;
    let (banned, _) = world.other_team("banned", LIMITS).await;
    let (user, bearer) = world.user("ada@example.com", &[&banned, &world.team, &other]).await;
    let standing = Standing::Banned { reason: String::new() };
    world.store.set_team_standing(banned.id, &standing).await.expect("a write");
    let bearer = format!("Bearer {bearer}");
    let teams = async || {
        let reply = world.client_with(None).send("GET", "/teams", &[("authorization", &bearer)], "").await;
        reply.assert_status(200).json().as_array().expect("a list").clone()
    };
    let defaults = |teams: &[Value]| teams.iter().map(|team| team["isDefault"] == true).collect::<Vec<_>>();
    let first = teams().await;
    assert_eq!(
        first.iter().map(|team| team["teamID"].clone()).collect::<Vec<_>>(),
        [json!(world.team.id.to_string()), json!(other.id.to_string())]
    );
    assert_eq!(defaults(&first), [true, false], "a remaining team is the default, although the default team is banned");
    world.store.set_default_team(user.id, other.id).await.expect("a write");
    let second = teams().await;
    assert_eq!(defaults(&second), [false, true]);
    for (team, is_of) in first.iter().chain(&second).zip([&world.team, &other, &world.team, &other]) {
        let key = team["apiKey"].as_str().expect("a key");
        world.client_with(Some(key.to_owned())).get("/v2/sandboxes").await.assert_status(200);
        let secret: KeySecret = key.parse().expect("a key");
        let (found, key) = world.store.authenticate(&secret.hash()).await.expect("reads").expect("known");
        assert_eq!((found.id, key.created_by), (is_of.id, Some(user.id)));
    }
    for _ in 0..LOGIN_KEYS_MAX {
        teams().await;
    }
    let keys = world.store.api_keys(other.id).await.expect("reads");
    assert_eq!(keys.len() as u64, LOGIN_KEYS_MAX + 1, "login keys replace only other login keys");
    let (_, without_team) = world.user("bob@example.com", &[]).await;
    let without_team = format!("Bearer {without_team}");
    let none = world.client_with(None).send("GET", "/teams", &[("authorization", &without_team)], "").await;
    assert_eq!(none.assert_status(200).json(), json!([]));
}

fn for_team<'a>(world: &World, bearer: &'a str, team_id: &'a str) -> As<'a> {
    As { client: world.client_with(None), headers: vec![("authorization", bearer), ("x-team-id", team_id)] }
}

#[tokio::test]
async fn keys_are_created_listed_renamed_and_revoked() {
    let world = World::start().await;
    let (user, bearer) = world.user("ada@example.com", &[&world.team]).await;
    let (bearer, team_id) = (format!("Bearer {bearer}"), world.team.id.to_string());
    let ada = for_team(&world, &bearer, &team_id);
    let created = ada.send("POST", "/api-keys", r#"{"name":" laptop "}"#).await.assert_status(201).json();
    let key = created["key"].as_str().expect("a key").to_owned();
    let digits = key.strip_prefix("e2b_").expect("the prefix");
    let mask = json!({
        "prefix": "e2b_", "valueLength": 40, "maskedValuePrefix": digits[..2], "maskedValueSuffix": digits[36..]
    });
    let creator = json!({"id": user.id.to_string(), "email": "ada@example.com"});
    assert_eq!((&created["name"], &created["mask"], &created["createdBy"]), (&json!("laptop"), &mask, &creator));
    assert_eq!(created["lastUsed"], Value::Null);
    let mut expected = created.clone();
    expected.as_object_mut().expect("an object").remove("key");
    let list = async || ada.send("GET", "/api-keys", "").await.assert_status(200).json();
    assert_eq!(list().await[1], expected, "lists do not contain the key itself");
    let hers = world.client_with(Some(key.clone()));
    hers.get("/v2/sandboxes").await.assert_status(200);
    world
        .eventually("the use of the key is stored", async || match &list().await[1]["lastUsed"] {
            Value::String(_) => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
    let path = format!("/api-keys/{}", created["id"].as_str().expect("an id"));
    let renamed = ada.send("PATCH", &path, r#"{"name":"desk"}"#).await.assert_status(200).json();
    assert_eq!((&renamed["name"], &renamed["mask"]), (&json!("desk"), &mask));
    for body in
        [r#"{"name":""}"#, r#"{"name":" "}"#, r#"{"name":"a\nb"}"#, "{}", &json!({"name": "x".repeat(129)}).to_string()]
    {
        ada.send("POST", "/api-keys", body).await.assert_error(400, "validation error: ");
        ada.send("PATCH", &path, body).await.assert_error(400, "validation error: ");
    }
    ada.send("DELETE", &path, "").await.assert_status(204);
    ada.send("DELETE", &path, "").await.assert_error(404, "API key not found");
    ada.send("PATCH", &path, r#"{"name":"x"}"#).await.assert_error(404, "API key not found");
    ada.send("DELETE", "/api-keys/x", "").await.assert_error(400, "invalid API key ID");
    hers.get("/v2/sandboxes").await.assert_error(401, "invalid API key");
}

#[tokio::test]
async fn a_blocked_team_may_list_and_revoke_its_keys() {
    let world = World::start().await;
    let (_, bearer) = world.user("ada@example.com", &[&world.team]).await;
    let (bearer, team_id) = (format!("Bearer {bearer}"), world.team.id.to_string());
    let ada = for_team(&world, &bearer, &team_id);
    let created = ada.send("POST", "/api-keys", r#"{"name":"laptop"}"#).await.assert_status(201);
    let path = format!("/api-keys/{}", created.text_of("id"));
    let set_standing = async |standing| world.store.set_team_standing(world.team.id, &standing).await.expect("a write");
    set_standing(Standing::Blocked { reason: "unpaid bill".to_owned() }).await;
    ada.send("POST", "/api-keys", r#"{"name":"x"}"#).await.assert_error(403, "blocked: unpaid bill");
    ada.send("PATCH", &path, r#"{"name":"x"}"#).await.assert_error(403, "blocked: unpaid bill");
    ada.send("GET", "/api-keys", "").await.assert_status(200);
    ada.send("DELETE", &path, "").await.assert_status(204);
    set_standing(Standing::Banned { reason: String::new() }).await;
    for (method, path) in [("GET", "/api-keys"), ("DELETE", &path), ("POST", "/api-keys"), ("GET", "/v2/sandboxes")] {
        ada.send(method, path, r#"{"name":"x"}"#).await.assert_error(403, "your team is banned");
    }
}

#[tokio::test]
async fn operators_kill_the_sandboxes_of_a_team_and_create_keys_for_it() {
    let world = World::start().await;
    let (other, stranger) = world.other_team("other", LIMITS).await;
    for _ in 0..3 {
        world.running().await;
    }
    let other_sandbox = stranger.post("/v2/sandboxes", BASE).await.assert_status(201).text_of("sandboxID");
    let operator = As { client: world.client_with(None), headers: vec![("x-admin-token", ADMIN_TOKEN)] };
    let counts = async || operator.send("GET", "/admin/sandboxes/running-counts", "").await.assert_status(200).json();
    let count = |team: &Team, count: usize| json!({"teamID": team.id.to_string(), "runningCount": count});
    let both = counts().await;
    let both = both.as_array().expect("a list");
    assert!(both.len() == 2 && both.contains(&count(&world.team, 3)) && both.contains(&count(&other, 1)), "{both:?}");
    // Operators may kill the sandboxes of a banned team too.
    let standing = Standing::Banned { reason: "abuse".to_owned() };
    world.store.set_team_standing(world.team.id, &standing).await.expect("a write");
    let kill = format!("/admin/teams/{}/sandboxes/kill", world.team.id);
    let killed = operator.send("POST", &kill, "").await.assert_status(200).json();
    assert_eq!(killed, json!({"killedCount": 3, "failedCount": 0}));
    let killed = operator.send("POST", &kill, "").await.assert_status(200).json();
    assert_eq!(killed, json!({"killedCount": 0, "failedCount": 0}));
    assert_eq!(counts().await, json!([count(&other, 1)]));
    stranger.get(&format!("/sandboxes/{other_sandbox}")).await.assert_status(200);
    let keys = format!("/admin/teams/{}/api-keys", other.id);
    let created = operator.send("POST", &keys, r#"{"name":"rescue"}"#).await.assert_status(201);
    assert_eq!(created.json()["createdBy"], Value::Null);
    let rescued = world.client_with(Some(created.text_of("key")));
    rescued.get(&format!("/sandboxes/{other_sandbox}")).await.assert_status(200);
    let path = format!("{keys}/{}", created.text_of("id"));
    let wrong = format!("/admin/teams/{}/api-keys/{}", world.team.id, created.text_of("id"));
    operator.send("DELETE", &wrong, "").await.assert_error(404, "API key not found");
    operator.send("DELETE", &path, "").await.assert_status(204);
    rescued.get("/v2/sandboxes").await.assert_error(401, "invalid API key");
    let unknown = "00000000-0000-0000-0000-000000000000";
    for (path, status) in [
        (format!("/admin/teams/{unknown}/sandboxes/kill"), 404),
        (format!("/admin/teams/{unknown}/api-keys"), 404),
        ("/admin/teams/x/sandboxes/kill".to_owned(), 400),
    ] {
        operator.send("POST", &path, r#"{"name":"x"}"#).await.assert_error(status, "team");
    }
}

#[tokio::test]
async fn tokens_of_a_deleted_user_are_rejected() {
    let world = World::start().await;
    let (user, bearer) = world.user("ada@example.com", &[&world.team]).await;
    let header = format!("Bearer {bearer}");
    let anonymous = world.client_with(None);
    anonymous.send("GET", "/teams", &[("authorization", &header)], "").await.assert_status(200);
    world.store.delete_user(user.id).await.expect("a write");
    anonymous.send("GET", "/teams", &[("authorization", &header)], "").await.assert_error(401, "invalid user token");
    let stranger = format!("Bearer {}", token(&crate::world::claims("caller")));
    anonymous.send("GET", "/teams", &[("authorization", &stranger)], "").await.assert_error(401, "invalid user token");
}
