//! Where a sandbox runs now.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::{ExecutionId, Ingress, NodeId, SandboxId, Secret, TeamId};

/// Where a node listens for one of its two services (cluster API, node-side proxy).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NodeAddress {
    /// A Unix socket on this machine: the all-in-one form. Its folder's mode is its access control.
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
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The run this route leads to; a newer one replaces it.
    pub execution_id: ExecutionId,
    /// Whose sandbox it is.
    pub team_id: TeamId,
    /// The node it runs on.
    pub node_id: NodeId,
    /// The node-side proxy.
    pub node_proxy: NodeAddress,
    /// Who may visit its ports, and how.
    pub ingress: Ingress,
    /// What visitors have to show where not anybody may; without one nobody gets in.
    pub traffic_token: Option<Secret>,
}
