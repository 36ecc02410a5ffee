//! Comparison of the OpenAPI document with the contract (sections 1.5, 2.2, 3.0 to 3.4, 3.8, 3.9, 3.12).
//!
//! The contract is written here as data. Both directions are checked: the document has every route, parameter, status
//! and member of the contract, and no other.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::document::{DOCUMENT, Operation};
use crate::routes::{UNIMPLEMENTED, UNIMPLEMENTED_OPERATOR};
use crate::world::World;

/// Method and path, parameters outside the path, request, success. `?` marks an optional item, `[X]` a list of X.
const ROUTES: &[(&str, &str, &str, &str)] = &[
    ("POST /sandboxes", "", "NewSandboxV1", "201 Sandbox"),
    ("POST /v2/sandboxes", "Idempotency-Key?", "NewSandbox", "201 Sandbox"),
    (
        "GET /v2/sandboxes",
        "state? metadata? template? startedAfter? order? limit? nextToken?",
        "",
        "200 [ListedSandbox]",
    ),
    ("GET /sandboxes", "metadata?", "", "200 [ListedSandbox]"),
    ("GET /sandboxes/{sandboxID}", "", "", "200 SandboxDetail"),
    ("DELETE /sandboxes/{sandboxID}", "", "", "204"),
    // 201 is added together with resuming sandboxes.
    ("POST /sandboxes/{sandboxID}/connect", "", "ConnectV1", "200 Sandbox"),
    ("POST /v2/sandboxes/{sandboxID}/connect", "", "Connect?", "200 Sandbox"),
    ("POST /sandboxes/{sandboxID}/timeout", "", "Timeout", "204"),
    ("POST /sandboxes/{sandboxID}/refreshes", "", "Refresh?", "204"),
    ("GET /sandboxes/{sandboxID}/metrics", "start? end?", "", "200 [SandboxMetric]"),
    ("GET /sandboxes/metrics", "sandbox_ids", "", "200 SandboxesMetrics"),
    ("GET /sandboxes/{sandboxID}/logs", "start? limit?", "", "200 Logs"),
    ("GET /v2/sandboxes/{sandboxID}/logs", "cursor? limit? direction? level? search?", "", "200 LogPage"),
    ("GET /templates/aliases/{alias}", "", "", "200 TemplateAlias"),
    ("GET /teams", "", "", "200 [TeamOfUser]"),
    ("GET /teams/{teamID}/metrics", "start? end?", "", "200 [TeamMetric]"),
    ("GET /teams/{teamID}/metrics/max", "start? end? metric", "", "200 MaxTeamMetric"),
    ("GET /api-keys", "", "", "200 [ApiKey]"),
    ("POST /api-keys", "", "KeyName", "201 CreatedApiKey"),
    ("PATCH /api-keys/{apiKeyID}", "", "KeyName", "200 ApiKey"),
    ("DELETE /api-keys/{apiKeyID}", "", "", "204"),
    ("GET /nodes", "clusterID?", "", "200 [Node]"),
    ("GET /nodes/{nodeID}", "clusterID?", "", "200 Node"),
    ("POST /nodes/{nodeID}", "", "NodeChange", "204"),
    ("POST /admin/teams/{teamID}/sandboxes/kill", "", "", "200 KillResult"),
    ("GET /admin/sandboxes/running-counts", "", "", "200 [RunningCount]"),
    ("POST /admin/teams/{teamID}/api-keys", "", "KeyName", "201 CreatedApiKey"),
    ("DELETE /admin/teams/{teamID}/api-keys/{apiKeyID}", "", "", "204"),
    ("GET /health", "", "", "200 string"),
    // Not in the contract: the document itself.
    ("GET /openapi.json", "", "", "200 object"),
    ("GET /openapi.yaml", "", "", "200 object"),
];

/// Members of bodies. `?` marks an optional member, `|null` a nullable one, `{X}` a map of texts to X.
const BODIES: &[(&str, &str)] = &[
    ("Error", "code:integer message:string error_code?:string"),
    (
        "NewSandbox",
        "templateID:string timeout?:integer metadata?:{string} envVars?:{string} autoPause?:boolean \
         autoPauseMemory?:boolean autoResume?:AutoResume allow_internet_access?:boolean network?:Network \
         volumeMounts?:[VolumeMount] mcp?:object|null iam?:Iam",
    ),
    (
        "NewSandboxV1",
        "templateID:string timeout?:integer metadata?:{string} envVars?:{string} autoPause?:boolean \
         autoPauseMemory?:boolean autoResume?:AutoResume allow_internet_access?:boolean network?:Network \
         volumeMounts?:[VolumeMount] mcp?:object|null iam?:Iam secure?:boolean",
    ),
    ("AutoResume", "enabled:boolean"),
    ("VolumeMount", "name:string path:string"),
    ("Iam", "tokens?:{any}"),
    (
        "Network",
        "allowOut?:[string] denyOut?:[string] allowPublicTraffic?:boolean|null maskRequestHost?:string \
         httpsPorts?:[integer] rules?:{any} egressProxy?:object|null dnsServers?:[string]",
    ),
    ("ConnectV1", "timeout:integer memory?:boolean"),
    ("Connect", "timeout?:integer memory?:boolean"),
    ("Timeout", "timeout:integer"),
    ("Refresh", "duration?:integer"),
    (
        "Sandbox",
        "sandboxID:string templateID:string alias?:string clientID:string envdVersion:string envdAccessToken?:string \
         trafficAccessToken:string|null domain:string|null",
    ),
    (
        "ListedSandbox",
        "sandboxID:string templateID:string clientID:string envdVersion:string alias?:string state:SandboxState \
         startedAt:date-time endAt:date-time cpuCount:integer memoryMB:integer diskSizeMB:integer metadata?:{string} \
         volumeMounts:[VolumeMount]",
    ),
    (
        // `network` and `lifecycle` are never null. `pauseMode` is added together with pausing sandboxes.
        "SandboxDetail",
        "sandboxID:string templateID:string clientID:string envdVersion:string alias?:string state:SandboxState \
         startedAt:date-time endAt:date-time cpuCount:integer memoryMB:integer diskSizeMB:integer metadata?:{string} \
         volumeMounts:[VolumeMount] envdAccessToken?:string domain:string|null allowInternetAccess:boolean|null \
         network?:Network lifecycle:Lifecycle",
    ),
    ("SandboxState", "running paused"),
    ("Lifecycle", "onTimeout:OnTimeout autoResume:boolean"),
    ("OnTimeout", "kill pause"),
    (
        "SandboxMetric",
        "timestamp:date-time timestampUnix:integer cpuCount:integer cpuUsedPct:number memUsed:integer memTotal:integer \
         memCache:integer diskUsed:integer diskTotal:integer",
    ),
    ("SandboxesMetrics", "sandboxes:{SandboxMetric}"),
    ("Logs", "logs:[LogLine] logEntries:[LogEntry]"),
    ("LogPage", "logs:[LogEntry]"),
    ("LogLine", "timestamp:date-time line:string"),
    ("LogEntry", "timestamp:date-time level:LogLevel message:string fields:{string}"),
    ("LogLevel", "debug info warn error"),
    ("TemplateAlias", "templateID:string public:boolean"),
    ("TeamOfUser", "teamID:uuid name:string apiKey:string isDefault:boolean"),
    ("TeamMetric", "timestamp:date-time timestampUnix:integer concurrentSandboxes:integer sandboxStartRate:number"),
    ("MaxTeamMetric", "timestamp:date-time timestampUnix:integer value:number"),
    ("ApiKey", "id:uuid name:string mask:Mask createdAt:date-time createdBy:Creator|null lastUsed:date-time|null"),
    (
        "CreatedApiKey",
        "id:uuid key:string name:string mask:Mask createdAt:date-time createdBy:Creator|null lastUsed:date-time|null",
    ),
    ("Mask", "prefix:string valueLength:integer maskedValuePrefix:string maskedValueSuffix:string"),
    ("Creator", "id:uuid email:string"),
    ("KeyName", "name:string"),
    (
        "Node",
        "id:string serviceInstanceID:string clusterID:uuid version:string commit:string status:NodeStatus \
         statusChangedAt:date-time sandboxCount:integer sandboxStartingCount?:integer createSuccesses:integer \
         createFails:integer machineInfo:NodeMachine metrics:NodeMetrics",
    ),
    ("NodeStatus", "ready draining connecting unhealthy standby"),
    ("NodeChange", "status:NodeStatus clusterID?:uuid"),
    ("NodeMachine", "cpuFamily:string cpuModel:string cpuModelName:string cpuArchitecture:string"),
    (
        "NodeMetrics",
        "allocatedCPU:integer cpuPercent:integer cpuCount:integer allocatedMemoryBytes:integer memoryUsedBytes:integer \
         memoryTotalBytes:integer hugePagesTotal:integer hugePagesUsed:integer hugePagesReserved:integer \
         hugePageSizeBytes:integer disks:[DiskMetrics]",
    ),
    ("DiskMetrics", "mountPoint:string device:string filesystemType:string usedBytes:integer totalBytes:integer"),
    ("KillResult", "killedCount:integer failedCount:integer"),
    ("RunningCount", "teamID:uuid runningCount:integer"),
];

/// Headers of successful replies, except those of rate limits.
const HEADERS: &[(&str, &str)] = &[("GET /v2/sandboxes", "X-Next-Token X-Total-Running")];

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn name(operation: &Operation) -> String {
    format!("{} {}", operation.method, operation.path)
}

#[test]
fn routes_match_the_contract() {
    let implemented: BTreeSet<String> =
        DOCUMENT.operations.iter().filter(|operation| operation.is_supported()).map(name).collect();
    assert_eq!(implemented, ROUTES.iter().map(|(route, ..)| (*route).to_owned()).collect());
    let unimplemented: BTreeSet<String> =
        DOCUMENT.operations.iter().filter(|operation| !operation.is_supported()).map(name).collect();
    let expected =
        UNIMPLEMENTED.iter().map(|(method, path, ..)| (*method, *path)).chain(UNIMPLEMENTED_OPERATOR.iter().copied());
    let expected = expected.map(|(method, path)| name(DOCUMENT.find(method, path).expect("the document has it")));
    assert_eq!(unimplemented, expected.collect());
}

#[tokio::test]
async fn the_document_is_served_without_credentials() {
    let world = World::start().await;
    let anonymous = world.client_with(None);
    for (path, media_type, text) in [
        ("/openapi.json", "application/json", hearth_api::openapi_json()),
        ("/openapi.yaml", "application/yaml", hearth_api::openapi_yaml()),
    ] {
        let reply = anonymous.get(path).await.assert_status(200);
        assert_eq!((reply.header("content-type"), reply.text.as_str()), (Some(media_type), text), "{path}");
    }
}

#[test]
fn operations_match_the_contract() {
    let headers: BTreeMap<&str, &str> = HEADERS.iter().copied().collect();
    for (route, parameters, request, success) in ROUTES {
        let (method, path) = route.split_once(' ').expect("two words");
        let operation = DOCUMENT.find(method, path).expect("the document has it");
        let described = operation.json["parameters"].as_array().into_iter().flatten();
        let described = described.filter(|parameter| parameter["in"] != "path").map(|parameter| {
            let optional = if parameter["required"] == true { "" } else { "?" };
            format!("{}{optional}", parameter["name"].as_str().expect("a name"))
        });
        assert_eq!(described.collect::<BTreeSet<_>>(), words(parameters), "{route}");
        let body = &operation.json["requestBody"];
        let schema = &body["content"]["application/json"]["schema"];
        let described = match (body.is_null(), body["required"] == true) {
            (true, _) => String::new(),
            (false, true) => kind(schema),
            // An optional body may also be null.
            (false, false) => format!("{}?", kind(schema).trim_end_matches("|null")),
        };
        assert_eq!(described, *request, "{route}");
        let mut successes = operation.responses.iter().filter(|(status, _)| **status < 400);
        let (status, reply) = successes.next().expect("a successful response");
        assert!(successes.next().is_none(), "{route} succeeds in more than one way");
        let content = reply["content"].as_object().and_then(|content| content.values().next());
        let described = content.map_or(status.to_string(), |content| format!("{status} {}", kind(&content["schema"])));
        assert_eq!(described, *success, "{route}");
        let described = reply["headers"].as_object().into_iter().flat_map(|headers| headers.keys());
        let described: BTreeSet<String> = described.filter(|name| !name.starts_with("RateLimit-")).cloned().collect();
        assert_eq!(described, words(headers.get(route).unwrap_or(&"")), "{route}");
    }
}

#[test]
fn bodies_match_the_contract() {
    let schemas = DOCUMENT.json["components"]["schemas"].as_object().expect("schemas");
    let named: BTreeSet<&str> = BODIES.iter().map(|(name, _)| *name).collect();
    assert_eq!(schemas.keys().map(String::as_str).collect::<BTreeSet<_>>(), named);
    for (name, members) in BODIES {
        assert_eq!(members_of(&schemas[*name]), words(members), "{name}");
    }
}

/// Returns the members of an object as texts, or the values of an enum.
fn members_of(schema: &Value) -> BTreeSet<String> {
    let schema = DOCUMENT.resolve(schema);
    if let Some(choice) = schema["enum"].as_array() {
        return choice.iter().map(|word| word.as_str().expect("a word").to_owned()).collect();
    }
    let mut members: BTreeSet<String> = schema["allOf"].as_array().into_iter().flatten().flat_map(members_of).collect();
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, value) in schema["properties"].as_object().into_iter().flatten() {
        let optional = if required.contains(&name.as_str()) { "" } else { "?" };
        members.insert(format!("{name}{optional}:{}", kind(value)));
    }
    members
}

/// Returns the type of a schema as one word.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        return reference.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Some(any_of) = schema["oneOf"].as_array() {
        let kinds: Vec<String> = any_of.iter().map(kind).collect();
        let (nulls, others): (Vec<_>, Vec<_>) = kinds.into_iter().partition(|kind| kind == "null");
        return others.into_iter().chain(nulls).collect::<Vec<_>>().join("|");
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => vec!["any"],
    };
    let words = types.into_iter().map(|word| match (word, schema["format"].as_str()) {
        ("string", Some(format)) => format.to_owned(),
        ("array", _) => format!("[{}]", kind(&schema["items"])),
        ("object", _) if !schema["additionalProperties"].is_null() => {
            format!("{{{}}}", kind(&schema["additionalProperties"]))
        }
        (word, _) => word.to_owned(),
    });
    words.collect::<Vec<_>>().join("|")
}
