//! Route to a running sandbox.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::{ExecutionId, HostMask, NodeId, SandboxId, Secret, TeamId};

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

/// Visitors admitted to a sandbox's ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visitors {
    /// Everyone.
    All,
    /// Those who send this token.
    WithToken(Secret),
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
    /// Visitors admitted to the sandbox's ports, except the guest daemon's, which checks a token of its own.
    pub visitors: Visitors,
    /// Copy of [`Ingress::host_mask`](crate::Ingress::host_mask).
    pub host_mask: Option<HostMask>,
    /// Copy of [`Ingress::https_ports`](crate::Ingress::https_ports).
    pub https_ports: BTreeSet<u16>,
}
