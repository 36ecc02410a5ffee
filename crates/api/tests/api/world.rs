//! Fixture: a control role with a node, a team and a template, on free ports and in a temporary folder.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use hearth_analytics::{Embedded, Logs};
use hearth_api::{Analytics, Api, Config, Preparations, UserTokens};
use hearth_catalog::Catalog;
use hearth_proxy::serve::{Peer, Scheme};
use hearth_store::{Alias, KeySecret, Limits, NewBuild, NewTeam, NewUser, Store, Team, User};
use hearth_types::{BuildId, Resources, SandboxId, Secret, Tag, TeamId, TemplateId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::{Client, Reply};
use crate::fake_node::FakeNode;

pub(crate) const ADMIN_TOKEN: &str = "admin-token-for-tests";
pub(crate) const USER_SECRET: &str = "a-secret-of-at-least-32-characters";
pub(crate) const SEED: &str = "seed-for-tests";
pub(crate) const DOMAIN: &str = "hearth.test:3002";
/// Header that sets the peer address of a single request.
pub(crate) const PEER_HEADER: &str = "test-peer-address";
pub(crate) const LIMITS: Limits = Limits::STANDARD;

pub(crate) struct World {
    folder: TempDir,
    pub(crate) store: Store,
    pub(crate) catalog: Catalog,
    /// Store to which nodes would append the logs of sandboxes.
    pub(crate) logs: Arc<dyn Logs>,
    /// Store for the metrics of sandboxes and teams.
    pub(crate) analytics: Arc<Embedded>,
    pub(crate) node: FakeNode,
    /// Nodes besides the first.
    others: Vec<FakeNode>,
    pub(crate) team: Team,
    /// Template `base`, which belongs to no team.
    pub(crate) base: TemplateId,
    pub(crate) client: Client,
    config: Config,
    /// States of the templates that the host prepares; none at first.
    pub(crate) preparations: watch::Sender<Preparations>,
    /// Peer address of all requests without [`PEER_HEADER`]. Takes effect at the next start of the server.
    pub(crate) peer: Option<SocketAddr>,
    server: Option<Server>,
}

struct Server {
    api: Api,
    address: SocketAddr,
    listening: JoinHandle<()>,
}

/// Returns the contract's values, with a short reconcile interval.
pub(crate) fn config() -> Config {
    Config {
        reconcile_interval: Duration::from_millis(100),
        admin_token: Some(Secret::new(ADMIN_TOKEN)),
        user_tokens: UserTokens {
            secrets: vec![Secret::new(USER_SECRET)],
            audience: Some("authenticated".to_owned()),
            ..UserTokens::default()
        },
        ..Config::new(Secret::new(SEED), Some(DOMAIN.to_owned()))
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(config()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        Self::with_nodes(config, &["node-1"]).await
    }

    pub(crate) async fn with_nodes(config: Config, nodes: &[&str]) -> Self {
        Self::in_folder(config, nodes, tempfile::tempdir().expect("a temporary folder")).await
    }

    pub(crate) async fn in_folder(config: Config, nodes: &[&str], folder: TempDir) -> Self {
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("info,sqlx=warn").try_init();
        let store = open(folder.path()).await;
        let mut nodes: Vec<FakeNode> = nodes.iter().map(|id| FakeNode::start(id, folder.path())).collect();
        let node = nodes.remove(0);
        let (team, key) = create_team(&store, "first", LIMITS).await;
        let base = register(&store, None, true, None, "base", "0.6.4").await;
        let catalog = Catalog::in_memory();
        let analytics = hearth_analytics::Config::new(folder.path().join("analytics.db"));
        let analytics = Arc::new(Embedded::open(analytics).await.expect("opens"));
        let logs = analytics.clone();
        let client = Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Some(key));
        let mut world = Self {
            folder,
            store,
            catalog,
            logs,
            analytics,
            node,
            others: nodes,
            team,
            base,
            client,
            config,
            preparations: watch::Sender::default(),
            peer: None,
            server: None,
        };
        world.start_server().await;
        world
    }

    /// Returns the cause of the error with which the server fails to start.
    pub(crate) async fn start_error(config: Config) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = open(folder.path()).await;
        let analytics = hearth_analytics::Config::new(folder.path().join("analytics.db"));
        let analytics = Analytics::new(Arc::new(Embedded::open(analytics).await.expect("opens")));
        let (_sender, states) = watch::channel(Preparations::new());
        let started = Api::start(config, store, Catalog::in_memory(), analytics, Vec::new(), states).await;
        let error = started.map(drop).expect_err("the server rejects the configuration");
        std::error::Error::source(&error).expect("a cause").to_string()
    }

    pub(crate) async fn start_server(&mut self) {
        let nodes = [&self.node].into_iter().chain(&self.others).map(FakeNode::as_node).collect();
        let (store, catalog, logs) = (self.store.clone(), self.catalog.clone(), Arc::clone(&self.logs));
        let analytics = Analytics { logs, ..Analytics::new(Arc::clone(&self.analytics)) };
        let states = self.preparations.subscribe();
        let started = Api::start(self.config.clone(), store, catalog, analytics, nodes, states).await;
        let api = started.expect("starts");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let default = self.peer;
        let router = api.router().layer(axum::middleware::map_request(move |mut request: Request| async move {
            let named = request.headers().get(PEER_HEADER).map(|address| address.to_str().expect("an address"));
            let address = named.map(|address| SocketAddr::new(address.parse().expect("an address"), 4711)).or(default);
            if let Some(address) = address {
                request.extensions_mut().insert(Peer::tcp(address, Scheme::Http));
            }
            request
        }));
        let listening = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        self.client = Client::new(address, Some(self.client.key().to_owned()));
        self.server = Some(Server { api, address, listening });
    }

    /// Shuts the server down and closes its listener, as for an update.
    pub(crate) async fn stop_server(&mut self) {
        let Server { api, listening, .. } = self.server.take().expect("a running server");
        assert_eq!(api.shutdown().await, Vec::<&str>::new(), "all tasks stop in time");
        listening.abort();
        let _ = listening.await;
    }

    /// Shuts the server down, but leaves its listener open.
    pub(crate) async fn shut_down(&self) {
        let server = self.server.as_ref().expect("a running server");
        assert_eq!(server.api.shutdown().await, Vec::<&str>::new(), "all tasks stop in time");
    }

    /// Restarts the server with an empty catalog. Only the folder is retained.
    pub(crate) async fn restart(&mut self) {
        self.stop_server().await;
        self.store.close().await;
        self.store = open(self.folder.path()).await;
        self.catalog = Catalog::in_memory();
        self.start_server().await;
    }

    pub(crate) fn client_with(&self, key: Option<String>) -> Client {
        Client::new(self.server.as_ref().expect("a running server").address, key)
    }

    /// Creates another team, and a client with its API key.
    pub(crate) async fn other_team(&self, slug: &str, limits: Limits) -> (Team, Client) {
        let (team, key) = create_team(&self.store, slug, limits).await;
        (team, self.client_with(Some(key)))
    }

    /// Creates a user who is a member of these teams, and a user token.
    pub(crate) async fn user(&self, email: &str, teams: &[&Team]) -> (User, String) {
        let new = NewUser { email: email.to_owned(), subject: None };
        let user = self.store.create_user(new).await.expect("the address is unused");
        for team in teams {
            self.store.join_team(user.id, team.id).await.expect("user and team exist");
        }
        let token = token(&claims(&user.subject));
        (user, token)
    }

    /// Registers a template of a team.
    pub(crate) async fn template(&self, team: &Team, public: bool, alias: &str, envd_version: &str) -> TemplateId {
        register(&self.store, Some(team.id), public, Some(team.slug.clone()), alias, envd_version).await
    }

    /// Registers a template of the platform.
    pub(crate) async fn platform_template(&self, alias: &str) -> TemplateId {
        register(&self.store, None, true, None, alias, "0.6.4").await
    }

    /// Returns the folder with the databases.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Executes an SQL statement that changes exactly one row, for a change without an API.
    pub(crate) async fn sql(&self, statement: &str) {
        use sea_orm::ConnectionTrait as _;
        let config = hearth_store::Config::sqlite(&self.folder.path().join("hearth.db")).expect("UTF-8");
        let database = sea_orm::Database::connect(config.url).await.expect("opens");
        let result = database.execute_unprepared(statement).await.expect(statement);
        assert_eq!(result.rows_affected(), 1, "{statement}");
        database.close().await.expect("closes");
    }

    /// Takes the store's only write lock.
    pub(crate) async fn write_lock(&self) -> WriteLock {
        use sea_orm::ConnectionTrait as _;
        let config = hearth_store::Config::sqlite(&self.folder.path().join("hearth.db")).expect("UTF-8");
        let mut options = sea_orm::ConnectOptions::new(config.url);
        options.max_connections(1);
        let database = sea_orm::Database::connect(options).await.expect("opens");
        database.execute_unprepared("BEGIN IMMEDIATE").await.expect("the lock is free");
        WriteLock { database }
    }

    /// Sends a create with `body` to the second generation of the route.
    pub(crate) async fn create(&self, body: &str) -> Reply {
        self.client.post("/v2/sandboxes", body).await
    }

    /// Creates a running sandbox.
    pub(crate) async fn running(&self) -> SandboxId {
        let reply = self.create(r#"{"templateID":"base"}"#).await.assert_status(201);
        reply.text_of("sandboxID").parse().expect("an id")
    }

    /// Waits until there are no rows, no routes and no sandboxes on nodes.
    pub(crate) async fn assert_no_leftovers(&self) {
        self.eventually("all sandboxes are deleted", async || {
            let rows = self.store.sandboxes().await.expect("reads");
            let routes = self.catalog.list().await.expect("reads");
            let nodes = [&self.node].into_iter().chain(&self.others);
            let on_nodes: usize = nodes.map(|node| node.state().sandboxes.len()).sum();
            if rows.is_empty() && routes.is_empty() && on_nodes == 0 {
                Ok(())
            } else {
                Err(format!("rows {rows:?}, routes {routes:?}, on nodes {on_nodes}"))
            }
        })
        .await;
    }

    /// Polls a condition until it holds, for at most 20 seconds.
    pub(crate) async fn eventually(&self, what: &str, mut check: impl AsyncFnMut() -> Result<(), String>) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            match check().await {
                Ok(()) => return,
                Err(reason) if tokio::time::Instant::now() > deadline => panic!("{what}: {reason}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Waits until the API replies 404 for the sandbox.
    pub(crate) async fn wait_until_deleted(&self, sandbox_id: &SandboxId) {
        self.eventually("the sandbox is deleted", async || {
            let reply = self.client.get(&format!("/sandboxes/{sandbox_id}")).await;
            if reply.status == 404 { Ok(()) } else { Err(format!("{reply:?}")) }
        })
        .await;
    }
}

/// The store's write lock; other writes wait for it.
pub(crate) struct WriteLock {
    database: sea_orm::DatabaseConnection,
}

impl WriteLock {
    pub(crate) async fn release(self) {
        use sea_orm::ConnectionTrait as _;
        self.database.execute_unprepared("ROLLBACK").await.expect("is open");
        self.database.close().await.expect("closes");
    }
}

/// Returns claims of a user token in the format of Supabase.
pub(crate) fn claims(subject: &str) -> serde_json::Value {
    let now = jiff::Timestamp::now().as_second();
    serde_json::json!({
        "aud": "authenticated", "exp": now + 3600, "iat": now, "sub": subject, "email": "ada@example.com",
        "role": "authenticated", "app_metadata": {"provider": "email"}, "session_id": "1",
    })
}

/// Signs claims with the shared secret.
pub(crate) fn token(claims: &serde_json::Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(USER_SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).expect("a token")
}

async fn open(folder: &Path) -> Store {
    let config = hearth_store::Config::sqlite(&folder.join("hearth.db")).expect("UTF-8");
    Store::open(&config).await.expect("opens")
}

async fn create_team(store: &Store, slug: &str, limits: Limits) -> (Team, String) {
    let new = NewTeam { slug: slug.to_owned(), name: slug.to_owned(), limits };
    let team = store.create_team(new).await.expect("created");
    let secret = KeySecret::generate();
    store.create_api_key(team.id, "test", &secret).await.expect("created");
    (team, secret.expose().to_owned())
}

async fn register(
    store: &Store,
    team_id: Option<TeamId>,
    public: bool,
    namespace: Option<String>,
    alias: &str,
    envd_version: &str,
) -> TemplateId {
    let now = jiff::Timestamp::now();
    let new = NewBuild {
        template_id: TemplateId::generate(),
        team_id,
        public,
        alias: Alias { namespace, name: alias.to_owned() },
        tag: Tag::default(),
        build_id: BuildId::generate(),
        resources: Resources { vcpus: 2, memory_mib: 512, disk_mib: 1024 },
        envd_version: envd_version.to_owned(),
        kernel_version: "6.12".to_owned(),
        created_at: now,
        finished_at: now,
    };
    store.register_build(new).await.expect("registered").template_id
}
