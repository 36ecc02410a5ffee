//! Conversion between wire messages and domain values, field by field.

use std::fmt::Display;
use std::str::FromStr;

use hearth_types::{ExecutionId, SandboxId, SandboxSpec, Secret, TeamId};

use crate::generated::hearth::cluster::v1 as proto;

/// Reason why a message is not a domain value: the peer has another version, or is hostile.
#[derive(Debug, thiserror::Error)]
#[error("field `{field}` of the cluster API message is invalid: {reason}")]
pub struct ConvertError {
    field: &'static str,
    reason: String,
}

/// Parses an id of a message.
///
/// # Errors
/// [`ConvertError`] with the name of the field, if the text is not such an id.
pub fn parse_id<T>(field: &'static str, text: &str) -> Result<T, ConvertError>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error: T::Err| ConvertError { field, reason: error.to_string() })
}

impl From<&SandboxSpec> for proto::CreateSandboxRequest {
    fn from(spec: &SandboxSpec) -> Self {
        let SandboxSpec {
            sandbox_id,
            execution_id,
            team_id,
            template_id,
            build_id,
            env_vars,
            envd_access_token,
            internet_access,
        } = spec;
        Self {
            sandbox_id: sandbox_id.to_string(),
            execution_id: execution_id.to_string(),
            team_id: team_id.to_string(),
            template_id: template_id.to_string(),
            build_id: build_id.to_string(),
            env_vars: env_vars.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            envd_access_token: envd_access_token.as_ref().map(|token| token.expose().to_owned()),
            allow_internet_access: Some(*internet_access),
            ..Self::default()
        }
    }
}

impl TryFrom<proto::CreateSandboxRequest> for SandboxSpec {
    type Error = ConvertError;

    fn try_from(request: proto::CreateSandboxRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            sandbox_id: parse_id("sandbox_id", &request.sandbox_id)?,
            execution_id: parse_id("execution_id", &request.execution_id)?,
            team_id: parse_id("team_id", &request.team_id)?,
            template_id: parse_id("template_id", &request.template_id)?,
            build_id: parse_id("build_id", &request.build_id)?,
            env_vars: request.env_vars.into_iter().collect(),
            envd_access_token: request.envd_access_token.map(Secret::new),
            internet_access: request.allow_internet_access.unwrap_or(Self::INTERNET_ACCESS_DEFAULT),
        })
    }
}

/// A sandbox that a node runs, as reported by the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningSandbox {
    pub sandbox_id: SandboxId,
    /// The current run.
    pub execution_id: ExecutionId,
    /// The sandbox's owner.
    pub team_id: TeamId,
}

impl From<RunningSandbox> for proto::RunningSandbox {
    fn from(running: RunningSandbox) -> Self {
        let RunningSandbox { sandbox_id, execution_id, team_id } = running;
        Self {
            sandbox_id: sandbox_id.to_string(),
            execution_id: execution_id.to_string(),
            team_id: team_id.to_string(),
            ..Self::default()
        }
    }
}

impl TryFrom<proto::RunningSandbox> for RunningSandbox {
    type Error = ConvertError;

    fn try_from(running: proto::RunningSandbox) -> Result<Self, ConvertError> {
        Ok(Self {
            sandbox_id: parse_id("sandbox_id", &running.sandbox_id)?,
            execution_id: parse_id("execution_id", &running.execution_id)?,
            team_id: parse_id("team_id", &running.team_id)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hearth_types::{BuildId, TemplateId};

    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            sandbox_id: SandboxId::generate(),
            execution_id: ExecutionId::generate(),
            team_id: TeamId::generate(),
            template_id: TemplateId::generate(),
            build_id: BuildId::generate(),
            env_vars: BTreeMap::from([("A".to_owned(), "b=c".to_owned())]),
            envd_access_token: Some(Secret::new("token")),
            internet_access: false,
        }
    }

    #[test]
    fn a_spec_survives_the_wire() {
        let spec = spec();
        let request = proto::CreateSandboxRequest::from(&spec);
        assert_eq!(SandboxSpec::try_from(request).expect("valid"), spec);
    }

    #[test]
    fn a_bad_field_is_named() {
        let request = proto::CreateSandboxRequest { sandbox_id: "../x".to_owned(), ..(&spec()).into() };
        let error = SandboxSpec::try_from(request).expect_err("bad id");
        assert!(error.to_string().contains("sandbox_id"), "{error}");
    }
}
