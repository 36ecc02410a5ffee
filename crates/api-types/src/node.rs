//! Nodes, as operators see them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::form::{FormError, parameters};

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// It takes new sandboxes.
    Ready,
    /// It keeps the sandboxes it has and takes no new ones.
    Draining,
    /// It was not reached yet.
    Connecting,
    /// It cannot be reached any more.
    Unhealthy,
    /// It takes no sandboxes until it is needed.
    Standby,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub id: String,
    /// This run of its program; empty until it was reached.
    #[serde(rename = "serviceInstanceID")]
    pub service_instance_id: String,
    /// The cluster it belongs to.
    #[serde(rename = "clusterID")]
    #[schema(format = Uuid)]
    pub cluster_id: String,
    /// The version of its program; empty until it was reached.
    pub version: String,
    /// What its program was built from; empty until it was reached.
    pub commit: String,
    /// How it is.
    pub status: NodeStatus,
    /// Since when it is so.
    pub status_changed_at: Timestamp,
    /// Sandboxes there.
    pub sandbox_count: u32,
    /// Those of them that are being started. Lists have it, details do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub sandbox_starting_count: Option<u32>,
    /// Sandboxes that were started since its program runs.
    pub create_successes: u64,
    /// Sandboxes that could not be started since then.
    pub create_fails: u64,
    /// What its machine is.
    pub machine_info: NodeMachine,
    /// How busy its machine is.
    pub metrics: NodeMetrics,
}

/// A node's processors; members are empty where its machine does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMachine {
    /// The family of the processor.
    pub cpu_family: String,
    /// The model within the family.
    pub cpu_model: String,
    /// What the processor's maker calls it.
    pub cpu_model_name: String,
    /// The instruction set.
    pub cpu_architecture: String,
}

/// How busy a node is; all is 0 until it was reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMetrics {
    /// Processors that its sandboxes may use together.
    #[serde(rename = "allocatedCPU")]
    pub allocated_cpu: u32,
    /// How busy its processors are, whoever uses them: 0 to 100.
    #[schema(maximum = 100)]
    pub cpu_percent: u32,
    /// Its processors.
    pub cpu_count: u32,
    /// Memory that its sandboxes may use together.
    pub allocated_memory_bytes: u64,
    /// Memory in use, whoever uses it.
    pub memory_used_bytes: u64,
    /// Memory in use and free.
    pub memory_total_bytes: u64,
    /// Huge pages set aside.
    pub huge_pages_total: u64,
    /// Those in use.
    pub huge_pages_used: u64,
    /// Those promised.
    pub huge_pages_reserved: u64,
    /// The size of one.
    pub huge_page_size_bytes: u64,
    /// The file systems that its sandboxes are kept on.
    pub disks: Vec<DiskMetrics>,
}

/// A file system of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskMetrics {
    /// Where it is mounted.
    pub mount_point: String,
    /// What is mounted there.
    pub device: String,
    /// Its kind.
    pub filesystem_type: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes in use and free.
    pub total_bytes: u64,
}

/// Which nodes are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct NodesQuery {
    /// Those of this cluster; absent: of the only one.
    #[param(rename = "clusterID", format = Uuid)]
    pub cluster_id: Option<String>,
}

impl NodesQuery {
    /// Reads a query string.
    ///
    /// # Errors
    /// When it is not form encoded.
    pub fn parse(query: &str) -> Result<Self, FormError> {
        Ok(Self { cluster_id: parameters(query)?.remove("clusterID") })
    }
}

/// What an operator wants of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeChange {
    /// What it is to be.
    pub status: NodeStatus,
    /// The cluster it belongs to; absent: the only one.
    #[schema(format = Uuid, nullable = false)]
    #[serde(default, rename = "clusterID")]
    pub cluster_id: Option<String>,
}
