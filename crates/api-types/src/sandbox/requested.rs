//! Request bodies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::network::Network;

/// Body of `POST /v2/sandboxes`, and of `POST /sandboxes` without `secure`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// Template reference: `[namespace/]name[:tag]`.
    #[serde(rename = "templateID")]
    #[schema(
        pattern = "^([A-Za-z0-9_-]+/)?[A-Za-z0-9_-]+(:[A-Za-z0-9_.-]+)?$",
        min_length = 1,
        max_length = 386,
        example = "base"
    )]
    pub template_id: String,
    /// Seconds until the sandbox expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    pub timeout: Option<i32>,
    /// Metadata that lists can filter by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Environment variables of all commands in the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// With `true`, expiry pauses the sandbox instead of killing it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub auto_pause: Option<bool>,
    /// With `false`, the pause on expiry does not store the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub auto_pause_memory: Option<bool>,
    /// Effect of traffic while the sandbox is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub auto_resume: Option<AutoResume>,
    /// With `false`, the sandbox cannot reach the Internet. The contract spells this member in snake case.
    #[serde(rename = "allow_internet_access", default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub allow_internet_access: Option<bool>,
    /// Network rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub network: Option<Network>,
    /// Volumes to mount in the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// Configuration of the MCP gateway. The SDK starts the gateway; this server ignores the member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub mcp: Option<serde_json::Value>,
    /// Workload identity of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub iam: Option<Iam>,
}

/// Body of `POST /sandboxes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewSandboxV1 {
    /// With `true`, the guest daemon requires a token. Sandboxes of `POST /v2/sandboxes` always require one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub secure: Option<bool>,
    /// Members that `POST /v2/sandboxes` has too.
    #[serde(flatten)]
    pub sandbox: NewSandbox,
}

/// Member `autoResume` of a create request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AutoResume {
    /// With `true`, traffic resumes a paused sandbox.
    pub enabled: bool,
}

/// A volume mounted in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMount {
    /// Name of the volume.
    pub name: String,
    /// Mount point in the sandbox.
    pub path: String,
}

/// Member `iam` of a create request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Iam {
    /// Tokens by name. An empty object has the same effect as an absent `iam`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tokens: Option<BTreeMap<String, serde_json::Value>>,
}

/// Body of `POST /sandboxes/{sandboxID}/connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectV1 {
    /// Minimum remaining lifetime in seconds from now. A later end time is not changed.
    #[schema(minimum = 0)]
    pub timeout: i32,
    /// With `false`, a paused sandbox boots from its disk instead of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub memory: Option<bool>,
}

/// Body of `POST /v2/sandboxes/{sandboxID}/connect`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connect {
    /// Minimum remaining lifetime in seconds from now. A later end time is not changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0)]
    pub timeout: Option<i32>,
    /// With `false`, a paused sandbox boots from its disk instead of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub memory: Option<bool>,
}

/// Body of `POST /sandboxes/{sandboxID}/timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timeout {
    /// Seconds from now until the sandbox expires. A negative number counts as zero.
    pub timeout: i32,
}

/// Body of `POST /sandboxes/{sandboxID}/refreshes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refresh {
    /// Minimum remaining lifetime in seconds from now. A later end time is not changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0, maximum = 3600)]
    pub duration: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies of real clients, from the contract.
    #[test]
    fn bodies_of_the_sdks_are_parsed() {
        for text in [
            r#"{"templateID":"team/name:tag","metadata":{"a":"b"},"envVars":{}}"#,
            r#"{"templateID":"base","timeout":6,"allow_internet_access":false,"network":{"allowOut":["1.1.1.1"],
                "denyOut":["0.0.0.0/0"],"allowPublicTraffic":false},"autoPause":true,"autoPauseMemory":true,
                "autoResume":{"enabled":true},"volumeMounts":[{"name":"vol","path":"/mnt/x"}]}"#,
            r#"{"templateID":"base","mcp":{"x":{}},"iam":{"tokens":{}},"unknown":[1]}"#,
            r#"{"templateID":"base","mcp":null,"network":null,"timeout":null}"#,
        ] {
            serde_json::from_str::<NewSandbox>(text).expect(text);
        }
        let body = r#"{"templateID":"base","timeout":300,"secure":true,"allow_internet_access":true}"#;
        let parsed: NewSandboxV1 = serde_json::from_str(body).expect("the CLI's create");
        assert_eq!((parsed.secure, parsed.sandbox.timeout), (Some(true), Some(300)));
        assert_eq!(parsed.sandbox.allow_internet_access, Some(true));
    }

    #[test]
    fn absent_members_are_not_serialized() {
        let text = r#"{"templateID":"base","timeout":6,"autoPause":false}"#;
        let parsed: NewSandbox = serde_json::from_str(text).expect("valid");
        assert_eq!(serde_json::to_string(&parsed).expect("plain"), text);
    }

    #[test]
    fn wrong_types_are_rejected() {
        for text in [
            "{}",
            r#"{"templateID":1}"#,
            r#"{"templateID":"base","timeout":"6"}"#,
            r#"{"templateID":"base","timeout":1.5}"#,
            r#"{"templateID":"base","timeout":3000000000}"#,
            r#"{"templateID":"base","metadata":{"a":1}}"#,
            r#"{"templateID":"base","metadata":[]}"#,
        ] {
            assert!(serde_json::from_str::<NewSandbox>(text).is_err(), "{text}");
            assert!(serde_json::from_str::<NewSandboxV1>(text).is_err(), "{text}");
        }
    }
}
