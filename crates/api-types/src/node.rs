//! Nodes, in requests and replies of operators.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::form::{FormError, parameters};

/// State of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Accepts new sandboxes.
    Ready,
    /// Accepts no new sandboxes; existing ones continue to run.
    Draining,
    /// Not reached yet.
    Connecting,
    /// No longer reachable.
    Unhealthy,
    /// Accepts no sandboxes until it is needed.
    Standby,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Name of the node.
    pub id: String,
    /// ID of the current run of the node's program; empty until the node was reached.
    #[serde(rename = "serviceInstanceID")]
    pub service_instance_id: String,
    /// ID of the node's cluster.
    #[serde(rename = "clusterID")]
    #[schema(format = Uuid)]
    pub cluster_id: String,
    /// Version of the node's program; empty until the node was reached.
    pub version: String,
    /// Commit that the node's program was built from; empty until the node was reached.
    pub commit: String,
    /// Current state.
    pub status: NodeStatus,
    /// Time of the last change of `status`.
    pub status_changed_at: Timestamp,
    /// Number of sandboxes on the node.
    pub sandbox_count: u32,
    /// Number of sandboxes that are being started. Present in lists only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub sandbox_starting_count: Option<u32>,
    /// Number of successful creates since the node's program started.
    pub create_successes: u64,
    /// Number of failed creates since the node's program started.
    pub create_fails: u64,
    /// Processor of the node's machine.
    pub machine_info: NodeMachine,
    /// Resource usage of the node's machine.
    pub metrics: NodeMetrics,
}

/// Processor of a node. A member is empty when the machine does not report it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMachine {
    /// Processor family.
    pub cpu_family: String,
    /// Model within the family.
    pub cpu_model: String,
    /// Model name that the manufacturer uses.
    pub cpu_model_name: String,
    /// Instruction set architecture.
    pub cpu_architecture: String,
}

/// Resource usage of a node. All values are 0 until the node was reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMetrics {
    /// Sum of the virtual CPUs of all sandboxes on the node.
    #[serde(rename = "allocatedCPU")]
    pub allocated_cpu: u32,
    /// Busy share of all logical processors in percent, including other programs.
    #[schema(maximum = 100)]
    pub cpu_percent: u32,
    /// Number of logical processors.
    pub cpu_count: u32,
    /// Sum of the memory of all sandboxes on the node.
    pub allocated_memory_bytes: u64,
    /// Memory in use, including other programs.
    pub memory_used_bytes: u64,
    /// Memory in use plus free memory.
    pub memory_total_bytes: u64,
    /// Number of huge pages in the pool.
    pub huge_pages_total: u64,
    /// Number of huge pages in use.
    pub huge_pages_used: u64,
    /// Number of huge pages reserved, but not in use yet.
    pub huge_pages_reserved: u64,
    /// Size of one huge page.
    pub huge_page_size_bytes: u64,
    /// File systems that store the sandboxes.
    pub disks: Vec<DiskMetrics>,
}

/// A file system of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskMetrics {
    /// Directory it is mounted on.
    pub mount_point: String,
    /// Mounted device.
    pub device: String,
    /// File system type, for example `ext4`.
    pub filesystem_type: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes in use plus free bytes.
    pub total_bytes: u64,
}

/// Query of the routes for nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct NodesQuery {
    /// ID of the cluster; when absent, the only cluster.
    #[param(rename = "clusterID", format = Uuid)]
    pub cluster_id: Option<String>,
}

impl NodesQuery {
    /// Parses the text after the `?`.
    ///
    /// # Errors
    /// [`FormError`] when the text is not form encoded.
    pub fn parse(query: &str) -> Result<Self, FormError> {
        Ok(Self { cluster_id: parameters(query)?.remove("clusterID") })
    }
}

/// Desired state of a node, set by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeChange {
    /// Desired state.
    pub status: NodeStatus,
    /// ID of the node's cluster; when absent, the only cluster.
    #[schema(format = Uuid, nullable = false)]
    #[serde(default, rename = "clusterID")]
    pub cluster_id: Option<String>,
}
