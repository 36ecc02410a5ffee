//! Configuration of sandboxes, and the node's resources that they use.

use std::path::PathBuf;
use std::time::Duration;

use crate::{GuestLogs, GuestSamples};

/// Configuration of all sandboxes on this node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder that contains one folder per execution.
    pub folder: PathBuf,
    /// Limit of one attempt to initialize the guest daemon.
    pub init_attempt: Duration,
    /// Limit of all attempts together; a guest without a reply by then counts as failed.
    pub init_budget: Duration,
    pub logs: GuestLogs,
    pub samples: GuestSamples,
}

/// Resources of the node that sandboxes acquire. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeResources {
    pub network: hearth_network::Pool,
    pub driver: hearth_vmm::Driver,
    pub groups: hearth_host::cgroup::Groups,
    pub disk: crate::DiskSpace,
    /// Limits concurrent starts.
    pub starts: crate::StartQueue,
    /// Folders and control groups whose removal failed.
    pub leftovers: crate::Leftovers,
}
