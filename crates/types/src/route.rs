//! Route to a running sandbox.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::{ExecutionId, Ingress, NodeId, SandboxId, Secret, TeamId};

/// Address of one of a node's two services (cluster API, node-side proxy).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NodeAddress {
    /// A Unix socket on this machine, used by the all-in-one role. The mode of its folder controls access.
    Unix(PathBuf),
    /// An address on the cluster's network.
    Tcp(SocketAddr),
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A running sandbox and the node-side proxy that reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub sandbox_id: SandboxId,
    /// The run that this route leads to; a newer one replaces it.
    pub execution_id: ExecutionId,
    /// The sandbox's owner.
    pub team_id: TeamId,
    /// The node that runs the sandbox.
    pub node_id: NodeId,
    pub node_proxy: NodeAddress,
    /// Rules for visitors of the sandbox's ports.
    pub ingress: Ingress,
    /// Token required from visitors when access is not public; without a token all visitors are then rejected.
    pub traffic_token: Option<Secret>,
}
