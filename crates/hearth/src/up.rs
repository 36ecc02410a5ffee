//! `hearth up`: all roles in this process, from the lock on the data directory to the last sandbox ended, or to the program
//! that goes on in its place.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hearth_analytics::Embedded;
use hearth_api::{Analytics, Api, Node, Rate};
use hearth_catalog::Catalog;
use hearth_cluster_api::NodeClient;
use hearth_edge::Edge;
use hearth_orchestrator::Orchestrator;
use hearth_proxy::Body;
use hearth_proxy::body::boxed;
use hearth_proxy::serve::{self, Listener};
use hearth_sandbox::{DiskRoom, GuestLogs, GuestSamples};
use hearth_stdx::TaskSet;
use hearth_store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tower::ServiceExt;

use crate::banner::{Banner, first_sandbox};
use crate::domain::Domain;
use crate::endpoints::Endpoints;
use crate::handover::{self, Program, Sockets, Successor};
use crate::layout::Layout;
use crate::options::{Settings, TlsListen};
use crate::setup::{Foundation, lock};
use crate::tls::Identity;
use crate::{first_team, front, options, setup};

/// One attempt to give a guest its identity. An answer takes 0.1 s under emulation, longer when many start at once; a second
/// attempt in parallel would only slow it down.
const INIT_ATTEMPT: Duration = Duration::from_secs(3);
/// API connections: every client keeps a few.
const API_CONNECTIONS_MAX: u32 = 4096;
/// Open files that a busy instance needs: each connection of a client takes one here and two on the way to its guest.
const OPEN_FILES_MIN: u64 = 16_384;
/// How long a request under way may take once the daemon is stopping.
const DRAIN_PATIENCE: Duration = Duration::from_millis(1500);

/// Runs until a signal says stop, or restart: then what is returned is to go on in this process.
pub(crate) async fn run(settings: Settings, with_first_sandbox: bool) -> Result<Option<Successor>> {
    let mut stop = Stop::listen()?;
    let layout = Layout::new(&settings.data_dir);
    layout.ensure()?;
    let _lock = lock(&layout)?;
    let outcome = live(&settings, &layout, with_first_sandbox, &mut stop).await;
    // A successor is where this one was, and tells it itself.
    if !matches!(outcome, Ok(Some(_))) {
        Endpoints::withdraw(&layout);
    }
    outcome
}

async fn live(
    settings: &Settings,
    layout: &Layout,
    with_first_sandbox: bool,
    stop: &mut Stop,
) -> Result<Option<Successor>> {
    // Before the first program is started.
    hearth_host::process::close_on_exec().context("marking inherited files")?;
    let program = Program::of_this_process()?;
    let open_files = hearth_host::process::raise_open_files().context("raising the limit of open files")?;
    if open_files < OPEN_FILES_MIN {
        tracing::warn!(open_files, "few files may be open at once: raise the hard limit (`ulimit -Hn`, LimitNOFILE=)");
    }
    let mut sockets = Sockets::inherit()?;
    // Before anything that takes long: a port in use is told at once.
    let listeners = Listeners {
        api: sockets.open(handover::API, settings.api_listen, "--api-listen").await?,
        edge: sockets.open(handover::EDGE, settings.edge_listen, "--edge-listen").await?,
        names: Names::open(settings, layout, &mut sockets).await?,
    };
    // Cancel safe: what is half done is swept by the next start, and its child processes end with the future.
    let foundation = tokio::select! {
        foundation = setup::prepare(settings, layout, false) => foundation?,
        signal = stop.wait() => return interrupted(signal),
    };
    let started = Instance::start(settings, layout, &foundation, listeners).await;
    let instance = match started {
        Ok(instance) => instance,
        Err(error) => {
            foundation.close().await;
            return Err(error);
        }
    };
    let greeted = tokio::select! {
        greeted = instance.greet(settings, &foundation, with_first_sandbox) => greeted.map(|()| true),
        _ = stop.wait() => Ok(false),
    };
    let outcome = match greeted {
        Ok(true) if stop.or_restart(&program).await => Ok(Some(sockets.to(program))),
        other => {
            // Whoever comes now is refused, and not kept waiting for nobody.
            drop(sockets);
            Endpoints::withdraw(layout);
            // What was to be proved does not work: better to say so than to wait for users to find out.
            other.map(|_| None)
        }
    };
    // A second signal does not wait for sandboxes: the next start ends them.
    tokio::select! {
        () = instance.stop(foundation) => outcome,
        signal = stop.wait() => interrupted(signal),
    }
}

fn interrupted<T>(signal: &'static str) -> Result<T> {
    anyhow::bail!("interrupted by {signal}; the next start goes on from here")
}

/// Where clients come in.
struct Listeners {
    api: TcpListener,
    edge: TcpListener,
    names: Option<Names>,
}

/// Where names of the domain come in.
struct Names {
    listener: TcpListener,
    port: u16,
    domain: Domain,
    identity: Identity,
}

impl Names {
    /// `None` when they are not served.
    async fn open(settings: &Settings, layout: &Layout, sockets: &mut Sockets) -> Result<Option<Self>> {
        let TlsListen::At(address) = settings.tls_listen else { return Ok(None) };
        let listener = sockets.open(handover::TLS, address, "--tls-listen").await?;
        let port = listener.local_addr()?.port();
        let domain = settings.domain_at(Some(port)).context("there is one where names are served")?;
        let identity = Identity::open(settings, layout, &domain)?;
        Ok(Some(Self { listener, port, domain, identity }))
    }
}

/// The signals that end a daemon, and the one that restarts it.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    restart: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // The terminal was closed, or the connection to it lost.
            hang_up: signal(SignalKind::hangup())?,
            restart: signal(SignalKind::user_defined2())?,
        })
    }

    /// Cancel safe.
    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }

    /// Waits until the daemon is to end; whether it is to start again. A program that does not run is not worth an end.
    async fn or_restart(&mut self, program: &Program) -> bool {
        loop {
            let Self { terminate, interrupt, hang_up, restart } = self;
            tokio::select! {
                _ = terminate.recv() => return false,
                _ = interrupt.recv() => return false,
                _ = hang_up.recv() => return false,
                _ = restart.recv() => match program.version().await {
                    Ok(version) => {
                        tracing::info!(version, "restarting");
                        return true;
                    }
                    Err(error) => tracing::error!(error = format!("{error:#}"), "going on without a restart"),
                },
            }
        }
    }
}

/// The roles at work.
struct Instance {
    store: Store,
    analytics: Arc<Embedded>,
    orchestrator: Orchestrator,
    api: Api,
    edge: Edge,
    servers: TaskSet,
    endpoints: Endpoints,
}

impl Instance {
    /// # Errors
    /// What was started is stopped again.
    async fn start(
        settings: &Settings,
        layout: &Layout,
        foundation: &Foundation,
        listeners: Listeners,
    ) -> Result<Self> {
        let Listeners { api: api_listener, edge: edge_listener, names } = listeners;
        let tls_port = names.as_ref().map(|names| names.port);
        let store = Store::open_alone(&settings.store(&layout.database())?).await?;
        let rows = async {
            let key = first_team::ensure_team(&store, layout).await?;
            foundation.register(&store).await?;
            Ok((key, api_config(settings, layout)?))
        };
        let (key, config) = match rows.await {
            Ok(rows) => rows,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };
        let analytics = match Embedded::open(hearth_analytics::Config::new(layout.analytics())).await {
            Ok(analytics) => Arc::new(analytics),
            Err(error) => {
                store.close().await;
                return Err(error.into());
            }
        };
        let endpoints = Endpoints {
            api_url: format!("http://{}", reachable(api_listener.local_addr()?)),
            sandbox_url: format!("http://{}", reachable(edge_listener.local_addr()?)),
            api_key: key.expose().to_owned(),
            domain: None,
            ca_file: None,
            ca_bundle: None,
        }
        .with_names(layout, settings, tls_port);
        let node = hearth_orchestrator::Config {
            node_id: settings.node_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("BUILT_FROM_COMMIT").to_owned(),
            sandboxes_max: settings.sandboxes_max,
            typical_disk_mib: foundation.disk_mib(),
            sandbox: hearth_sandbox::Config {
                folder: layout.executions(),
                init_attempt: INIT_ATTEMPT,
                init_budget: settings.ready_timeout,
                logs: GuestLogs {
                    keeper: analytics.clone(),
                    with_output: settings.guest_logs == options::GuestLogs::Output,
                },
                samples: GuestSamples(analytics.clone()),
            },
            cluster_socket: layout.node_socket(),
            proxy_socket: layout.node_proxy_socket(),
        };
        // The folder is made when it is missing: what is asked is how full its disk is.
        let disk = std::fs::create_dir_all(layout.executions())
            .and_then(|()| DiskRoom::open(settings.disk(layout.executions())))
            .with_context(|| format!("asking for the free space of {}", layout.executions().display()));
        let disk = match disk {
            Ok(disk) => disk,
            Err(error) => {
                analytics.close().await;
                store.close().await;
                return Err(error);
            }
        };
        let orchestrator = match Orchestrator::start(node, foundation.parts(disk), foundation.cache()).await {
            Ok(orchestrator) => orchestrator,
            Err(error) => {
                analytics.close().await;
                store.close().await;
                return Err(error.into());
            }
        };
        let catalog = Catalog::in_memory();
        let nodes = vec![Node {
            id: settings.node_id.clone(),
            client: NodeClient::new(orchestrator.cluster_address()),
            proxy: orchestrator.proxy_address(),
        }];
        let identity = hearth_api::Identity { plain_url: endpoints.api_url.clone(), ..config.identity };
        let config = hearth_api::Config { domain: endpoints.domain.clone(), identity, ..config };
        let kept = Analytics::new(analytics.clone());
        let api = match Api::start(config, store.clone(), catalog.clone(), kept, nodes).await {
            Ok(api) => api,
            Err(error) => {
                orchestrator.shutdown().await;
                analytics.close().await;
                store.close().await;
                return Err(error.into());
            }
        };
        let edge = Edge::new(hearth_edge::Config::default(), catalog);
        let servers = TaskSet::new();
        let bounds = serve::Config { connections_max: API_CONNECTIONS_MAX, drain_patience: DRAIN_PATIENCE };
        servers.spawn("API", serve::serve(api_listener, api.router(), bounds, servers.token()));
        let serving = edge.clone();
        let token = servers.token();
        servers.spawn("edge", async move { serving.serve(edge_listener, token).await });
        if let Some(Names { listener, domain, identity, .. }) = names {
            let listener = Listener::Tls(listener, identity.acceptor());
            let handler = ServiceExt::<http::Request<Body>>::map_response(api.router(), |response| response.map(boxed));
            let handler = front::Handler::new(handler);
            let served = front::serve(listener, domain, handler, edge.clone(), servers.token());
            servers.spawn("names", served);
            servers.spawn("certificate", identity.keep_fresh(servers.token()));
        }
        let (tidied, token) = (Arc::clone(&analytics), servers.token());
        servers.spawn("analytics", async move { tidied.keep_tidy(token).await });
        endpoints.publish(layout)?;
        Ok(Self { store, analytics, orchestrator, api, edge, servers, endpoints })
    }

    /// Proves that all works, and says how to use it.
    async fn greet(&self, settings: &Settings, foundation: &Foundation, with_first_sandbox: bool) -> Result<()> {
        let first_sandbox = match with_first_sandbox {
            true => Some(first_sandbox(&self.endpoints).await?),
            false => None,
        };
        let verdict = foundation.verdict();
        let banner = Banner {
            endpoints: &self.endpoints,
            exports: self.endpoints.exports(self.endpoints.best_way().await)?,
            first_sandbox,
            accelerator: format!("{} ({})", verdict.accelerator.name(), verdict.reason),
            network: foundation.network(),
            sandboxes_max: self.orchestrator.capacity(),
            limited_by_disk: usize::try_from(self.orchestrator.capacity()).is_ok_and(|n| n < settings.sandboxes_max),
            data_dir: settings.data_dir.display().to_string(),
        };
        println!("{banner}");
        Ok(())
    }

    /// Ends everything, in reverse order: first the sandboxes, so that the control role still hears of it.
    async fn stop(self, foundation: Foundation) {
        tracing::info!("stopping");
        self.orchestrator.end_sandboxes().await;
        self.servers.shutdown(2 * DRAIN_PATIENCE).await;
        self.edge.shutdown().await;
        self.api.shutdown().await;
        self.orchestrator.shutdown().await;
        // Last of all to be told anything: the node's last words are in it.
        self.analytics.close().await;
        self.store.close().await;
        foundation.close().await;
    }
}

/// How the control role behaves; what addresses it tells is known when there are listeners.
fn api_config(settings: &Settings, layout: &Layout) -> Result<hearth_api::Config> {
    let a_minute = |requests| Rate { requests, per: Duration::from_secs(60) };
    let config = hearth_api::Config::new(first_team::token_seed(layout)?, None);
    let signing_key = first_team::login_key(layout)?;
    let identity = hearth_api::Identity { signing_key, provider: settings.provider()?, ..config.identity };
    Ok(hearth_api::Config {
        admin_token: Some(first_team::admin_token(layout)?),
        user_tokens: settings.user_tokens()?,
        team_rate: settings.team_requests_per_minute.map(a_minute),
        address_rate: settings.address_requests_per_minute.map(a_minute),
        identity,
        ..config
    })
}

/// A listener on all addresses is reached on loopback from here.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
