//! Isolation of teams in all routes.
//!
//! Another team requests every route, implemented or not. Its reply about a resource of the first team must equal its
//! reply about a resource that never existed, and no resource of the first team may change.

use hearth_store::Team;
use serde_json::Value;

use crate::client::{Client, Reply};
use crate::routes::{IMPLEMENTED, UNIMPLEMENTED};
use crate::world::{ADMIN_TOKEN, LIMITS, World};

/// Resource that a route refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Resource {
    /// A sandbox.
    Sandbox,
    /// An API key of a team.
    Key,
    /// A private template.
    Template,
    /// All resources of the caller.
    All,
    /// No resource that the checks below distinguish.
    Other,
}

/// Implemented routes: method, path, body, resource. The others are in [`UNIMPLEMENTED`].
const ROUTES: &[(&str, &str, &str, Resource)] = &[
    ("GET", "/sandboxes", "", Resource::All),
    ("GET", "/v2/sandboxes", "", Resource::All),
    ("GET", "/v2/sandboxes?metadata=secret%3Dyes", "", Resource::All),
    ("GET", "/v2/sandboxes?template={template}", "", Resource::All),
    ("GET", "/api-keys", "", Resource::All),
    ("GET", "/templates/aliases/base", "", Resource::Other),
    ("POST", "/sandboxes", r#"{"templateID":"{template}"}"#, Resource::Template),
    ("POST", "/v2/sandboxes", r#"{"templateID":"{template}"}"#, Resource::Template),
    ("POST", "/v2/sandboxes", r#"{"templateID":"first/private"}"#, Resource::Template),
    ("GET", "/sandboxes/{sandbox}", "", Resource::Sandbox),
    ("DELETE", "/sandboxes/{sandbox}", "", Resource::Sandbox),
    ("POST", "/sandboxes/{sandbox}/timeout", r#"{"timeout":1}"#, Resource::Sandbox),
    ("POST", "/sandboxes/{sandbox}/refreshes", "{}", Resource::Sandbox),
    ("POST", "/sandboxes/{sandbox}/connect", r#"{"timeout":600}"#, Resource::Sandbox),
    ("POST", "/v2/sandboxes/{sandbox}/connect", r#"{"timeout":600}"#, Resource::Sandbox),
    ("GET", "/sandboxes/{sandbox}/logs", "", Resource::Sandbox),
    ("GET", "/v2/sandboxes/{sandbox}/logs", "", Resource::Sandbox),
    ("GET", "/sandboxes/{sandbox}/metrics", "", Resource::Sandbox),
    ("GET", "/sandboxes/metrics?sandbox_ids={sandbox}", "", Resource::Other),
    ("GET", "/teams/{team}/metrics", "", Resource::Other),
    ("GET", "/teams/{team}/metrics/max?metric=concurrent_sandboxes", "", Resource::Other),
    ("PATCH", "/api-keys/{key}", r#"{"name":"stolen"}"#, Resource::Key),
    ("DELETE", "/api-keys/{key}", "", Resource::Key),
    // Routes for operators.
    ("GET", "/nodes", "", Resource::Other),
    ("GET", "/admin/sandboxes/running-counts", "", Resource::Other),
    ("POST", "/admin/teams/{team}/sandboxes/kill", "", Resource::Other),
    ("POST", "/admin/teams/{team}/api-keys", r#"{"name":"x"}"#, Resource::Other),
    ("DELETE", "/admin/teams/{team}/api-keys/{key}", "", Resource::Other),
];

/// Returns all routes, with placeholders for the resources in their paths and bodies.
fn all_routes() -> Vec<(&'static str, String, String, Resource)> {
    for (method, path, ..) in IMPLEMENTED {
        let path = path.replace("{id}", "{sandbox}").replace("sandbox_ids=i1", "sandbox_ids={sandbox}");
        assert!(
            ROUTES.iter().any(|known| (known.0, known.1) == (*method, path.as_str())),
            "{method} {path} is missing"
        );
    }
    let implemented = ROUTES
        .iter()
        .map(|(method, path, body, resource)| (*method, (*path).to_owned(), (*body).to_owned(), *resource));
    let unimplemented = UNIMPLEMENTED.iter().map(|(method, path, ..)| {
        let resource = if path.contains("i1") { Resource::Sandbox } else { Resource::Other };
        (*method, path.replace("i1", "{sandbox}").replace("t1", "{template}"), String::new(), resource)
    });
    implemented.chain(unimplemented).collect()
}

/// IDs that replace the placeholders.
struct Names {
    sandbox: String,
    key: String,
    template: String,
    team: String,
}

impl Names {
    fn fill(&self, text: &str) -> String {
        let Self { sandbox, key, template, team } = self;
        let text = text.replace("{sandbox}", sandbox).replace("{key}", key);
        text.replace("{template}", template).replace("{team}", team)
    }

    /// Replaces these IDs in a reply, so that replies about different resources can be compared.
    fn erase(&self, text: &str) -> String {
        let Self { sandbox, key, template, team } = self;
        [sandbox, key, template, team].into_iter().fold(text.to_owned(), |text, name| text.replace(name.as_str(), "…"))
    }
}

/// Client with one set of credentials for a team.
struct Caller {
    client: Client,
    headers: Vec<(&'static str, String)>,
    has_keys: bool,
}

impl Caller {
    async fn send(&self, method: &str, path: &str, body: &str) -> Reply {
        let headers: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.client.send(method, path, &headers, body.to_owned()).await
    }
}

/// Returns a client for each set of credentials of a team.
async fn callers(world: &World, team: &Team, client: &Client) -> Vec<Caller> {
    let (_, token) = world.user(&format!("{}@example.com", team.slug), &[team]).await;
    let id = team.id.to_string();
    let user = vec![("authorization", format!("Bearer {token}")), ("x-team-id", id.clone())];
    let operator = vec![("x-admin-token", ADMIN_TOKEN.to_owned()), ("x-team-id", id)];
    vec![
        Caller { client: client.clone(), headers: vec![], has_keys: false },
        Caller { client: world.client_with(None), headers: user, has_keys: true },
        Caller { client: world.client_with(None), headers: operator, has_keys: true },
    ]
}

#[tokio::test]
async fn resources_of_another_team_look_nonexistent() {
    let world = World::start().await;
    let (other, stranger) = world.other_team("stranger", LIMITS).await;
    let template = world.template(&world.team, false, "private", "0.6.4").await;
    let body = format!(r#"{{"templateID":"{template}","metadata":{{"secret":"yes"}},"timeout":300}}"#);
    let sandbox = world.create(&body).await.assert_status(201).text_of("sandboxID");
    let key = world.store.api_keys(world.team.id).await.expect("reads")[0].0.id.to_string();
    let first_team =
        Names { sandbox: sandbox.clone(), key, template: template.to_string(), team: world.team.id.to_string() };
    let nonexistent = Names {
        sandbox: "i00000000000000000000".to_owned(),
        key: hearth_types::ApiKeyId::generate().to_string(),
        template: "nothing0000000000000".to_owned(),
        team: hearth_types::TeamId::generate().to_string(),
    };
    let detail = format!("/sandboxes/{sandbox}");
    let before = world.client.get(&detail).await.assert_status(200).json();
    let keys_before = world.store.api_keys(world.team.id).await.expect("reads").len();
    for caller in callers(&world, &other, &stranger).await {
        let is_operator = caller.headers.iter().any(|(name, _)| *name == "x-admin-token");
        for (method, path, body, resource) in all_routes() {
            let (path, body) = (path.as_str(), body.as_str());
            if is_operator && (path.starts_with("/admin") || path == "/nodes") {
                continue;
            }
            let reply = caller.send(method, &first_team.fill(path), &first_team.fill(body)).await;
            let expected = caller.send(method, &nonexistent.fill(path), &nonexistent.fill(body)).await;
            let what = format!("{method} {path} {body}: {reply:?}");
            assert_eq!(reply.status, expected.status, "{what}");
            if !body.contains("first/private") {
                assert_eq!(first_team.erase(&reply.text), nonexistent.erase(&expected.text), "{what}");
            }
            let status = reply.status.as_u16();
            match resource {
                // Logs and metrics outlive their sandbox, so they are empty for a sandbox that never existed.
                Resource::Sandbox if path.ends_with("/logs") || path.ends_with("/metrics") => {}
                Resource::Sandbox => assert!([404, 501].contains(&status), "{what}"),
                Resource::Template => assert_eq!(status, 404, "{what}"),
                Resource::Key if caller.has_keys => assert_eq!(status, 404, "{what}"),
                Resource::All if status == 200 && !path.contains("api-keys") => {
                    assert_eq!(reply.json(), Value::Array(vec![]), "{what}");
                    assert_ne!(reply.header("x-total-running"), Some("1"), "{what}");
                }
                Resource::All | Resource::Key | Resource::Other => {}
            }
            assert!(!reply.text.contains(&first_team.key) || reply.status != 200, "{what}");
        }
    }
    assert_eq!(world.client.get(&detail).await.assert_status(200).json(), before, "the sandbox is unchanged");
    assert_eq!(world.store.api_keys(world.team.id).await.expect("reads").len(), keys_before);
    let names = world.store.api_keys(world.team.id).await.expect("reads");
    assert!(names.iter().all(|(key, _)| key.name == "test"), "{names:?}");
    // The first team itself has access.
    for caller in callers(&world, &world.team, &world.client).await {
        caller.send("GET", &detail, "").await.assert_status(200);
    }
}

#[tokio::test]
async fn template_aliases_are_separate_for_each_team() {
    let world = World::start().await;
    let (other, stranger) = world.other_team("stranger", LIMITS).await;
    let first = world.template(&world.team, false, "same", "0.6.4").await;
    let second = world.template(&other, false, "same", "0.6.4").await;
    for (client, template) in [(&world.client, first), (&stranger, second)] {
        let created = client.post("/v2/sandboxes", r#"{"templateID":"same"}"#).await.assert_status(201);
        assert_eq!(created.text_of("templateID"), template.as_str());
    }
}
