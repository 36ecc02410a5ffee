//! `hearth up`: runs all roles in this process.
//!
//! It begins with the lock on the data directory, and ends after the last sandbox was killed. After SIGUSR2 the process
//! then executes the program on disk again ([`handover`]).

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hearth_analytics::Embedded;
use hearth_api::{Analytics, Api, Node, Rate};
use hearth_catalog::Catalog;
use hearth_cluster_api::NodeClient;
use hearth_edge::Edge;
use hearth_orchestrator::Orchestrator;
use hearth_proxy::body::boxed;
use hearth_proxy::serve::{self, Listener};
use hearth_proxy::{Body, DescriptorBudget};
use hearth_sandbox::{DiskSpace, GuestLogs, GuestSamples};
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
use crate::options::Settings;
use crate::setup::{Foundation, Setup, acquire_lock};
use crate::templates::{Background, Job, Plan, States};
use crate::tls::ServerCertificate;
use crate::{domain_server, first_team, options, setup};

/// Timeout of one attempt to initialize a guest.
///
/// A reply takes 0.1 s under emulation, longer when many guests start at the same time. A second attempt in parallel
/// would only slow down the first.
const INIT_ATTEMPT: Duration = Duration::from_secs(3);
/// Time after which an idle connection to the API is closed, a usual value for HTTP servers.
///
/// Clients reuse connections for seconds only, and open a new one when the server has closed the old one.
const API_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Limit of open files below which a warning is logged. A client connection takes one here and two towards its guest.
const OPEN_FILES_MIN: u64 = 16_384;
/// Time that requests in progress may take once the daemon is stopping.
const DRAIN_PATIENCE: Duration = Duration::from_millis(1500);

/// Time that the preparation of a template may take to stop its programs and its VM, which it kills.
const PREPARATION_PATIENCE: Duration = Duration::from_secs(2);

/// Runs until a signal requests stop or restart. After a restart request, returns the program to execute in this
/// process.
pub(crate) async fn run(
    settings: Settings,
    bundle: Option<&Path>,
    with_first_sandbox: bool,
) -> Result<Option<Successor>> {
    let mut stop = Signals::listen()?;
    let layout = Layout::new(&settings.data_dir);
    layout.ensure()?;
    let _lock = acquire_lock(&layout)?;
    let setup = Setup { templates: settings.templates.clone(), force: false, bundle };
    let outcome = run_roles(&settings, &layout, &setup, with_first_sandbox, &mut stop).await;
    // A successor has the same addresses, and publishes them itself.
    if !matches!(outcome, Ok(Some(_))) {
        Endpoints::unpublish(&layout);
    }
    outcome
}

async fn run_roles(
    settings: &Settings,
    layout: &Layout,
    setup: &Setup<'_>,
    with_first_sandbox: bool,
    stop: &mut Signals,
) -> Result<Option<Successor>> {
    // Before the first child process is started.
    hearth_host::process::close_on_exec().context("marking inherited files")?;
    let program = Program::of_this_process()?;
    // Before limits are derived from it.
    let open_files = hearth_host::process::raise_open_files().context("raising the limit of open files")?;
    if open_files < OPEN_FILES_MIN {
        tracing::warn!(open_files, "open files limit is low: raise the hard limit (`ulimit -Hn`, LimitNOFILE=)");
    }
    let mut sockets = Sockets::inherit()?;
    // Before anything that takes long, so that a port in use is reported immediately.
    let listeners = Listeners {
        api: sockets.open(handover::API, &[settings.api_listen], "--api-listen").await?,
        edge: sockets.open(handover::EDGE, &[settings.edge_listen], "--edge-listen").await?,
        names: DomainListener::open(settings, layout, &mut sockets).await?,
    };
    // Cancel safe: the next start removes partial results, and dropping the future kills its child processes.
    let foundation = tokio::select! {
        foundation = setup::prepare(settings, layout, setup) => foundation?,
        signal = stop.wait() => return interrupted(signal),
    };
    let descriptors = DescriptorBudget::split(open_files, settings.sandboxes_max);
    let started = Instance::start(settings, layout, &foundation, listeners, descriptors).await;
    let mut instance = match started {
        Ok(instance) => instance,
        Err(error) => {
            foundation.close().await;
            return Err(error);
        }
    };
    let printed = tokio::select! {
        printed = instance.print_banner(settings, &foundation, with_first_sandbox) => printed.map(|()| true),
        _ = stop.wait() => Ok(false),
    };
    // After the banner, so that no bar is drawn into it.
    if let Ok(true) = printed {
        instance.start_background(&foundation);
    }
    let outcome = match printed {
        Ok(true) if stop.wait_or_restart(&program).await => Ok(Some(sockets.into_successor(program))),
        other => {
            // Close the listening sockets now, so that new clients are refused instead of waiting in the queue.
            drop(sockets);
            Endpoints::unpublish(layout);
            // If the first sandbox failed, its error stops the daemon: the operator learns of it before users do.
            other.map(|_| None)
        }
    };
    // A second signal does not wait for sandboxes: the next start kills them.
    tokio::select! {
        () = instance.stop(foundation) => outcome,
        signal = stop.wait() => interrupted(signal),
    }
}

fn interrupted<T>(signal: &'static str) -> Result<T> {
    anyhow::bail!("interrupted by {signal}; the next start continues from here")
}

/// Listening sockets of the daemon.
struct Listeners {
    api: TcpListener,
    edge: TcpListener,
    names: Option<DomainListener>,
}

/// Listening socket for the names of the domain, with their certificate.
struct DomainListener {
    listener: TcpListener,
    port: u16,
    domain: Domain,
    certificate: ServerCertificate,
}

impl DomainListener {
    /// Opens the socket and the certificate; `None` if `--tls-listen` is off.
    async fn open(settings: &Settings, layout: &Layout, sockets: &mut Sockets) -> Result<Option<Self>> {
        let addresses = settings.tls_listen.addresses();
        if addresses.is_empty() {
            return Ok(None);
        }
        let listener = sockets.open(handover::TLS, &addresses, "--tls-listen").await?;
        let port = listener.local_addr()?.port();
        let domain = settings.domain_at(Some(port)).context("a listener has a domain")?;
        let certificate = ServerCertificate::open(settings, layout, &domain)?;
        Ok(Some(Self { listener, port, domain, certificate }))
    }
}

/// Signals that stop the daemon (SIGTERM, SIGINT, SIGHUP), and the one that restarts it (SIGUSR2).
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    restart: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // The terminal was closed, or the connection to it was lost.
            hang_up: signal(SignalKind::hangup())?,
            restart: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for a signal that stops the daemon, and returns its name. Cancel safe.
    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }

    /// Waits until the daemon must stop; returns true for a restart.
    ///
    /// A restart request is ignored, with an error in the log, while the program on disk does not run.
    async fn wait_or_restart(&mut self, program: &Program) -> bool {
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
                    Err(error) => tracing::error!(error = format!("{error:#}"), "restart refused"),
                },
            }
        }
    }
}

/// Running roles of one process.
struct Instance {
    store: Store,
    analytics: Arc<Embedded>,
    orchestrator: Orchestrator,
    api: Api,
    edge: Edge,
    servers: TaskSet,
    endpoints: Endpoints,
    states: States,
    /// Templates to make, until that has begun.
    jobs: Vec<Job>,
    /// Tasks that make templates.
    preparations: TaskSet,
}

impl Instance {
    /// Starts all roles.
    ///
    /// # Errors
    /// A role does not start. The roles that were started before it are stopped again.
    async fn start(
        settings: &Settings,
        layout: &Layout,
        foundation: &Foundation,
        listeners: Listeners,
        descriptors: DescriptorBudget,
    ) -> Result<Self> {
        let Listeners { api: api_listener, edge: edge_listener, names } = listeners;
        let tls_port = names.as_ref().map(|names| names.port);
        let store = Store::open_exclusive(&settings.store(&layout.database())?).await?;
        let rows = async {
            let key = first_team::ensure_team(&store, layout).await?;
            foundation.register(&store).await?;
            let plan = foundation.plan(&settings.templates, &store).await?;
            Ok((key, plan, api_config(settings, layout)?))
        };
        let (key, plan, config) = match rows.await {
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
            memory_mib: settings.memory_mib,
            typical: foundation.typical_resources(),
            sandbox: hearth_sandbox::Config {
                folder: layout.executions(),
                init_attempt: INIT_ATTEMPT,
                init_budget: settings.ready_timeout,
                logs: GuestLogs {
                    store: analytics.clone(),
                    with_output: settings.guest_logs == options::GuestLogs::Output,
                },
                samples: GuestSamples(analytics.clone()),
            },
            traffic: proxy_config(descriptors),
            cluster_socket: layout.node_socket(),
            proxy_socket: layout.node_proxy_socket(),
        };
        // The folder must exist to query the free space of its disk.
        let disk = std::fs::create_dir_all(layout.executions())
            .and_then(|()| DiskSpace::open(settings.disk(layout.executions())))
            .with_context(|| format!("querying the free space of {}", layout.executions().display()));
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
        let Plan { jobs, states } = plan;
        let states = States::publish(layout.template_states(), states);
        let api = match Api::start(config, store.clone(), catalog.clone(), kept, nodes, states.subscribe()).await {
            Ok(api) => api,
            Err(error) => {
                orchestrator.shutdown().await;
                analytics.close().await;
                store.close().await;
                return Err(error.into());
            }
        };
        let edge = Edge::new(edge_config(descriptors), catalog);
        let servers = TaskSet::new();
        let bounds = serve::Config {
            connections_max: descriptors.api_connections,
            idle_timeout: API_IDLE_TIMEOUT,
            drain_timeout: DRAIN_PATIENCE,
        };
        servers.spawn("API", serve::serve(api_listener, api.router(), bounds, servers.token()));
        let serving = edge.clone();
        let token = servers.token();
        servers.spawn("edge", async move { serving.serve(edge_listener, token).await });
        if let Some(DomainListener { listener, domain, certificate, .. }) = names {
            let listener = Listener::Tls(listener, certificate.acceptor());
            let handler = ServiceExt::<http::Request<Body>>::map_response(api.router(), |response| response.map(boxed));
            let handler = domain_server::Handler::new(handler);
            let served = domain_server::serve(listener, domain, handler, edge.clone(), servers.token());
            servers.spawn("names", served);
            servers.spawn("certificate", certificate.renew_until(servers.token()));
        }
        let (tidied, token) = (Arc::clone(&analytics), servers.token());
        servers.spawn("analytics", async move { tidied.tidy_until(token).await });
        endpoints.publish(layout)?;
        let preparations = TaskSet::new();
        Ok(Self { store, analytics, orchestrator, api, edge, servers, endpoints, states, jobs, preparations })
    }

    /// Starts to make the templates that are missing or not current.
    fn start_background(&mut self, foundation: &Foundation) {
        let background = Background {
            maker: Arc::new(foundation.maker()),
            store: self.store.clone(),
            artifacts: foundation.cache(),
            states: self.states.clone(),
            tasks: self.preparations.clone(),
        };
        let (jobs, token) = (std::mem::take(&mut self.jobs), self.preparations.token());
        self.preparations.spawn("templates", background.run(jobs, token));
    }

    /// Creates the first sandbox if requested, then prints the banner.
    async fn print_banner(&self, settings: &Settings, foundation: &Foundation, with_first_sandbox: bool) -> Result<()> {
        let first_sandbox = match with_first_sandbox {
            true => Some(first_sandbox(&self.endpoints).await?),
            false => None,
        };
        // Otherwise the output goes to a supervisor, where everyone who may read logs would see the API key.
        let exports = match std::io::stdout().is_terminal() {
            true => Some(self.endpoints.exports(self.endpoints.preferred_addressing().await)?),
            false => None,
        };
        let verdict = foundation.verdict();
        let banner = Banner {
            endpoints: &self.endpoints,
            exports,
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

    /// Stops everything in reverse order, sandboxes first, so that the API still receives their last events.
    async fn stop(self, foundation: Foundation) {
        tracing::info!("stopping");
        // A template's VM is killed, and leaves the processors to the sandboxes, which are stopped meanwhile.
        tokio::join!(self.preparations.shutdown(PREPARATION_PATIENCE), self.orchestrator.stop_sandboxes());
        self.states.unpublish();
        self.servers.shutdown(2 * DRAIN_PATIENCE).await;
        self.edge.shutdown().await;
        self.api.shutdown().await;
        self.orchestrator.shutdown().await;
        // After the node, whose last events are written to it.
        self.analytics.close().await;
        self.store.close().await;
        foundation.close().await;
    }
}

/// Configuration of the API, without the addresses that are known only once the listeners are open.
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

fn edge_config(descriptors: DescriptorBudget) -> hearth_edge::Config {
    hearth_edge::Config {
        connections_max: descriptors.client_connections,
        requests_max: descriptors.requests,
        team_requests_max: descriptors.team_requests,
        ..hearth_edge::Config::default()
    }
}

fn proxy_config(descriptors: DescriptorBudget) -> hearth_proxy::Config {
    hearth_proxy::Config {
        requests_per_group_max: descriptors.sandbox_requests,
        requests_max: descriptors.requests,
        idle_max: descriptors.idle_connections,
        ..hearth_proxy::Config::for_guests()
    }
}

/// Replaces an unspecified listen address (`0.0.0.0`, `[::]`) by loopback, which local clients can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
