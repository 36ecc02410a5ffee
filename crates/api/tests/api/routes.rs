//! All routes of the contract, implemented or not, and their credentials.

use hearth_store::Limits;
use serde_json::Value;

use crate::world::{ADMIN_TOKEN, LIMITS, World};

/// Routes of the contract that are not implemented: method, path, status with an API key, status without one.
pub(crate) const UNIMPLEMENTED: &[(&str, &str, u16, u16)] = &[
    ("POST", "/sandboxes/i1/pause", 501, 401),
    ("POST", "/sandboxes/i1/resume", 501, 401),
    ("POST", "/sandboxes/i1/fork", 501, 401),
    ("POST", "/sandboxes/i1/snapshots", 501, 401),
    ("GET", "/snapshots", 501, 401),
    ("PUT", "/sandboxes/i1/network", 501, 401),
    ("GET", "/templates", 501, 401),
    ("GET", "/v2/templates", 501, 401),
    ("GET", "/default-templates", 501, 401),
    ("GET", "/templates/t1", 501, 401),
    ("DELETE", "/templates/team%2Fsnap%3Adefault", 501, 401),
    ("PATCH", "/templates/t1", 501, 401),
    ("PATCH", "/v2/templates/t1", 501, 401),
    ("POST", "/v3/templates", 501, 401),
    ("GET", "/templates/t1/files/00", 501, 401),
    ("POST", "/v2/templates/t1/builds/b1", 501, 401),
    ("GET", "/templates/t1/builds/b1/status", 501, 401),
    ("GET", "/templates/t1/builds/b1/logs", 501, 401),
    ("POST", "/templates/tags", 501, 401),
    ("DELETE", "/templates/tags", 501, 401),
    ("GET", "/templates/t1/tags", 501, 401),
    ("GET", "/templates/t1/tags/count", 501, 401),
    ("GET", "/templates/t1/tags/exists?tag=v1", 501, 401),
    ("GET", "/templates/t1/tags/groups", 501, 401),
    ("GET", "/templates/t1/tags/v1/assignments", 501, 401),
    ("POST", "/templates", 410, 410),
    ("POST", "/templates/t1", 410, 410),
    ("POST", "/templates/t1/builds/b1", 410, 410),
    ("POST", "/v2/templates", 410, 410),
    ("POST", "/access-tokens", 410, 410),
    ("DELETE", "/access-tokens/x", 410, 410),
    ("GET", "/volumes", 403, 401),
    ("POST", "/volumes", 403, 401),
    ("GET", "/volumes/x", 403, 401),
    ("DELETE", "/volumes/x", 403, 401),
    ("GET", "/volumecontent/x/path", 403, 403),
    ("PATCH", "/volumecontent/x/path", 403, 403),
    ("DELETE", "/volumecontent/x/path", 403, 403),
    ("GET", "/volumecontent/x/dir", 403, 403),
    ("POST", "/volumecontent/x/dir", 403, 403),
    ("GET", "/volumecontent/x/file", 403, 403),
    ("PUT", "/volumecontent/x/file", 403, 403),
    ("GET", "/secrets", 403, 401),
    ("POST", "/secrets", 403, 401),
    ("GET", "/secrets/x", 403, 401),
    ("POST", "/secrets/x", 403, 401),
    ("DELETE", "/secrets/x", 403, 401),
];

/// Routes for operators that are not implemented: method, path.
pub(crate) const UNIMPLEMENTED_OPERATOR: &[(&str, &str)] = &[("POST", "/admin/teams/x/builds/cancel")];

/// Implemented routes: method, path, valid body, true if the route creates or changes something.
pub(crate) const IMPLEMENTED: &[(&str, &str, &str, bool)] = &[
    ("POST", "/sandboxes", r#"{"templateID":"base"}"#, true),
    ("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#, true),
    ("GET", "/sandboxes", "", false),
    ("GET", "/v2/sandboxes", "", false),
    ("GET", "/sandboxes/{id}", "", false),
    ("DELETE", "/sandboxes/{id}", "", false),
    ("POST", "/sandboxes/{id}/timeout", r#"{"timeout":60}"#, true),
    ("POST", "/sandboxes/{id}/refreshes", "{}", true),
    ("POST", "/sandboxes/{id}/connect", r#"{"timeout":60}"#, true),
    ("POST", "/v2/sandboxes/{id}/connect", "{}", true),
    ("GET", "/sandboxes/{id}/logs", "", false),
    ("GET", "/v2/sandboxes/{id}/logs", "", false),
    ("GET", "/sandboxes/{id}/metrics", "", false),
    ("GET", "/sandboxes/metrics?sandbox_ids=i1", "", false),
    ("GET", "/templates/aliases/base", "", false),
];

/// Returns true for a route that replies for deleted sandboxes, and so for unknown ones too.
fn outlives_sandboxes(path: &str) -> bool {
    path.ends_with("/logs") || path.ends_with("/metrics")
}

#[tokio::test]
async fn unimplemented_routes_name_the_feature() {
    let world = World::start().await;
    let anonymous = world.client_with(None);
    for (method, path, with_key, without) in UNIMPLEMENTED {
        let reply = world.client.send(method, path, &[], "").await.assert_error(*with_key, "does not support");
        assert_eq!(reply.json()["error_code"], "feature_not_supported", "{method} {path}");
        anonymous.send(method, path, &[], "").await.assert_error(*without, "");
    }
    for (method, path) in UNIMPLEMENTED_OPERATOR {
        let headers = [("x-admin-token", ADMIN_TOKEN)];
        anonymous.send(method, path, &headers, "").await.assert_error(501, "does not support");
        world.client.send(method, path, &[], "").await.assert_error(401, "admin token");
    }
}

#[tokio::test]
async fn unknown_routes_are_not_found() {
    let world = World::start().await;
    for path in ["/", "/sandbox", "/sandboxes/", "/v3/sandboxes", "/sandboxes/i1/x", "/%73andboxes", "//sandboxes"] {
        world.client.get(path).await.assert_error(404, "no such route");
    }
    for (method, path) in [("PUT", "/sandboxes"), ("DELETE", "/health"), ("PATCH", "/sandboxes/i1")] {
        world.client.send(method, path, &[], "").await.assert_error(405, "method");
    }
}

#[tokio::test]
async fn health_needs_no_credentials_and_is_plain_text() {
    let world = World::start().await;
    let reply = world.client_with(None).get("/health").await.assert_status(200);
    assert_eq!(reply.text, "Health check successful");
    assert!(reply.header("content-type").is_some_and(|text| text.starts_with("text/plain")), "{reply:?}");
    world.store.close().await;
    world.client_with(None).get("/health").await.assert_error(503, "database");
}

#[tokio::test]
async fn only_valid_keys_are_accepted() {
    let world = World::start().await;
    let wrong = format!("e2b_{}", "0".repeat(40));
    let own = world.client.key();
    for (key, message) in [
        (None, "no API key"),
        (Some(wrong.as_str()), "invalid API key"),
        (Some(""), "invalid API key"),
        (Some("e2b_"), "invalid API key"),
        (Some("nonsense"), "invalid API key"),
        (Some(&own.to_uppercase()), "invalid API key"),
        (Some(own.strip_prefix("e2b_").expect("the prefix")), "invalid API key"),
        (Some(&own[..own.len() - 1]), "invalid API key"),
    ] {
        let client = world.client_with(key.map(str::to_owned));
        for (method, path, body, _) in IMPLEMENTED {
            let path = path.replace("{id}", "i1");
            client.send(method, &path, &[], *body).await.assert_error(401, message);
        }
        let bearer = [("authorization", "Bearer sk_e2b_0123456789012345678901234567890123456789")];
        client.send("GET", "/v2/sandboxes", &bearer, "").await.assert_error(401, message);
    }
    // Credentials are checked before the path and the body.
    world.client_with(None).post("/v2/sandboxes", "{").await.assert_error(401, "no API key");
    world.client_with(None).get("/sandboxes/A-B-C").await.assert_error(401, "no API key");
}

#[tokio::test]
async fn the_use_of_a_key_is_stored() {
    let world = World::start().await;
    world.client.get("/v2/sandboxes").await.assert_status(200);
    let secret: hearth_store::KeySecret = world.client.key().parse().expect("a key");
    world
        .eventually("the use of the key is stored", async || {
            let (_, key) = world.store.authenticate(&secret.hash()).await.expect("reads").expect("known");
            key.last_used_at.map(drop).ok_or_else(|| "not stored".to_owned())
        })
        .await;
}

#[tokio::test]
async fn blocked_teams_may_read_and_delete_and_banned_teams_nothing() {
    let world = World::start().await;
    let id = world.running().await;
    world.sql("UPDATE team SET standing = 'blocked', standing_reason = 'unpaid bill' WHERE slug = 'first'").await;
    for (method, path, body, changes) in IMPLEMENTED.iter().filter(|(method, ..)| *method != "DELETE") {
        let reply = world.client.send(method, &path.replace("{id}", id.as_str()), &[], *body).await;
        match *changes {
            true => drop(reply.assert_error(403, "unpaid bill")),
            // For an alias, 403 means that the name is in use.
            false if path.contains("aliases") => drop(reply.assert_error(403, "another team")),
            false => drop(reply.assert_status(200)),
        }
    }
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.sql("UPDATE team SET standing = 'banned' WHERE slug = 'first'").await;
    for (method, path, body, _) in IMPLEMENTED {
        world.client.send(method, &path.replace("{id}", id.as_str()), &[], *body).await.assert_error(403, "banned");
    }
}

#[tokio::test]
async fn another_team_s_sandbox_does_not_exist() {
    let world = World::start().await;
    let id = world.running().await;
    let (_, stranger) = world.other_team("stranger", LIMITS).await;
    let before = world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200).json();
    for (method, path, body, _) in
        IMPLEMENTED.iter().filter(|(_, path, ..)| path.contains("{id}") && !outlives_sandboxes(path))
    {
        for (client, id) in [(&stranger, id.as_str()), (&world.client, "i0unknown")] {
            let reply = client.send(method, &path.replace("{id}", id), &[], *body).await;
            assert_eq!(reply.assert_error(404, "").text_of("message"), "sandbox not found", "{method} {path}");
        }
    }
    for path in ["/sandboxes", "/v2/sandboxes"] {
        assert_eq!(stranger.get(path).await.assert_status(200).json(), Value::Array(Vec::new()));
    }
    assert_eq!(world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200).json(), before);
}

#[tokio::test]
async fn sandbox_ids_may_have_a_client_id_and_must_be_well_formed() {
    let world = World::start().await;
    let id = world.running().await;
    world.client.get(&format!("/sandboxes/{id}-6532622b")).await.assert_status(200);
    for wrong in ["A", "a-b-c", "-b", "a_b", "a%2Fb", "%ff", "%00", "..", "a%20b"] {
        for (method, path, body, _) in IMPLEMENTED.iter().filter(|(_, path, ..)| path.contains("{id}")) {
            let reply = world.client.send(method, &path.replace("{id}", wrong), &[], *body).await;
            reply.assert_error(400, "invalid sandbox");
        }
    }
    world.client.delete(&format!("/sandboxes/{id}-6532622b")).await.assert_status(204);
}

#[tokio::test]
async fn alias_lookup_shows_if_a_name_is_in_use() {
    let world = World::start().await;
    let (other, stranger) = world.other_team("other", Limits { sandboxes_max: 0, ..LIMITS }).await;
    let own = world.template(&world.team, false, "own", "0.6.4").await;
    world.template(&world.team, true, "both", "0.6.4").await;
    world.template(&other, false, "both", "0.6.4").await;
    let hidden = world.template(&other, false, "hidden", "0.6.4").await;
    for (alias, status) in [
        ("own", 200),
        ("OWN", 200),
        ("first%2Fown", 200),
        ("first/own", 404),
        ("own%3Adefault", 200),
        ("first%2Fown%3Adefault", 200),
        (own.as_str(), 200),
        ("own%3Av2", 404),
        ("base", 403),
        ("base%3Anothing", 404),
        (hidden.as_str(), 403),
        ("nothing", 404),
        ("other%2Fhidden", 400),
        ("a%2Fb%2Fc", 400),
        ("%20", 400),
        ("%ff", 400),
    ] {
        let reply = world.client.get(&format!("/templates/aliases/{alias}")).await;
        match status {
            200 => {
                let expected = serde_json::json!({"templateID": own.as_str(), "public": false});
                assert_eq!(reply.assert_status(200).json(), expected, "{alias}");
            }
            status => drop(reply.assert_error(status, "")),
        }
    }
    // Each team finds its own template.
    let first = world.client.get("/templates/aliases/both").await.assert_status(200);
    let second = stranger.get("/templates/aliases/both").await.assert_status(200);
    assert_eq!((first.json()["public"].clone(), second.json()["public"].clone()), (true.into(), false.into()));
}
