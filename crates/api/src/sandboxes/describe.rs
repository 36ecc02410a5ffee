//! Conversion of sandbox rows to wire types.

use hearth_api_types::sandbox::{Lifecycle, ListedSandbox, Network, OnTimeout, Sandbox, SandboxDetail, SandboxState};
use hearth_store::{ListedSandbox as ListedRow, Sandbox as Row};
use hearth_types::{Ingress, Resources};

use crate::control::Control;

/// Returns the address and tokens of a sandbox. The tokens stay the same for the lifetime of the sandbox.
pub(super) fn sandbox(control: &Control, row: &Row) -> Sandbox {
    Sandbox {
        sandbox_id: row.sandbox_id.to_string(),
        template_id: row.template_id.to_string(),
        alias: row.alias.clone(),
        client_id: control.config.client_id.clone(),
        envd_version: row.envd_version.clone(),
        envd_access_token: envd_access_token(control, row),
        traffic_access_token: control.tokens.required_from_visitors(row).map(|token| token.expose().to_owned()),
        domain: control.config.domain.clone(),
    }
}

/// Returns an item of a list. The state is always `running`: sandboxes in other states are hidden from clients.
pub(super) fn listed(control: &Control, row: ListedRow) -> ListedSandbox {
    let Resources { vcpus, memory_mib, disk_mib } = row.resources;
    ListedSandbox {
        sandbox_id: row.sandbox_id.to_string(),
        template_id: row.template_id.to_string(),
        alias: row.alias,
        client_id: control.config.client_id.clone(),
        envd_version: row.envd_version,
        state: SandboxState::Running,
        started_at: row.started_at,
        end_at: row.end_at,
        cpu_count: vcpus,
        memory_mb: memory_mib,
        disk_size_mb: disk_mib,
        metadata: row.metadata,
        volume_mounts: Vec::new(),
    }
}

/// Returns all details of a sandbox.
pub(super) fn detail(control: &Control, row: Row) -> SandboxDetail {
    SandboxDetail {
        envd_access_token: envd_access_token(control, &row),
        domain: control.config.domain.clone(),
        allow_internet_access: row.allow_internet_access,
        network: network(&row.ingress),
        lifecycle: Lifecycle { on_timeout: OnTimeout::Kill, auto_resume: false },
        listed: listed(control, row.into()),
    }
}

/// Returns the network rules, or `None` if all of them are defaults.
fn network(ingress: &Ingress) -> Option<Network> {
    if *ingress == Ingress::open() {
        return None;
    }
    let Ingress { public, host_mask, https_ports } = ingress;
    Some(Network {
        allow_public_traffic: Some(*public),
        mask_request_host: host_mask.as_ref().map(ToString::to_string),
        https_ports: Some(https_ports.iter().copied().collect()).filter(|ports: &Vec<u16>| !ports.is_empty()),
        ..Network::default()
    })
}

fn envd_access_token(control: &Control, row: &Row) -> Option<String> {
    row.secured.then(|| control.tokens.envd_access_token(&row.sandbox_id).expose().to_owned())
}
