//! Specification of a sandbox.

use std::collections::BTreeMap;

use crate::{BuildId, ExecutionId, SandboxId, Secret, TeamId, TemplateId};

/// Virtual hardware of a build and of all sandboxes created from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Size of the root disk in MiB, used and free space together.
    pub disk_mib: u32,
}

/// Everything that a node needs to run a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    pub sandbox_id: SandboxId,
    /// This run of the sandbox.
    pub execution_id: ExecutionId,
    /// The sandbox's owner.
    pub team_id: TeamId,
    /// The template it was created from.
    pub template_id: TemplateId,
    /// The build whose artifacts are restored.
    pub build_id: BuildId,
    /// Environment of all commands in the sandbox.
    pub env_vars: BTreeMap<String, String>,
    /// Token that the guest daemon requires from clients; `None`: it requires none.
    pub envd_access_token: Option<Secret>,
    /// `true` if the guest may reach addresses outside of the host.
    pub internet_access: bool,
}

impl SandboxSpec {
    /// Internet access of a sandbox whose create does not set it.
    pub const INTERNET_ACCESS_DEFAULT: bool = true;
}
