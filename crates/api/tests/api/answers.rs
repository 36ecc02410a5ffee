//! Every answer that the document promises, given: what is promised and never happens is a mistake of the document, and
//! what happens without a promise is refused by the tests' client.
//!
//! Most of them follow from the document alone: who may not call, what cannot be read, too much, too often, too late.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use hearth_api::{Config, Rate};
use hearth_store::Standing;
use hearth_types::{ApiKeyId, TeamId};

use crate::client::{Answer, Client};
use crate::document::{DOCUMENT, Operation, answered, note};
use crate::fake_node::{OnCreate, OnDelete};
use crate::world::{ADMIN_TOKEN, World, config};

const BASE: &str = r#"{"templateID":"base"}"#;
const NAME: &str = r#"{"name":"x"}"#;

/// Tries to be slower than the store.
const TRIES_MAX: usize = 1000;

/// What it takes to succeed: operation, query, body, status. All else follows from the path.
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
    // What ends something comes last.
    ("killSandbox", "", "", 204),
    ("deleteApiKey", "", "", 204),
    ("deleteTeamApiKey", "", "", 204),
    ("killTeamSandboxes", "", "", 200),
];

/// Somebody who has all credentials, and what paths name.
struct Somebody {
    client: Client,
    credentials: BTreeMap<&'static str, (&'static str, String)>,
    names: BTreeMap<&'static str, String>,
}

impl Somebody {
    /// Of the first team. What its paths name is not there, unless it says so.
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

    async fn send_to(&self, operation: &Operation, names: &BTreeSet<String>, path: &str, body: &str) -> Answer {
        let presented = names.iter().map(|name| &self.credentials[name.as_str()]);
        let headers: Vec<_> = presented.map(|(header, value)| (*header, value.as_str())).collect();
        self.client.send(&operation.method, path, &headers, body.to_owned()).await
    }

    /// With the first credentials that are enough.
    async fn send(&self, operation: &Operation, path: &str, body: &str) -> Answer {
        let enough = operation.credentials().into_iter().next().unwrap_or_default();
        self.send_to(operation, &enough, path, body).await
    }

    /// A request that would succeed.
    async fn call(&self, operation: &Operation) -> Answer {
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

/// Those that may answer so.
fn promising(status: u16) -> impl Iterator<Item = &'static Operation> {
    DOCUMENT.operations.iter().filter(move |operation| operation.answers.contains_key(&status))
}

#[tokio::test]
async fn every_answer_in_the_document_is_given() {
    success_and_what_is_not_supported().await;
    nobody_and_teams_that_are_not_there().await;
    banned_teams().await;
    what_cannot_be_read().await;
    too_much_and_too_slow().await;
    too_often().await;
    too_late().await;
    broken().await;
    wrong_moments().await;
    contradictions().await;
    no_room_and_stopping().await;
    let answered = answered();
    let promised = DOCUMENT.operations.iter().flat_map(|operation| {
        operation.answers.keys().map(|status| (operation.id.clone(), *status)).collect::<Vec<_>>()
    });
    let never: Vec<_> = promised.filter(|promise| !answered.contains(promise)).collect();
    assert_eq!(never, [], "promised and never given");
}

/// The credentials of the document are those of the server: with any set of them, whoever lacks one is told so.
#[tokio::test]
async fn each_operation_takes_the_credentials_of_the_document() {
    let world = World::start().await;
    world.template(&world.team, false, "own", "0.6.4").await;
    let somebody = Somebody::of(&world).await;
    let names: Vec<&str> = somebody.credentials.keys().copied().collect();
    for operation in &DOCUMENT.operations {
        let any_of = operation.credentials();
        for chosen in 0..1_usize << names.len() {
            let presented = names.iter().enumerate().filter(|(index, _)| chosen >> index & 1 == 1);
            let presented: BTreeSet<String> = presented.map(|(_, name)| (*name).to_owned()).collect();
            let is_enough = any_of.is_empty() || any_of.iter().any(|all_of| all_of.is_subset(&presented));
            let answer = somebody.send_to(operation, &presented, &somebody.path(operation), "{}").await;
            assert_eq!(answer.status != 401, is_enough, "{presented:?} {}: {answer:?}", operation.id);
        }
    }
}

/// Numbers in queries may be as small and as great as the document says, and no more.
#[tokio::test]
async fn each_number_has_the_bounds_of_the_document() {
    let world = World::start().await;
    let somebody = Somebody::of(&world).await;
    let mut checked = 0;
    for operation in &DOCUMENT.operations {
        for parameter in operation.json["parameters"].as_array().into_iter().flatten() {
            let (name, schema) = (parameter["name"].as_str().expect("a name"), &parameter["schema"]);
            let bounds = [("minimum", -1), ("maximum", 1)].map(|(bound, beyond)| (schema[bound].as_i64(), beyond));
            for (bound, beyond) in bounds.into_iter().filter_map(|(bound, beyond)| Some((bound?, beyond))) {
                let (query, ..) = request(operation).expect("an operation of the table");
                let query = |number: i64| format!("{query}{}{name}={number}", if query.is_empty() { "?" } else { "&" });
                let path = somebody.path(operation);
                somebody.send(operation, &(path.clone() + &query(bound)), "").await.assert_status(200);
                somebody.send(operation, &(path + &query(bound + beyond)), "").await.assert_error(400, name);
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "{checked}");
}

async fn success_and_what_is_not_supported() {
    let world = World::start().await;
    world.template(&world.team, false, "own", "0.6.4").await;
    let mut somebody = Somebody::of(&world).await;
    for operation in DOCUMENT.operations.iter().filter(|operation| !operation.is_supported()) {
        let answer = somebody.call(operation).await;
        assert_eq!(answer.json()["error_code"], "feature_not_supported", "{}", operation.id);
    }
    let key =
        || async { world.store.create_api_key(world.team.id, "spare", &hearth_store::KeySecret::generate()).await };
    somebody.names.insert("sandboxID", world.running().await.to_string());
    for (id, _, _, status) in REQUESTS {
        let spare = key().await.expect("a write");
        somebody.names.insert("apiKeyID", spare.id.to_string());
        somebody.call(operation(id)).await.assert_status(*status);
    }
    let described = DOCUMENT.operations.iter().filter(|operation| operation.is_supported()).count();
    assert_eq!(REQUESTS.len(), described, "an operation has no request in the table");
}

async fn nobody_and_teams_that_are_not_there() {
    let world = World::start().await;
    let mut somebody = Somebody::of(&world).await;
    for operation in promising(401) {
        let path = somebody.path(operation);
        somebody.send_to(operation, &BTreeSet::new(), &path, "").await.assert_error(401, "");
    }
    let nowhere = TeamId::generate().to_string();
    somebody.credentials.insert("Team", ("x-team-id", nowhere.clone()));
    somebody.names.insert("teamID", nowhere);
    somebody.names.insert("nodeID", "nowhere".to_owned());
    somebody.names.insert("nodeID", "node-0".to_owned());
    for operation in promising(404) {
        // Only operators may name a team that there is not.
        let as_operator = operation.credentials().into_iter().find(|all_of| all_of.contains("AdminToken"));
        let (query, body, _) = request(operation).unwrap_or_default();
        let path = somebody.path(operation) + query;
        let answer = somebody.send_to(operation, &as_operator.expect("operators may"), &path, body).await;
        answer.assert_error(404, "");
    }
}

async fn banned_teams() {
    let world = World::start().await;
    let somebody = Somebody::of(&world).await;
    let standing = Standing::Banned { reason: "abuse".to_owned() };
    world.store.set_team_standing(world.team.id, &standing).await.expect("a write");
    for operation in promising(403).filter(|operation| !operation.credentials().is_empty()) {
        somebody.call(operation).await.assert_error(403, "banned: abuse");
    }
}

async fn what_cannot_be_read() {
    let world = World::start().await;
    let mut somebody = Somebody::of(&world).await;
    let right = somebody.names.clone();
    for operation in promising(400) {
        // Each part by itself.
        let parts: Vec<&'static str> =
            right.keys().copied().filter(|name| operation.path.contains(&format!("{{{name}}}"))).collect();
        for part in &parts {
            somebody.names = right.clone();
            somebody.names.insert(part, "%ff".to_owned());
            somebody.call(operation).await.assert_error(400, "invalid");
        }
        somebody.names = right.clone();
        let path = somebody.path(operation);
        if operation.takes_a_body() {
            for body in ["[", "[]", "1", r#"{"name":1,"templateID":1,"timeout":"1","duration":"1"}"#] {
                somebody.send(operation, &path, body).await.assert_error(400, "validation error: ");
            }
        } else if parts.is_empty() {
            somebody.send(operation, &format!("{path}?x=%zz"), "").await.assert_error(400, "validation error: ");
        }
    }
}

async fn too_much_and_too_slow() {
    let (request_bytes_max, body_read_max) = (100, Duration::from_millis(50));
    let world = World::with(Config { request_bytes_max, body_read_max, ..config() }).await;
    let somebody = Somebody::of(&world).await;
    for operation in promising(413) {
        let path = somebody.path(operation);
        somebody.send(operation, &path, &" ".repeat(request_bytes_max + 1)).await.assert_error(413, "larger than");
    }
    for operation in promising(408) {
        let enough = operation.credentials().into_iter().next().expect("bodies are read of somebody");
        let headers: Vec<String> = enough
            .iter()
            .map(|name| {
                format!("{}: {}\r\n", somebody.credentials[name.as_str()].0, somebody.credentials[name.as_str()].1)
            })
            .collect();
        let request = format!(
            "{} {} HTTP/1.1\r\nHost: x\r\n{}Content-Length: 100\r\nConnection: close\r\n\r\n{{",
            operation.method,
            somebody.path(operation),
            headers.concat()
        );
        let answer = somebody.client.raw_exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(r#""code":408"#), "{}: {answer}", operation.id);
        note(operation, 408);
    }
}

async fn too_often() {
    let rate = Rate { requests: NonZeroU32::MIN, per: Duration::from_secs(3600) };
    let mut world = World::with(Config { address_rate: Some(rate), ..config() }).await;
    world.comes_from = Some("192.0.2.7:4711".parse().expect("an address"));
    world.stop_server().await;
    world.start_server().await;
    let somebody = Somebody::of(&world).await;
    world.client.get("/v2/sandboxes").await.assert_status(200);
    for operation in promising(429) {
        let answer = somebody.call(operation).await.assert_error(429, "too many requests");
        assert_eq!(answer.header("ratelimit-remaining"), Some("0"), "{}", operation.id);
    }
}

async fn too_late() {
    let world = World::with(Config { request_deadline: Duration::ZERO, ..config() }).await;
    let somebody = Somebody::of(&world).await;
    // The store is another thread: who waits for it waits until the next timer, which is the deadline. Now and then the
    // store is faster than that, so it may take some tries.
    tokio::time::pause();
    for operation in promising(504) {
        let mut answer = somebody.call(operation).await;
        for _ in 0..TRIES_MAX {
            if answer.status == 504 {
                break;
            }
            answer = somebody.call(operation).await;
        }
        let answer = answer.assert_error(504, "longer than");
        let may_repeat = if operation.method == "GET" { "true" } else { "false" };
        assert_eq!(answer.header("should-retry"), Some(may_repeat), "{}", operation.id);
    }
    tokio::time::resume();
}

async fn broken() {
    let world = World::start().await;
    let somebody = Somebody::of(&world).await;
    world.store.close().await;
    for operation in promising(500) {
        let answer = somebody.call(operation).await.assert_error(500, "internal error");
        assert_eq!(answer.json()["error_code"], "internal_server_error", "{}", operation.id);
    }
}

/// A sandbox that is being killed, and one that is killed while it is started.
async fn wrong_moments() {
    let world = World::start().await;
    let mut somebody = Somebody::of(&world).await;
    let change = operation("changeNode");
    let lost = somebody.send(change, &somebody.path(change), r#"{"status":"unhealthy"}"#).await;
    lost.assert_error(409, "by itself");
    let id = world.running().await;
    somebody.names.insert("sandboxID", id.to_string());
    world.node.change(|state| state.on_delete = OnDelete::Hang);
    let killing = {
        let (client, path) = (world.client.clone(), format!("/sandboxes/{id}"));
        tokio::spawn(async move { client.delete(&path).await })
    };
    world.node.until("the kill arrived", |state| !state.deletes.is_empty()).await;
    for id in ["connectSandboxV1", "connectSandbox", "setSandboxTimeout", "refreshSandbox"] {
        somebody.call(operation(id)).await.assert_error(409, "being killed");
    }
    world.node.change(|state| state.on_delete = OnDelete::End);
    killing.await.expect("no panic").assert_status(204);
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let creating = {
        let client = world.client.clone();
        tokio::spawn(async move { client.post("/sandboxes", BASE).await })
    };
    let state = world.node.until("the create arrived", |state| state.creates.len() == 2).await;
    let id = &state.creates.last().expect("two").sandbox_id;
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    creating.await.expect("no panic").assert_error(409, "killed");
}

/// Two requests of one name.
async fn contradictions() {
    let world = World::start().await;
    let named = [("idempotency-key", "a-1")];
    world.node.change(|state| state.on_create = OnCreate::Hang);
    let first = {
        let client = world.client.clone();
        tokio::spawn(async move { client.send("POST", "/v2/sandboxes", &named, BASE).await })
    };
    world.node.until("the create arrived", |state| !state.creates.is_empty()).await;
    world.client.send("POST", "/v2/sandboxes", &named, BASE).await.assert_status(409);
    world.node.change(|state| state.on_create = OnCreate::Start);
    first.await.expect("no panic").assert_status(201);
    let other = r#"{"templateID":"base","timeout":1}"#;
    world.client.send("POST", "/v2/sandboxes", &named, other).await.assert_error(422, "different request");
}

async fn no_room_and_stopping() {
    let world = World::start().await;
    let mut somebody = Somebody::of(&world).await;
    somebody.names.insert("sandboxID", world.running().await.to_string());
    world.node.change(|state| state.on_create = OnCreate::Full);
    for id in ["createSandboxV1", "createSandbox"] {
        somebody.call(operation(id)).await.assert_error(503, "room");
    }
    world.shut_down().await;
    for operation in promising(503) {
        somebody.call(operation).await.assert_error(503, "shutting down");
    }
}
