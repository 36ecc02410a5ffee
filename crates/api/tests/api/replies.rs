//! Every reply in the OpenAPI document occurs.
//!
//! A documented reply that never occurs is an error of the document. The tests' client rejects a reply that is not
//! documented. Most requests are derived from the document: missing credentials, malformed or oversized input, exceeded
//! rate limits and deadlines.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use hearth_api::{Config, Rate};
use hearth_store::Standing;
use hearth_types::{ApiKeyId, TeamId};

use crate::client::{Client, Reply};
use crate::document::{DOCUMENT, Operation, observed, record};
use crate::fake_node::{OnCreate, OnDelete};
use crate::world::{ADMIN_TOKEN, World, config};

const BASE: &str = r#"{"templateID":"base"}"#;
const NAME: &str = r#"{"name":"x"}"#;

/// Maximum number of requests until one exceeds its deadline.
const TRIES_MAX: usize = 1000;

/// Requests that succeed: operation, query, body, status. The path is derived from the document.
const REQUESTS: &[(&str, &str, &str, u16)] = &[
    ("getHealth", "", "", 200),
    ("getOpenApiJson", "", "", 200),
    ("getOpenApiYaml", "", "", 200),
    ("listSandboxesV1", "", "", 200),
    ("createSandboxV1", "", BASE, 201),
    ("listSandboxes", "", "", 200),
    ("createSandbox", "", BASE, 201),
    ("getSandbox", "", "", 200),
    ("setSandboxTimeout", "", r#"{"timeout":60}"#, 204),
    ("refreshSandbox", "", "", 204),
    ("connectSandboxV1", "", r#"{"timeout":60}"#, 200),
    ("connectSandbox", "", "", 200),
    ("getSandboxesMetrics", "?sandbox_ids=i1", "", 200),
    ("getSandboxMetrics", "", "", 200),
    ("getTeamMetrics", "", "", 200),
    ("getTeamMetricsMax", "?metric=sandbox_start_rate", "", 200),
    ("getSandboxLogsV1", "", "", 200),
    ("getSandboxLogs", "", "", 200),
    ("findTemplateAlias", "", "", 200),
    ("listTeams", "", "", 200),
    ("listApiKeys", "", "", 200),
    ("createApiKey", "", NAME, 201),
    ("renameApiKey", "", NAME, 200),
    ("countRunningSandboxes", "", "", 200),
    ("listNodes", "", "", 200),
    ("getNode", "", "", 200),
    ("changeNode", "", r#"{"status":"ready"}"#, 204),
    ("createTeamApiKey", "", NAME, 201),
    // Deletes are last, because they affect later requests.
    ("killSandbox", "", "", 204),
    ("deleteApiKey", "", "", 204),
    ("deleteTeamApiKey", "", "", 204),
    ("killTeamSandboxes", "", "", 200),
];

/// Caller with all credentials and a value for each path parameter.
struct Caller {
    client: Client,
    credentials: BTreeMap<&'static str, (&'static str, String)>,
    names: BTreeMap<&'static str, String>,
}

impl Caller {
    /// Creates a caller of the first team. The sandbox and the API key in its paths do not exist.
    async fn of(world: &World) -> Self {
        let (_, bearer) = world.user("ada@example.com", &[&world.team]).await;
        let credentials = BTreeMap::from([
            ("ApiKey", ("x-api-key", world.client.key().to_owned())),
            ("UserToken", ("authorization", format!("Bearer {bearer}"))),
            ("AdminToken", ("x-admin-token", ADMIN_TOKEN.to_owned())),
            ("Team", ("x-team-id", world.team.id.to_string())),
        ]);
        let names = BTreeMap::from([
            ("sandboxID", "i0unknown".to_owned()),
            ("teamID", world.team.id.to_string()),
            ("apiKeyID", ApiKeyId::generate().to_string()),
            ("alias", "own".to_owned()),
            ("nodeID", "node-1".to_owned()),
        ]);
        Self { client: world.client_with(None), credentials, names }
    }

    fn path(&self, operation: &Operation) -> String {
        let filled = self
            .names
            .iter()
            .fold(operation.path.clone(), |path, (name, value)| path.replace(&format!("{{{name}}}"), value));
        filled.split('/').map(|word| if word.starts_with('{') { "x" } else { word }).collect::<Vec<_>>().join("/")
    }

    async fn send_to(&self, operation: &Operation, names: &BTreeSet<String>, path: &str, body: &str) -> Reply {
        let presented = names.iter().map(|name| &self.credentials[name.as_str()]);
        let headers: Vec<_> = presented.map(|(header, value)| (*header, value.as_str())).collect();
        self.client.send(&operation.method, path, &headers, body.to_owned()).await
    }

    /// Sends a request with the first sufficient set of credentials.
    async fn send(&self, operation: &Operation, path: &str, body: &str) -> Reply {
        let sufficient = operation.credentials().into_iter().next().unwrap_or_default();
        self.send_to(operation, &sufficient, path, body).await
    }

    /// Sends the request of the table.
    async fn call(&self, operation: &Operation) -> Reply {
        let (query, body) = request(operation).map_or(("", ""), |(query, body, _)| (query, body));
        self.send(operation, &(self.path(operation) + query), body).await
    }
}

fn request(operation: &Operation) -> Option<(&'static str, &'static str, u16)> {
    let found = REQUESTS.iter().find(|(id, ..)| *id == operation.id);
    found.map(|(_, query, body, status)| (*query, *body, *status))
}

fn operation(id: &str) -> &'static Operation {
    let found = DOCUMENT.operations.iter().find(|operation| operation.id == id);
    found.unwrap_or_else(|| panic!("no operation {id}"))
}

/// Returns the operations that document a status.
fn documenting(status: u16) -> impl Iterator<Item = &'static Operation> {
    DOCUMENT.operations.iter().filter(move |operation| operation.responses.contains_key(&status))
}

#[tokio::test]
async fn every_documented_reply_occurs() {
    success_and_unsupported_routes().await;
    missing_credentials_and_unknown_teams().await;
    banned_teams().await;
    malformed_input().await;
    oversized_and_slow_bodies().await;
    exceeded_rate_limits().await;
    exceeded_deadlines().await;
    internal_errors().await;
    conflicting_states().await;
    idempotency_conflicts().await;
    no_capacity_and_shutdown().await;
    let observed = observed();
    let documented = DOCUMENT.operations.iter().flat_map(|operation| {
        operation.responses.keys().map(|status| (operation.id.clone(), *status)).collect::<Vec<_>>()
    });
    let missing: Vec<_> = documented.filter(|reply| !observed.contains(reply)).collect();
    assert_eq!(missing, [], "documented replies that never occurred");
}

/// Sends requests with every subset of the credentials. Only the documented sets are accepted.
#[tokio::test]
async fn each_operation_accepts_the_documented_credentials() {
    let world = World::start().await;
    world.template(&world.team, false, "own", "0.6.4").await;
    let caller = Caller::of(&world).await;
    let names: Vec<&str> = caller.credentials.keys().copied().collect();
    for operation in &DOCUMENT.operations {
        let any_of = operation.credentials();
        for chosen in 0..1_usize << names.len() {
            let presented = names.iter().enumerate().filter(|(index, _)| chosen >> index & 1 == 1);
            let presented: BTreeSet<String> = presented.map(|(_, name)| (*name).to_owned()).collect();
            let is_sufficient = any_of.is_empty() || any_of.iter().any(|all_of| all_of.is_subset(&presented));
            let reply = caller.send_to(operation, &presented, &caller.path(operation), "{}").await;
            assert_eq!(reply.status != 401, is_sufficient, "{presented:?} {}: {reply:?}", operation.id);
        }
    }
}

/// Numbers at the documented bounds are accepted, and numbers beyond them are rejected.
#[tokio::test]
async fn each_number_has_the_documented_bounds() {
    let world = World::start().await;
    let caller = Caller::of(&world).await;
    let mut checked = 0;
    for operation in &DOCUMENT.operations {
        for parameter in operation.json["parameters"].as_array().into_iter().flatten() {
            let (name, schema) = (parameter["name"].as_str().expect("a name"), &parameter["schema"]);
            let bounds = [("minimum", -1), ("maximum", 1)].map(|(bound, beyond)| (schema[bound].as_i64(), beyond));
            for (bound, beyond) in bounds.into_iter().filter_map(|(bound, beyond)| Some((bound?, beyond))) {
                let (query, ..) = request(operation).expect("an operation of the table");
                let query = |number: i64| format!("{query}{}{name}={number}", if query.is_empty() { "?" } else { "&" });
                let path = caller.path(operation);
                caller.send(operation, &(path.clone() + &query(bound)), "").await.assert_status(200);
                caller.send(operation, &(path + &query(bound + beyond)), "").await.assert_error(400, name);
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "{checked}");
}

async fn success_and_unsupported_routes() {
    let world = World::start().await;
    world.template(&world.team, false, "own", "0.6.4").await;
    let mut caller = Caller::of(&world).await;
    for operation in DOCUMENT.operations.iter().filter(|operation| !operation.is_supported()) {
        let reply = caller.call(operation).await;
        assert_eq!(reply.json()["error_code"], "feature_not_supported", "{}", operation.id);
    }
    let key =
        || async { world.store.create_api_key(world.team.id, "spare", &hearth_store::KeySecret::generate()).await };
    caller.names.insert("sandboxID", world.running().await.to_string());
    for (id, _, _, status) in REQUESTS {
        let spare = key().await.expect("a write");
        caller.names.insert("apiKeyID", spare.id.to_string());
        caller.call(operation(id)).await.assert_status(*status);
    }
    let described = DOCUMENT.operations.iter().filter(|operation| operation.is_supported()).count();
    assert_eq!(REQUESTS.len(), described, "an operation has no request in the table");
}

async fn missing_credentials_and_unknown_teams() {
    let world = World::start().await;
    let mut caller = Caller::of(&world).await;
    for operation in documenting(401) {
        let path = caller.path(operation);
        caller.send_to(operation, &BTreeSet::new(), &path, "").await.assert_error(401, "");
    }
    let unknown = TeamId::generate().to_string();
    caller.credentials.insert("Team", ("x-team-id", unknown.clone()));
    caller.names.insert("teamID", unknown);
    caller.names.insert("nodeID", "nowhere".to_owned());
    caller.names.insert("nodeID", "node-0".to_owned());
    for operation in documenting(404) {
        // Only operators may name a team that does not exist.
        let as_operator = operation.credentials().into_iter().find(|all_of| all_of.contains("AdminToken"));
        let (query, body, _) = request(operation).unwrap_or_default();
        let path = caller.path(operation) + query;
        let reply = caller.send_to(operation, &as_operator.expect("operators may"), &path, body).await;
        reply.assert_error(404, "");
    }
}

async fn banned_teams() {
    let world = World::start().await;
    let caller = Caller::of(&world).await;
    let standing = Standing::Banned { reason: "abuse".to_owned() };
    world.store.set_team_standing(world.team.id, &standing).await.expect("a write");
    for operation in documenting(403).filter(|operation| !operation.credentials().is_empty()) {
        caller.call(operation).await.assert_error(403, "banned: abuse");
    }
}

async fn malformed_input() {
    let world = World::start().await;
    let mut caller = Caller::of(&world).await;
    let valid = caller.names.clone();
    for operation in documenting(400) {
        // One malformed parameter at a time.
        let parts: Vec<&'static str> =
            valid.keys().copied().filter(|name| operation.path.contains(&format!("{{{name}}}"))).collect();
        for part in &parts {
            caller.names = valid.clone();
            caller.names.insert(part, "%ff".to_owned());
            caller.call(operation).await.assert_error(400, "invalid");
        }
        caller.names = valid.clone();
        let path = caller.path(operation);
        if operation.takes_a_body() {
            for body in ["[", "[]", "1", r#"{"name":1,"templateID":1,"timeout":"1","duration":"1"}"#] {
                caller.send(operation, &path, body).await.assert_error(400, "validation error: ");
            }
        } else if parts.is_empty() {
            caller.send(operation, &format!("{path}?x=%zz"), "").await.assert_error(400, "validation error: ");
        }
    }
}

async fn oversized_and_slow_bodies() {
    let (request_bytes_max, body_read_max) = (100, Duration::from_millis(50));
    let world = World::with(Config { request_bytes_max, body_read_max, ..config() }).await;
    let caller = Caller::of(&world).await;
    for operation in documenting(413) {
        let path = caller.path(operation);
        caller.send(operation, &path, &" ".repeat(request_bytes_max + 1)).await.assert_error(413, "larger than");
    }
    for operation in documenting(408) {
        let sufficient = operation.credentials().into_iter().next().expect("routes with a body need credentials");
        let headers: Vec<String> = sufficient
            .iter()
            .map(|name| format!("{}: {}\r\n", caller.credentials[name.as_str()].0, caller.credentials[name.as_str()].1))
            .collect();
        let request = format!(
            "{} {} HTTP/1.1\r\nHost: x\r\n{}Content-Length: 100\r\nConnection: close\r\n\r\n{{",
            operation.method,
            caller.path(operation),
            headers.concat()
        );
        let reply = caller.client.raw_exchange(&request).await;
        assert!(reply.starts_with("HTTP/1.1 408 ") && reply.contains(r#""code":408"#), "{}: {reply}", operation.id);
        record(operation, 408);
    }
}

async fn exceeded_rate_limits() {
    let rate = Rate { requests: NonZeroU32::MIN, per: Duration::from_secs(3600) };
    let mut world = World::with(Config { address_rate: Some(rate), ..config() }).await;
    world.peer = Some("192.0.2.7:4711".parse().expect("an address"));
    world.stop_server().await;
    world.start_server().await;
    let caller = Caller::of(&world).await;
    world.client.get("/v2/sandboxes").await.assert_status(200);
    for operation in documenting(429) {
        let reply = caller.call(operation).await.assert_error(429, "too many requests");
        assert_eq!(reply.header("ratelimit-remaining"), Some("0"), "{}", operation.id);
    }
}

async fn exceeded_deadlines() {
    let world = World::with(Config { request_deadline: Duration::ZERO, ..config() }).await;
    let caller = Caller::of(&world).await;
    // With paused time, a request that waits for the store's thread advances to the next timer, which is its deadline.
    // Occasionally the store responds first, so a request may need several tries.
    tokio::time::pause();
    for operation in documenting(504) {
        let mut reply = caller.call(operation).await;
        for _ in 0..TRIES_MAX {
            if reply.status == 504 {
                break;
            }
            reply = caller.call(operation).await;
        }
        let reply = reply.assert_error(504, "longer than");
        let may_retry = if operation.method == "GET" { "true" } else { "false" };
        assert_eq!(reply.header("should-retry"), Some(may_retry), "{}", operation.id);
    }
    tokio::time::resume();
}

async fn internal_errors() {
    let world = World::start().await;
    let caller = Caller::of(&world).await;
    world.store.close().await;
    for operation in documenting(500) {
        let reply = caller.call(operation).await.assert_error(500, "internal error");
        assert_eq!(reply.json()["error_code"], "internal_server_error", "{}", operation.id);
    }
}

/// Requests to a sandbox that is being killed, and a create whose sandbox is killed.
async fn conflicting_states() {
    let world = World::start().await;
    let mut caller = Caller::of(&world).await;
    let change = operation("changeNode");
    let lost = caller.send(change, &caller.path(change), r#"{"status":"unhealthy"}"#).await;
    lost.assert_error(409, "by itself");
    let id = world.running().await;
    caller.names.insert("sandboxID", id.to_string());
    world.node.change(|state| state.on_delete = OnDelete::Hang);
    let killing = {
        let (client, path) = (world.client.clone(), format!("/sandboxes/{id}"));
        tokio::spawn(async move { client.delete(&path).await })
    };
    world.node.wait_for("the kill arrived", |state| !state.deletes.is_empty()).await;
    for id in ["connectSandboxV1", "connectSandbox", "setSandboxTimeout", "refreshSandbox"] {
        caller.call(operation(id)).await.assert_error(409, "being killed");
    }
    world.node.change(|state| state.on_delete = OnDelete::Succeed);
    killing.await.expect("no panic").assert_status(204);
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let creating = {
        let client = world.client.clone();
        tokio::spawn(async move { client.post("/sandboxes", BASE).await })
    };
    let state = world.node.wait_for("the create arrived", |state| state.creates.len() == 2).await;
    let id = &state.creates.last().expect("two").sandbox_id;
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    creating.await.expect("no panic").assert_error(409, "killed");
}

/// Different and concurrent requests with the same idempotency key.
async fn idempotency_conflicts() {
    let world = World::start().await;
    let headers = [("idempotency-key", "a-1")];
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let first = {
        let client = world.client.clone();
        tokio::spawn(async move { client.send("POST", "/v2/sandboxes", &headers, BASE).await })
    };
    world.node.wait_for("the create arrived", |state| !state.creates.is_empty()).await;
    world.client.send("POST", "/v2/sandboxes", &headers, BASE).await.assert_status(409);
    world.node.change(|state| state.on_create = OnCreate::Start);
    first.await.expect("no panic").assert_status(201);
    let other = r#"{"templateID":"base","timeout":1}"#;
    world.client.send("POST", "/v2/sandboxes", &headers, other).await.assert_error(422, "different request");
}

async fn no_capacity_and_shutdown() {
    let world = World::start().await;
    let mut caller = Caller::of(&world).await;
    caller.names.insert("sandboxID", world.running().await.to_string());
    world.node.change(|state| state.on_create = OnCreate::Full);
    for id in ["createSandboxV1", "createSandbox"] {
        caller.call(operation(id)).await.assert_error(503, "capacity");
    }
    world.shut_down().await;
    for operation in documenting(503) {
        caller.call(operation).await.assert_error(503, "shutting down");
    }
}
