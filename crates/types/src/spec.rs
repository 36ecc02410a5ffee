//! What a sandbox is to be.

use std::collections::BTreeMap;

use crate::{BuildId, ExecutionId, SandboxId, Secret, TeamId, TemplateId};

/// The virtual hardware of a build. A sandbox has that of its build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Size of the root disk in MiB, free and used together.
    pub disk_mib: u32,
}

/// Everything a node needs to run a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// This run of it.
    pub execution_id: ExecutionId,
    /// Whose it is.
    pub team_id: TeamId,
    /// The template it was created from.
    pub template_id: TemplateId,
    /// The build whose artifacts are restored.
    pub build_id: BuildId,
    /// Environment of all commands in it.
    pub env_vars: BTreeMap<String, String>,
    /// What the guest daemon demands from clients; `None`: nothing.
    pub envd_access_token: Option<Secret>,
    /// Whether the guest may reach addresses outside of the host at all.
    pub internet_access: bool,
}

impl SandboxSpec {
    /// Internet access of a sandbox whose create does not set it.
    pub const INTERNET_ACCESS_DEFAULT: bool = true;
}
