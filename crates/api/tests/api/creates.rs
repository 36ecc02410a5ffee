//! Creates of both generations: the request to the node and the reply to the client.

use hearth_api::TokenSource;
use hearth_types::{SandboxId, Secret, Visitors};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::fake_node::{ENVD_VERSION, OnCreate};
use crate::world::{DOMAIN, LIMITS, SEED, World};

const BASE: &str = r#"{"templateID":"base"}"#;

fn seconds(detail: &Value) -> i64 {
    let at = |member: &str| detail[member].as_str().expect(member).parse::<Timestamp>().expect(member);
    at("endAt").duration_since(at("startedAt")).as_secs()
}

#[tokio::test]
async fn the_two_generations_have_different_defaults() {
    let world = World::start().await;
    for (path, body, timeout, secured) in [
        ("/sandboxes", BASE, 15, false),
        ("/v2/sandboxes", BASE, 300, true),
        ("/sandboxes", r#"{"templateID":"base","timeout":300,"secure":true,"allow_internet_access":true}"#, 300, true),
        ("/sandboxes", r#"{"templateID":"base","timeout":7,"secure":false}"#, 7, false),
        ("/v2/sandboxes", r#"{"templateID":"base","timeout":3600,"metadata":{},"envVars":{}}"#, 3600, true),
        // Not a member of the second generation, so it is ignored.
        ("/v2/sandboxes", r#"{"templateID":"base","secure":false}"#, 300, true),
    ] {
        let created = world.client.post(path, body).await.assert_status(201).json();
        let id = created["sandboxID"].as_str().expect("an id");
        let detail = world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200).json();
        assert_eq!(seconds(&detail), timeout, "{path} {body}");
        for described in [&created, &detail] {
            assert_eq!(described.get("envdAccessToken").is_some(), secured, "{path} {body}: {described}");
            assert_eq!(described["domain"], DOMAIN);
            assert_eq!(described["clientID"], "6532622b");
            assert_eq!(described["alias"], "base");
            assert_eq!(described["templateID"], world.base.as_str());
            assert_eq!(described["envdVersion"], ENVD_VERSION);
        }
        assert_eq!(created["envdAccessToken"], detail["envdAccessToken"]);
        assert_eq!(created["trafficAccessToken"], Value::Null);
        assert!(created.as_object().expect("an object").contains_key("trafficAccessToken"));
    }
}

#[tokio::test]
async fn a_sandbox_is_started_on_the_node_published_and_described() {
    let world = World::start().await;
    let body = json!({
        "templateID": " BASE:default ", "timeout": 60, "metadata": {"user": "é b"}, "envVars": {"A": "b=c", "E": ""},
        "allow_internet_access": false, "mcp": {"x": {}}, "network": {}, "autoPause": false, "unknown": [1],
    });
    let created = world.create(&body.to_string()).await.assert_status(201);
    let id = created.text_of("sandboxID");
    assert!(id.len() == 21 && id.starts_with('i'), "{id}");
    let spec = world.node.state().creates.pop().expect("a create");
    assert_eq!(spec.sandbox_id.as_str(), id);
    assert_eq!(spec.team_id, world.team.id);
    assert_eq!(spec.template_id, world.base);
    assert_eq!(
        spec.env_vars.into_iter().collect::<Vec<_>>(),
        [("A".to_owned(), "b=c".to_owned()), ("E".to_owned(), String::new())]
    );
    assert!(!spec.internet_access);
    assert_eq!(spec.envd_access_token.expect("secured").expose(), created.text_of("envdAccessToken"));
    let route = world.catalog.find(&spec.sandbox_id).await.expect("reads").expect("a route");
    assert_eq!((route.execution_id, route.team_id), (spec.execution_id, world.team.id));
    assert_eq!(route.node_proxy, world.node.as_node().proxy);
    let detail = world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200).json();
    let expected = json!({
        "sandboxID": id, "templateID": world.base.as_str(), "alias": "base", "clientID": "6532622b",
        "envdVersion": ENVD_VERSION, "state": "running", "startedAt": detail["startedAt"], "endAt": detail["endAt"],
        "cpuCount": 2, "memoryMB": 512, "diskSizeMB": 1024, "metadata": {"user": "é b"}, "volumeMounts": [],
        "envdAccessToken": created.text_of("envdAccessToken"), "domain": DOMAIN, "allowInternetAccess": false,
        "lifecycle": {"onTimeout": "kill", "autoResume": false},
    });
    assert_eq!(detail, expected);
}

#[tokio::test]
async fn ingress_rules_are_published_described_and_survive_a_restart() {
    let mut world = World::start().await;
    let network =
        json!({"allowPublicTraffic": false, "maskRequestHost": "localhost:${PORT}", "httpsPorts": [443, 8443]});
    let body = json!({"templateID": "base", "network": network}).to_string();
    let created = world.create(&body).await.assert_status(201);
    let id = created.text_of("sandboxID");
    let sandbox_id: SandboxId = id.parse().expect("an id");
    let token = created.text_of("trafficAccessToken");
    assert_eq!(token, TokenSource::new(Secret::new(SEED)).traffic_access_token(&sandbox_id).expose());
    assert_ne!(token, created.text_of("envdAccessToken"));
    let before = world.catalog.find(&sandbox_id).await.expect("reads").expect("a route");
    assert_eq!(before.visitors, Visitors::WithToken(Secret::new(token.as_str())));
    assert_eq!(before.https_ports, [443, 8443].into());
    assert_eq!(before.host_mask.as_ref().expect("a mask").host(80), "localhost:80");

    world.restart().await;
    let detail = world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200).json();
    assert_eq!(detail["network"], network);
    let connected = world.client.post(&format!("/v2/sandboxes/{id}/connect"), "").await.assert_status(200);
    assert_eq!(connected.text_of("trafficAccessToken"), token);
    world
        .eventually("its route is published again", async || {
            let route = world.catalog.find(&sandbox_id).await.expect("reads").ok_or("no route")?;
            assert_eq!(route, before);
            Ok(())
        })
        .await;

    // The first generation secures a sandbox only on request, and an unsecured sandbox cannot have private traffic.
    let (path, open) = ("/sandboxes", r#"{"templateID":"base","network":{"allowPublicTraffic":false}}"#);
    world.client.post(path, open).await.assert_error(400, "allowPublicTraffic");
    let secured = r#"{"templateID":"base","secure":true,"network":{"allowPublicTraffic":false}}"#;
    world.client.post(path, secured).await.assert_status(201).text_of("trafficAccessToken");
}

#[tokio::test]
async fn the_lifetime_starts_when_the_sandbox_has_started() {
    let world = World::start().await;
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let client = world.client.clone();
    let creating = tokio::spawn(async move { client.post("/v2/sandboxes", BASE).await });
    world.node.wait_for("a create arrived", |state| !state.creates.is_empty()).await;
    // The database stores microseconds.
    let before_start = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("in range");
    world.node.change(|state| state.on_create = OnCreate::Start);
    let id = creating.await.expect("no panic").assert_status(201).text_of("sandboxID");
    let detail = world.client.get(&format!("/sandboxes/{id}")).await.json();
    let started: Timestamp = detail["startedAt"].as_str().expect("a time").parse().expect("a time");
    assert!(started >= before_start, "{started} {before_start}");
    assert_eq!(seconds(&detail), 300);
}

#[tokio::test]
async fn invalid_requests_are_rejected_and_never_reach_a_node() {
    let world = World::start().await;
    let (other, _) = world.other_team("other", LIMITS).await;
    world.template(&other, false, "private", "0.6.4").await;
    let hidden = world.template(&other, false, "hidden", "0.6.4").await;
    world.template(&world.team, false, "ancient", "0.1.5").await;
    let hidden = format!(r#"{{"templateID":"{hidden}"}}"#);
    for (body, status, message) in [
        ("", 400, "validation error: the request has no body"),
        ("{", 400, "validation error: "),
        ("[]", 400, "validation error: "),
        ("\"base\"", 400, "validation error: "),
        ("\u{0}", 400, "validation error: "),
        ("{}", 400, "validation error: missing field `templateID`"),
        (r#"{"templateID":7}"#, 400, "validation error: "),
        (r#"{"templateID":"base","timeout":"5"}"#, 400, "validation error: "),
        (r#"{"templateID":"base","timeout":99999999999}"#, 400, "validation error: "),
        (r#"{"templateID":"base","metadata":{"a":1}}"#, 400, "validation error: "),
        (r#"{"templateID":""}"#, 400, "validation error: template reference is empty"),
        (r#"{"templateID":"a b"}"#, 400, "validation error: "),
        (r#"{"templateID":"base","timeout":0}"#, 400, "timeout must be greater than 0"),
        (r#"{"templateID":"base","timeout":-1}"#, 400, "timeout must be greater than 0"),
        (r#"{"templateID":"base","timeout":86401}"#, 400, "Timeout cannot be greater than 24 hours"),
        (r#"{"templateID":"base","autoPauseMemory":false}"#, 400, "autoPauseMemory"),
        (r#"{"templateID":"base","autoPause":true}"#, 403, "autoPause"),
        (r#"{"templateID":"base","autoResume":{"enabled":true}}"#, 403, "autoResume"),
        (r#"{"templateID":"base","network":{"allowOut":["1.1.1.1"]}}"#, 403, "network.allowOut"),
        (r#"{"templateID":"base","network":{"maskRequestHost":"a b"}}"#, 400, "network.maskRequestHost"),
        (r#"{"templateID":"base","network":{"httpsPorts":[49983]}}"#, 400, "network.httpsPorts"),
        (r#"{"templateID":"base","volumeMounts":[{"name":"v","path":"/v"}]}"#, 400, "volumeMounts"),
        (r#"{"templateID":"base","iam":{"tokens":{"t":{"audience":"a"}}}}"#, 400, "iam"),
        (r#"{"templateID":"base","envVars":{"A=B":"c"}}"#, 400, "envVars"),
        (r#"{"templateID":"nothing"}"#, 404, "template 'nothing' not found"),
        (r#"{"templateID":"base:nothing"}"#, 404, "tag 'nothing' does not exist for template 'base'"),
        (r#"{"templateID":"other/private"}"#, 404, "template 'other/private' not found"),
        (&hidden, 404, "not found"),
        (r#"{"templateID":"ancient"}"#, 400, "envd 0.1.5"),
    ] {
        world.create(body).await.assert_error(status, message);
        if !body.contains("ancient") {
            world.client.post("/sandboxes", body).await.assert_error(status, message);
        }
    }
    assert!(world.node.state().creates.is_empty());
    // A template that cannot be secured can still run unsecured.
    world.client.post("/sandboxes", r#"{"templateID":"ancient"}"#).await.assert_status(201);
}

#[tokio::test]
async fn template_references_are_resolved_by_the_contract() {
    let world = World::start().await;
    let (other, _) = world.other_team("other", LIMITS).await;
    let own = world.template(&world.team, false, "own", "0.6.4").await;
    let shared = world.template(&other, true, "shared", "0.6.4").await;
    for (reference, expected) in [
        ("base", &world.base),
        ("base:default", &world.base),
        (world.base.as_str(), &world.base),
        ("own", &own),
        ("first/own", &own),
        ("FIRST/Own:DEFAULT", &own),
        ("other/shared", &shared),
        (shared.as_str(), &shared),
    ] {
        let created = world.create(&json!({"templateID": reference}).to_string()).await.assert_status(201);
        assert_eq!(created.text_of("templateID"), expected.as_str(), "{reference}");
    }
}

#[tokio::test]
async fn node_errors_map_to_error_codes_and_leave_nothing() {
    let world = World::start().await;
    for (on_create, status, error_code, should_retry) in [
        (OnCreate::Full, 503, "sandbox_capacity_unavailable", Some("false")),
        (OnCreate::Exhausted, 503, "sandbox_capacity_unavailable", Some("true")),
        (OnCreate::WithoutBuild, 503, "sandbox_no_compatible_node", Some("false")),
        (OnCreate::Reject, 500, "sandbox_create_refused", None),
        (OnCreate::Fail, 500, "sandbox_create_failed", None),
    ] {
        world.node.change(|state| state.on_create = on_create);
        let reply = world.create(BASE).await.assert_error(status, "");
        assert_eq!(reply.json()["error_code"], error_code, "{on_create:?}");
        assert_eq!(reply.header("should-retry"), should_retry, "{on_create:?}");
        assert!(!reply.text.contains("disk on fire"), "internal causes are not sent");
        // The row is deleted before the reply, so it no longer counts against the team's limit.
        assert_eq!(world.store.sandboxes().await.expect("reads"), []);
        world.assert_no_leftovers().await;
    }
    world.node.change(|state| state.on_create = OnCreate::Start);
    world.create(BASE).await.assert_status(201);
}

#[tokio::test]
async fn another_node_is_tried_when_one_is_full() {
    let world = World::with_nodes(crate::world::config(), &["node-1", "node-2"]).await;
    world.node.change(|state| state.on_create = OnCreate::Full);
    let id = world.running().await;
    assert!(world.node.state().sandboxes.is_empty());
    let row = world.store.sandbox(&id).await.expect("reads").expect("a row");
    assert_eq!(row.node_id.as_str(), "node-2");
    let route = world.catalog.find(&id).await.expect("reads").expect("a route");
    assert_eq!((&route.node_id, route.execution_id), (&row.node_id, row.execution_id));
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.assert_no_leftovers().await;
}
