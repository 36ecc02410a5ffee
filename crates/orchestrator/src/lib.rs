//! The node role: runs sandboxes for the control plane and carries traffic to them.
//!
//! ```text
//! api  ── gRPC ──▶ cluster ─┐
//!                           ├─▶ registry ── Handle ──▶ sandbox (one task each)
//! edge ── HTTP ──▶ reverse_proxy ──▶ engine ──▶ guest ports
//! ```
//!
//! [`Orchestrator::start`] kills the VMs of an earlier daemon of this node (adoption is planned), then listens on two
//! sockets. [`Orchestrator::shutdown`] rejects new sandboxes, stops the running ones, and closes the sockets. The node
//! knows nothing of teams' limits, templates or routes, and holds no database credential.

#![forbid(unsafe_code)]

mod cluster;
mod registry;
mod reverse_proxy;
mod status;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_artifact::ArtifactStore;
use hearth_proxy::{Engine, serve};
use hearth_sandbox::NodeResources;
use hearth_stdx::TaskSet;
use hearth_types::{ExecutionId, NodeAddress, NodeId, Resources};
use tokio::net::UnixListener;
use tower::service_fn;

use cluster::Cluster;
use registry::{Capacity, Registry};
use reverse_proxy::ReverseProxy;
use status::LoadMonitor;

/// Maximum number of connections of control planes: each has one, and a new one after a loss.
const CLUSTER_CONNECTIONS_MAX: u32 = 64;
/// Maximum number of connections of edges: one for each request under way and each stream.
const PROXY_CONNECTIONS_MAX: u32 = 16 * 1024;
/// Limit for all sandboxes together to stop at shutdown; the next start kills the remaining ones.
const SANDBOXES_LIMIT: Duration = Duration::from_secs(7);
/// Limit for connections to close after all sandboxes have stopped.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// Limit for the last retries to remove leftovers of sandboxes; usually there are none.
const LEFTOVERS_LIMIT: Duration = Duration::from_millis(1500);

/// Configuration of a node.
#[derive(Debug, Clone)]
pub struct Config {
    pub node_id: NodeId,
    /// Version of this program.
    pub version: String,
    /// Source revision of this program.
    pub commit: String,
    /// Maximum number of sandboxes at a time.
    pub sandboxes_max: usize,
    /// Memory in MiB that is shared out to sandboxes. Each gets a part of the size of its guest's memory.
    pub memory_mib: u64,
    /// Virtual hardware of most sandboxes. The capacity reported to control planes is computed with it.
    pub typical: Resources,
    pub sandbox: hearth_sandbox::Config,
    /// Limits of requests to guests.
    pub traffic: hearth_proxy::Config,
    /// Path of the cluster API's socket. Only the user of this process can connect.
    pub cluster_socket: PathBuf,
    /// Path of the node-side proxy's socket. Only the user of this process can connect.
    pub proxy_socket: PathBuf,
}

/// Failure to start a node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Sandboxes of an earlier daemon cannot be listed or removed.
    #[error("cleaning up after an earlier daemon")]
    Reclaim(#[source] hearth_sandbox::Error),
    /// The hardware or load of this machine cannot be read.
    #[error("reading the properties of this machine")]
    Machine(#[source] hearth_host::machine::Error),
    /// A socket cannot be created.
    #[error("listening on `{}`", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// A running node.
#[derive(Debug)]
pub struct Orchestrator {
    registry: Registry,
    engine: Engine<ExecutionId>,
    servers: TaskSet,
    leftovers: TaskSet,
    sockets: [PathBuf; 2],
}

impl Orchestrator {
    /// Cleans up after an earlier daemon and starts to serve.
    ///
    /// # Errors
    /// Nothing runs.
    pub async fn start(config: Config, node: NodeResources, artifacts: ArtifactStore) -> Result<Self, Error> {
        let reclaimed = hearth_sandbox::reclaim(&config.sandbox).await.map_err(Error::Reclaim)?;
        node.groups.sweep().await;
        if reclaimed > 0 {
            tracing::warn!(reclaimed, "removed sandboxes of an earlier daemon");
        }
        let monitor = LoadMonitor::new(config.node_id, config.version, config.commit, &config.sandbox.folder)?;
        let monitor = Arc::new(monitor);
        let cluster_listener = listen(&config.cluster_socket)?;
        let proxy_listener = listen(&config.proxy_socket)?;
        let engine = Engine::new(config.traffic);
        let Config { sandboxes_max, memory_mib, typical, .. } = config;
        let capacity = Capacity { sandboxes_max, memory_mib, typical };
        let leftovers = TaskSet::new();
        leftovers.spawn("leftovers of sandboxes", node.leftovers.clone().run(leftovers.token()));
        let servers = TaskSet::new();
        servers.spawn("disk space", node.disk.clone().run(servers.token()));
        let registry = Registry::new(config.sandbox, node, artifacts, capacity, engine.clone());
        servers.spawn("load monitor", Arc::clone(&monitor).run(servers.token()));
        let routes = Cluster::routes(registry.clone(), monitor, servers.token());
        let cluster = server_config(CLUSTER_CONNECTIONS_MAX);
        servers.spawn("cluster API", serve::serve(cluster_listener, routes, cluster, servers.token()));
        let proxy = ReverseProxy::new(registry.clone(), engine.clone());
        let handler = service_fn(move |request| {
            let proxy = proxy.clone();
            // Boxed because the future is large and is moved several times.
            Box::pin(async move { Ok::<_, Infallible>(proxy.handle(request).await) })
        });
        let proxy_config = server_config(PROXY_CONNECTIONS_MAX);
        servers.spawn("node-side proxy", serve::serve(proxy_listener, handler, proxy_config, servers.token()));
        Ok(Self { registry, engine, servers, leftovers, sockets: [config.cluster_socket, config.proxy_socket] })
    }

    /// Returns the address of the cluster API.
    #[must_use]
    pub fn cluster_address(&self) -> NodeAddress {
        NodeAddress::Unix(self.sockets[0].clone())
    }

    /// Returns the address of the node-side proxy.
    #[must_use]
    pub fn proxy_address(&self) -> NodeAddress {
        NodeAddress::Unix(self.sockets[1].clone())
    }

    /// Returns the number of sandboxes that can run at a time, by the configured limit and the disk.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.registry.sandboxes().max
    }

    /// Stops all sandboxes and reports each to the control plane. New sandboxes are rejected.
    pub async fn stop_sandboxes(&self) {
        self.registry.shutdown(SANDBOXES_LIMIT).await;
    }

    /// Stops all sandboxes and listeners. Returns when that is done or after a time limit, which is logged.
    pub async fn shutdown(self) {
        self.stop_sandboxes().await;
        self.engine.shutdown().await;
        self.servers.shutdown(2 * DRAIN_LIMIT).await;
        self.leftovers.shutdown(LEFTOVERS_LIMIT).await;
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
    }
}

fn server_config(connections_max: u32) -> serve::Config {
    serve::Config { connections_max, idle_timeout: serve::IDLE_TIMEOUT, drain_timeout: DRAIN_LIMIT }
}

/// Listens on a socket that only its owner can connect to, and replaces the socket of a killed daemon.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let error = |source| Error::Listen { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}
