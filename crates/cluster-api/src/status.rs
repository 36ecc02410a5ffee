//! Status that a node reports at the start of a watch, and again every few seconds.

use hearth_types::{Disk, HugePages, Load, Machine, NodeId};

use crate::convert::{ConvertError, parse_id};
use crate::generated::hearth::cluster::v1 as proto;

/// Status of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    pub node_id: NodeId,
    pub daemon: Daemon,
    pub sandboxes: Sandboxes,
    pub machine: Machine,
    /// Current usage; `None`: the node could not read it.
    pub load: Option<Load>,
}

/// The node's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// A UUID, new at each start of the daemon.
    pub instance_id: String,
    pub version: String,
    /// Commit that the daemon was built from.
    pub commit: String,
}

/// Sandboxes of a node, and the resources allocated to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sandboxes {
    /// Number of sandboxes that are running, starting or stopping.
    pub running: u32,
    /// Number of them that are starting.
    pub starting: u32,
    /// Maximum number of sandboxes.
    pub max: u32,
    /// Virtual CPUs of all sandboxes together.
    pub vcpus_allocated: u32,
    /// Memory of all sandboxes together.
    pub memory_allocated_bytes: u64,
    /// Number of sandboxes that were started since the daemon started.
    pub creates_succeeded: u64,
    /// Number of failed starts since the daemon started.
    pub creates_failed: u64,
}

impl From<NodeStatus> for proto::NodeStatus {
    fn from(status: NodeStatus) -> Self {
        let NodeStatus { node_id, daemon, sandboxes, machine, load } = status;
        let Daemon { instance_id, version, commit } = daemon;
        let Sandboxes {
            running,
            starting,
            max,
            vcpus_allocated,
            memory_allocated_bytes,
            creates_succeeded,
            creates_failed,
        } = sandboxes;
        let Machine { cpu_family, cpu_model, cpu_model_name, cpu_architecture } = machine;
        let machine = proto::Machine { cpu_family, cpu_model, cpu_model_name, cpu_architecture, ..Default::default() };
        Self {
            node_id: node_id.to_string(),
            sandboxes_running: running,
            sandboxes_max: max,
            sandboxes_starting: starting,
            instance_id,
            version,
            commit,
            creates_succeeded,
            creates_failed,
            vcpus_allocated,
            memory_allocated_bytes,
            machine: machine.into(),
            load: load.map(proto::Load::from).into(),
            ..Self::default()
        }
    }
}

impl TryFrom<proto::NodeStatus> for NodeStatus {
    type Error = ConvertError;

    fn try_from(status: proto::NodeStatus) -> Result<Self, ConvertError> {
        let machine = status.machine.into_option().unwrap_or_default();
        Ok(Self {
            node_id: parse_id("node_id", &status.node_id)?,
            daemon: Daemon { instance_id: status.instance_id, version: status.version, commit: status.commit },
            sandboxes: Sandboxes {
                running: status.sandboxes_running,
                starting: status.sandboxes_starting,
                max: status.sandboxes_max,
                vcpus_allocated: status.vcpus_allocated,
                memory_allocated_bytes: status.memory_allocated_bytes,
                creates_succeeded: status.creates_succeeded,
                creates_failed: status.creates_failed,
            },
            machine: Machine {
                cpu_family: machine.cpu_family,
                cpu_model: machine.cpu_model,
                cpu_model_name: machine.cpu_model_name,
                cpu_architecture: machine.cpu_architecture,
            },
            load: status.load.into_option().map(Load::from),
        })
    }
}

impl From<Load> for proto::Load {
    fn from(load: Load) -> Self {
        let Load { cpu_count, cpu_percent, memory_total_bytes, memory_used_bytes, huge_pages, disks } = load;
        let HugePages { total, used, reserved, page_bytes } = huge_pages;
        Self {
            cpu_count,
            cpu_percent,
            memory_total_bytes,
            memory_used_bytes,
            huge_pages_total: total,
            huge_pages_used: used,
            huge_pages_reserved: reserved,
            huge_page_bytes: page_bytes,
            disks: disks.into_iter().map(proto::Disk::from).collect(),
            ..Self::default()
        }
    }
}

impl From<proto::Load> for Load {
    fn from(load: proto::Load) -> Self {
        Self {
            cpu_count: load.cpu_count,
            cpu_percent: load.cpu_percent,
            memory_total_bytes: load.memory_total_bytes,
            memory_used_bytes: load.memory_used_bytes,
            huge_pages: HugePages {
                total: load.huge_pages_total,
                used: load.huge_pages_used,
                reserved: load.huge_pages_reserved,
                page_bytes: load.huge_page_bytes,
            },
            disks: load.disks.into_iter().map(Disk::from).collect(),
        }
    }
}

impl From<Disk> for proto::Disk {
    fn from(disk: Disk) -> Self {
        let Disk { mount_point, device, filesystem_type, used_bytes, total_bytes } = disk;
        Self { mount_point, device, filesystem_type, used_bytes, total_bytes, ..Self::default() }
    }
}

impl From<proto::Disk> for Disk {
    fn from(disk: proto::Disk) -> Self {
        Self {
            mount_point: disk.mount_point,
            device: disk.device,
            filesystem_type: disk.filesystem_type,
            used_bytes: disk.used_bytes,
            total_bytes: disk.total_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_the_wire() {
        let disk = Disk {
            mount_point: "/data".to_owned(),
            device: "/dev/vda".to_owned(),
            filesystem_type: "ext4".to_owned(),
            used_bytes: 1,
            total_bytes: 2,
        };
        let load = Load {
            cpu_count: 2,
            cpu_percent: 50,
            memory_total_bytes: 4,
            memory_used_bytes: 3,
            huge_pages: HugePages { total: 5, used: 6, reserved: 7, page_bytes: 8 },
            disks: vec![disk],
        };
        let status = NodeStatus {
            node_id: "local".parse().expect("valid"),
            daemon: Daemon { instance_id: "1".to_owned(), version: "0.1.0".to_owned(), commit: "abc".to_owned() },
            sandboxes: Sandboxes {
                running: 1,
                starting: 2,
                max: 3,
                vcpus_allocated: 4,
                memory_allocated_bytes: 5,
                creates_succeeded: 6,
                creates_failed: 7,
            },
            machine: Machine {
                cpu_family: "6".to_owned(),
                cpu_model: "143".to_owned(),
                cpu_model_name: "a processor".to_owned(),
                cpu_architecture: "x86_64".to_owned(),
            },
            load: Some(load),
        };
        for status in [NodeStatus { load: None, ..status.clone() }, status] {
            assert_eq!(NodeStatus::try_from(proto::NodeStatus::from(status.clone())).expect("valid"), status);
        }
        assert!(NodeStatus::try_from(proto::NodeStatus { node_id: "/".to_owned(), ..Default::default() }).is_err());
    }
}
