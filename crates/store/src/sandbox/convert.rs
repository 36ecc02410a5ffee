//! Conversion between a sandbox and its row.

use hearth_types::{BuildId, ExecutionId, Ingress, Resources, TeamId};
use sea_orm::ActiveValue::Set;

use super::{Sandbox, SandboxState};
use crate::entity::sandbox::{self, IngressRules, Texts};
use crate::error::Error;
use crate::row::{RowReader, UnknownValue, micros, millis};

pub(super) fn read_state(reader: &RowReader, text: &str) -> Result<SandboxState, Error> {
    let known = SandboxState::ALL.into_iter().find(|known| known.as_str() == text);
    known.ok_or_else(|| reader.damaged("state", UnknownValue(text.to_owned())))
}

fn read_ingress(reader: &RowReader, rules: Option<IngressRules>) -> Result<Ingress, Error> {
    let Some(IngressRules { public, host_mask, https_ports }) = rules else { return Ok(Ingress::open()) };
    let host_mask = host_mask.map(|mask| reader.text("ingress", &mask)).transpose()?;
    Ok(Ingress { public, host_mask, https_ports })
}

pub(super) fn row(sandbox: &Sandbox) -> sandbox::ActiveModel {
    let Sandbox {
        sandbox_id,
        execution_id,
        team_id,
        template_id,
        build_id,
        alias,
        node_id,
        state,
        metadata,
        env_vars,
        envd_version,
        secured,
        allow_internet_access,
        ingress: Ingress { public, host_mask, https_ports },
        timeout,
        started_at,
        end_at,
        resources: Resources { vcpus, memory_mib, disk_mib },
    } = sandbox;
    sandbox::ActiveModel {
        id: Set(sandbox_id.as_str().to_owned()),
        execution_id: Set(execution_id.as_uuid()),
        team_id: Set(team_id.as_uuid()),
        template_id: Set(template_id.as_str().to_owned()),
        build_id: Set(build_id.as_uuid()),
        alias: Set(alias.clone()),
        node_id: Set(node_id.as_str().to_owned()),
        state: Set(state.as_str().to_owned()),
        metadata: Set(Texts(metadata.clone())),
        env_vars: Set(Texts(env_vars.clone())),
        envd_version: Set(envd_version.clone()),
        secured: Set(*secured),
        allow_internet_access: Set(*allow_internet_access),
        timeout_ms: Set(millis(*timeout)),
        started_at_us: Set(micros(*started_at)),
        end_at_us: Set(micros(*end_at)),
        vcpus: Set(i64::from(*vcpus)),
        memory_mib: Set(i64::from(*memory_mib)),
        disk_mib: Set(i64::from(*disk_mib)),
        ingress: Set(Some(IngressRules {
            public: *public,
            host_mask: host_mask.as_ref().map(ToString::to_string),
            https_ports: https_ports.clone(),
        })),
    }
}

impl TryFrom<sandbox::Model> for Sandbox {
    type Error = Error;

    fn try_from(row: sandbox::Model) -> Result<Self, Error> {
        let sandbox::Model {
            id,
            execution_id,
            team_id,
            template_id,
            build_id,
            alias,
            node_id,
            state,
            metadata: Texts(metadata),
            env_vars: Texts(env_vars),
            envd_version,
            secured,
            allow_internet_access,
            timeout_ms,
            started_at_us,
            end_at_us,
            vcpus,
            memory_mib,
            disk_mib,
            ingress,
        } = row;
        let reader = RowReader::new("sandbox", &id);
        Ok(Self {
            sandbox_id: reader.text("id", &id)?,
            execution_id: ExecutionId::from_uuid(execution_id),
            team_id: TeamId::from_uuid(team_id),
            template_id: reader.text("template_id", &template_id)?,
            build_id: BuildId::from_uuid(build_id),
            alias,
            node_id: reader.text("node_id", &node_id)?,
            state: read_state(&reader, &state)?,
            metadata,
            env_vars,
            envd_version,
            secured,
            allow_internet_access,
            ingress: read_ingress(&reader, ingress)?,
            timeout: reader.length("timeout_ms", timeout_ms)?,
            started_at: reader.time("started_at_us", started_at_us)?,
            end_at: reader.time("end_at_us", end_at_us)?,
            resources: Resources {
                vcpus: reader.number("vcpus", vcpus)?,
                memory_mib: reader.number("memory_mib", memory_mib)?,
                disk_mib: reader.number("disk_mib", disk_mib)?,
            },
        })
    }
}
