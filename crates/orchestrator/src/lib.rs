//! The node role: runs sandboxes for the control plane and carries traffic to them.
//!
//! ```text
//! api  ── gRPC ──▶ cluster ─┐
//!                           ├─▶ registry ── Handle ──▶ sandbox (one task each)
//! edge ── HTTP ──▶ reverse_proxy ──▶ engine ──▶ guest ports
//! ```
//!
//! [`Orchestrator::start`] first ends what an earlier daemon of this node left (until adoption is built), then listens on two
//! sockets. [`Orchestrator::shutdown`] refuses new sandboxes, ends those there are, and stops listening. The node knows
//! nothing of teams' limits, templates or routes: it holds no database credential.

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

use hearth_artifact::Cache;
use hearth_proxy::{Engine, serve};
use hearth_sandbox::Parts;
use hearth_stdx::TaskSet;
use hearth_types::{ExecutionId, NodeAddress, NodeId};
use tokio::net::UnixListener;
use tower::service_fn;

use cluster::Cluster;
use registry::{Capacity, Registry};
use reverse_proxy::ReverseProxy;
use status::Surveyor;

/// Connections of control planes: each has one, and a new one after a loss.
const CLUSTER_CONNECTIONS_MAX: u32 = 64;
/// Connections of edges: one for each request under way and each stream.
const PROXY_CONNECTIONS_MAX: u32 = 16 * 1024;
/// How long all sandboxes together may take to end at shutdown; what is left is found by the next start.
const SANDBOXES_PATIENCE: Duration = Duration::from_secs(7);
/// How long connections may take to end once there is no sandbox.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// How long what could not be removed may take once more; usually there is nothing.
const REMAINS_PATIENCE: Duration = Duration::from_millis(1500);

/// How a node works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name.
    pub node_id: NodeId,
    /// The version of this program.
    pub version: String,
    /// What this program was built from.
    pub commit: String,
    /// Sandboxes it runs at most.
    pub sandboxes_max: usize,
    /// The disk of most sandboxes: how many of them have room is told to control planes.
    pub typical_disk_mib: u32,
    /// How sandboxes are run.
    pub sandbox: hearth_sandbox::Config,
    /// The socket of the cluster API. Only its owner can connect.
    pub cluster_socket: PathBuf,
    /// The socket of the node-side proxy. Only its owner can connect.
    pub proxy_socket: PathBuf,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What an earlier daemon left cannot be looked through.
    #[error("ending what an earlier daemon left")]
    Reclaim(#[source] hearth_sandbox::Error),
    /// What this machine is cannot be found out.
    #[error("looking at this machine")]
    Machine(#[source] hearth_host::machine::Error),
    /// A socket cannot be made.
    #[error("listening on `{}`", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A node at work.
#[derive(Debug)]
pub struct Orchestrator {
    registry: Registry,
    engine: Engine<ExecutionId>,
    servers: TaskSet,
    remains: TaskSet,
    sockets: [PathBuf; 2],
}

impl Orchestrator {
    /// Ends what an earlier daemon left and begins to serve.
    ///
    /// # Errors
    /// Nothing runs then.
    pub async fn start(config: Config, parts: Parts, cache: Cache) -> Result<Self, Error> {
        let reclaimed = hearth_sandbox::reclaim(&config.sandbox).await.map_err(Error::Reclaim)?;
        parts.groups.sweep().await;
        if reclaimed > 0 {
            tracing::warn!(reclaimed, "ended sandboxes that an earlier daemon left");
        }
        let surveyor = Surveyor::new(config.node_id, config.version, config.commit, &config.sandbox.folder)?;
        let surveyor = Arc::new(surveyor);
        let cluster_listener = listen(&config.cluster_socket)?;
        let proxy_listener = listen(&config.proxy_socket)?;
        let engine = Engine::new(hearth_proxy::Config::for_guests());
        let capacity = Capacity { sandboxes_max: config.sandboxes_max, typical_disk_mib: config.typical_disk_mib };
        let remains = TaskSet::new();
        remains.spawn("remains of sandboxes", parts.remains.clone().run(remains.token()));
        let servers = TaskSet::new();
        servers.spawn("disk space", parts.disk.clone().run(servers.token()));
        let registry = Registry::new(config.sandbox, parts, cache, capacity, engine.clone());
        servers.spawn("surveyor", Arc::clone(&surveyor).run(servers.token()));
        let routes = Cluster::routes(registry.clone(), surveyor, servers.token());
        let cluster = serve::Config { connections_max: CLUSTER_CONNECTIONS_MAX, drain_patience: DRAIN_PATIENCE };
        servers.spawn("cluster API", serve::serve(cluster_listener, routes, cluster, servers.token()));
        let proxy = ReverseProxy::new(registry.clone(), engine.clone());
        let handler = service_fn(move |request| {
            let proxy = proxy.clone();
            // Whatever holds it moves it several times, and it is large.
            Box::pin(async move { Ok::<_, Infallible>(proxy.answer(request).await) })
        });
        let config_of_proxy = serve::Config { connections_max: PROXY_CONNECTIONS_MAX, drain_patience: DRAIN_PATIENCE };
        servers.spawn("node-side proxy", serve::serve(proxy_listener, handler, config_of_proxy, servers.token()));
        Ok(Self { registry, engine, servers, remains, sockets: [config.cluster_socket, config.proxy_socket] })
    }

    /// Where its cluster API is.
    #[must_use]
    pub fn cluster_address(&self) -> NodeAddress {
        NodeAddress::Unix(self.sockets[0].clone())
    }

    /// Where its proxy is.
    #[must_use]
    pub fn proxy_address(&self) -> NodeAddress {
        NodeAddress::Unix(self.sockets[1].clone())
    }

    /// Sandboxes it can run at once, by its limit and by the disk.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.registry.sandboxes().max
    }

    /// Ends all sandboxes. The control plane is told of each; nothing new is accepted.
    pub async fn end_sandboxes(&self) {
        self.registry.shutdown(SANDBOXES_PATIENCE).await;
    }

    /// Ends all sandboxes and stops listening; returns when that is done or out of patience, which is logged.
    pub async fn shutdown(self) {
        self.end_sandboxes().await;
        self.engine.shutdown().await;
        self.servers.shutdown(2 * DRAIN_PATIENCE).await;
        self.remains.shutdown(REMAINS_PATIENCE).await;
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
    }
}

/// Listens on a socket that only its owner can connect to, in the place of one that a killed daemon left.
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
