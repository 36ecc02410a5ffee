//! Two teams that cannot see each other, in any route.
//!
//! Every route of the server is asked, built or not, and for each of them: what a stranger is told about what is the first team's is what
//! they are told about what never was; and nothing of the first team changes by it.

use hearth_store::Team;
use serde_json::Value;

use crate::client::{Answer, Client};
use crate::routes::{BUILT, UNBUILT};
use crate::world::{ADMIN_TOKEN, LIMITS, World};

/// What a route says about something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum About {
    /// It names a sandbox.
    Sandbox,
    /// It names a key of a team.
    Key,
    /// It names a template that is private.
    Template,
    /// It lists what the caller has.
    All,
    /// It names nothing.
    Nothing,
}

/// Routes that are built: method, path, body, what it is about. Those that are not are in [`UNBUILT`].
const ROUTES: &[(&str, &str, &str, About)] = &[
    ("GET", "/sandboxes", "", About::All),
    ("GET", "/v2/sandboxes", "", About::All),
    ("GET", "/v2/sandboxes?metadata=secret%3Dyes", "", About::All),
    ("GET", "/v2/sandboxes?template={template}", "", About::All),
    ("GET", "/api-keys", "", About::All),
    ("GET", "/templates/aliases/base", "", About::Nothing),
    ("POST", "/sandboxes", r#"{"templateID":"{template}"}"#, About::Template),
    ("POST", "/v2/sandboxes", r#"{"templateID":"{template}"}"#, About::Template),
    ("POST", "/v2/sandboxes", r#"{"templateID":"first/private"}"#, About::Template),
    ("GET", "/sandboxes/{sandbox}", "", About::Sandbox),
    ("DELETE", "/sandboxes/{sandbox}", "", About::Sandbox),
    ("POST", "/sandboxes/{sandbox}/timeout", r#"{"timeout":1}"#, About::Sandbox),
    ("POST", "/sandboxes/{sandbox}/refreshes", "{}", About::Sandbox),
    ("POST", "/sandboxes/{sandbox}/connect", r#"{"timeout":600}"#, About::Sandbox),
    ("POST", "/v2/sandboxes/{sandbox}/connect", r#"{"timeout":600}"#, About::Sandbox),
    ("GET", "/sandboxes/{sandbox}/logs", "", About::Sandbox),
    ("GET", "/v2/sandboxes/{sandbox}/logs", "", About::Sandbox),
    ("GET", "/sandboxes/{sandbox}/metrics", "", About::Sandbox),
    ("GET", "/sandboxes/metrics?sandbox_ids={sandbox}", "", About::Nothing),
    ("GET", "/teams/{team}/metrics", "", About::Nothing),
    ("GET", "/teams/{team}/metrics/max?metric=concurrent_sandboxes", "", About::Nothing),
    ("PATCH", "/api-keys/{key}", r#"{"name":"stolen"}"#, About::Key),
    ("DELETE", "/api-keys/{key}", "", About::Key),
    // Only operators.
    ("GET", "/nodes", "", About::Nothing),
    ("GET", "/admin/sandboxes/running-counts", "", About::Nothing),
    ("POST", "/admin/teams/{team}/sandboxes/kill", "", About::Nothing),
    ("POST", "/admin/teams/{team}/api-keys", r#"{"name":"x"}"#, About::Nothing),
    ("DELETE", "/admin/teams/{team}/api-keys/{key}", "", About::Nothing),
];

/// All routes, with placeholders for what they name.
fn all_routes() -> Vec<(&'static str, String, String, About)> {
    for (method, path, ..) in BUILT {
        let path = path.replace("{id}", "{sandbox}").replace("sandbox_ids=i1", "sandbox_ids={sandbox}");
        assert!(
            ROUTES.iter().any(|known| (known.0, known.1) == (*method, path.as_str())),
            "{method} {path} is missing"
        );
    }
    let built =
        ROUTES.iter().map(|(method, path, body, about)| (*method, (*path).to_owned(), (*body).to_owned(), *about));
    let unbuilt = UNBUILT.iter().map(|(method, path, ..)| {
        let about = if path.contains("i1") { About::Sandbox } else { About::Nothing };
        (*method, path.replace("i1", "{sandbox}").replace("t1", "{template}"), String::new(), about)
    });
    built.chain(unbuilt).collect()
}

/// The names of things.
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

    /// What an answer says about these, said about others.
    fn erase(&self, text: &str) -> String {
        let Self { sandbox, key, template, team } = self;
        [sandbox, key, template, team].into_iter().fold(text.to_owned(), |text, name| text.replace(name.as_str(), "…"))
    }
}

/// A way of a team to call.
struct Voice {
    client: Client,
    headers: Vec<(&'static str, String)>,
    has_keys: bool,
}

impl Voice {
    async fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let headers: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.client.send(method, path, &headers, body.to_owned()).await
    }
}

/// All ways of a team to call.
async fn voices(world: &World, team: &Team, client: &Client) -> Vec<Voice> {
    let (_, token) = world.user(&format!("{}@example.com", team.slug), &[team]).await;
    let id = team.id.to_string();
    let user = vec![("authorization", format!("Bearer {token}")), ("x-team-id", id.clone())];
    let operator = vec![("x-admin-token", ADMIN_TOKEN.to_owned()), ("x-team-id", id)];
    vec![
        Voice { client: client.clone(), headers: vec![], has_keys: false },
        Voice { client: world.client_with(None), headers: user, has_keys: true },
        Voice { client: world.client_with(None), headers: operator, has_keys: true },
    ]
}

#[tokio::test]
async fn what_is_another_team_s_is_what_never_was() {
    let world = World::start().await;
    let (other, stranger) = world.other_team("stranger", LIMITS).await;
    let template = world.template(&world.team, false, "private", "0.6.4").await;
    let body = format!(r#"{{"templateID":"{template}","metadata":{{"secret":"yes"}},"timeout":300}}"#);
    let sandbox = world.create(&body).await.assert_status(201).text_of("sandboxID");
    let key = world.store.api_keys(world.team.id).await.expect("reads")[0].0.id.to_string();
    let ours = Names { sandbox: sandbox.clone(), key, template: template.to_string(), team: world.team.id.to_string() };
    let nobody_s = Names {
        sandbox: "i00000000000000000000".to_owned(),
        key: hearth_types::ApiKeyId::generate().to_string(),
        template: "nothing0000000000000".to_owned(),
        team: hearth_types::TeamId::generate().to_string(),
    };
    let detail = format!("/sandboxes/{sandbox}");
    let before = world.client.get(&detail).await.assert_status(200).json();
    let keys_before = world.store.api_keys(world.team.id).await.expect("reads").len();
    for voice in voices(&world, &other, &stranger).await {
        let is_operator = voice.headers.iter().any(|(name, _)| *name == "x-admin-token");
        for (method, path, body, about) in all_routes() {
            let (path, body) = (path.as_str(), body.as_str());
            if is_operator && (path.starts_with("/admin") || path == "/nodes") {
                continue;
            }
            let answer = voice.send(method, &ours.fill(path), &ours.fill(body)).await;
            let about_nothing = voice.send(method, &nobody_s.fill(path), &nobody_s.fill(body)).await;
            let what = format!("{method} {path} {body}: {answer:?}");
            assert_eq!(answer.status, about_nothing.status, "{what}");
            if !body.contains("first/private") {
                assert_eq!(ours.erase(&answer.text), nobody_s.erase(&about_nothing.text), "{what}");
            }
            let refused = answer.status.as_u16();
            match about {
                // What a sandbox said and used is asked for after its end as well: of one that never was, that is nothing.
                About::Sandbox if path.ends_with("/logs") || path.ends_with("/metrics") => {}
                About::Sandbox => assert!([404, 501].contains(&refused), "{what}"),
                About::Template => assert_eq!(refused, 404, "{what}"),
                About::Key if voice.has_keys => assert_eq!(refused, 404, "{what}"),
                About::All if refused == 200 && !path.contains("api-keys") => {
                    assert_eq!(answer.json(), Value::Array(vec![]), "{what}");
                    assert_ne!(answer.header("x-total-running"), Some("1"), "{what}");
                }
                About::All | About::Key | About::Nothing => {}
            }
            assert!(!answer.text.contains(&ours.key) || answer.status != 200, "{what}");
        }
    }
    assert_eq!(world.client.get(&detail).await.assert_status(200).json(), before, "nothing of it changed");
    assert_eq!(world.store.api_keys(world.team.id).await.expect("reads").len(), keys_before);
    let names = world.store.api_keys(world.team.id).await.expect("reads");
    assert!(names.iter().all(|(key, _)| key.name == "test"), "{names:?}");
    // The same routes do work for those they belong to.
    for voice in voices(&world, &world.team, &world.client).await {
        voice.send("GET", &detail, "").await.assert_status(200);
    }
}

#[tokio::test]
async fn a_team_s_own_names_are_its_own() {
    let world = World::start().await;
    let (other, stranger) = world.other_team("stranger", LIMITS).await;
    let ours = world.template(&world.team, false, "same", "0.6.4").await;
    let theirs = world.template(&other, false, "same", "0.6.4").await;
    for (client, template) in [(&world.client, ours), (&stranger, theirs)] {
        let created = client.post("/v2/sandboxes", r#"{"templateID":"same"}"#).await.assert_status(201);
        assert_eq!(created.text_of("templateID"), template.as_str());
    }
}
