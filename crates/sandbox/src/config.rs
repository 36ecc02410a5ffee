//! What a sandbox is assembled with.

use std::path::PathBuf;
use std::time::Duration;

use crate::{GuestLogs, GuestSamples};

/// How sandboxes are run on this node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Every execution has a folder in here.
    pub folder: PathBuf,
    /// One attempt to give the guest its identity.
    pub init_attempt: Duration,
    /// All attempts together; a guest that has not answered by then never becomes ready.
    pub init_budget: Duration,
    /// Where guests' logs go.
    pub logs: GuestLogs,
    /// Where samples of what guests use go.
    pub samples: GuestSamples,
}

/// The rooms a sandbox takes its parts from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Network slots.
    pub network: hearth_network::Pool,
    /// The VMM.
    pub driver: hearth_vmm::Driver,
    /// Control groups.
    pub groups: hearth_host::cgroup::Groups,
    /// Disk space.
    pub disk: crate::DiskRoom,
    /// Starts that wait for their turn.
    pub starts: crate::StartQueue,
    /// What could not be removed yet.
    pub remains: crate::Remains,
}
