//! Request bodies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::network::Network;

/// The body of `POST /v2/sandboxes`, and all of `POST /sandboxes` except for `secure`.
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
    /// Seconds until it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    pub timeout: Option<i32>,
    /// Texts to find it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Environment of all its commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// Expiry pauses instead of killing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub auto_pause: Option<bool>,
    /// Whether that pause keeps the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub auto_pause_memory: Option<bool>,
    /// Whether traffic wakes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub auto_resume: Option<AutoResume>,
    /// `false`: no way out. Spelled unlike its neighbours in the contract.
    #[serde(rename = "allow_internet_access", default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub allow_internet_access: Option<bool>,
    /// Network rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub network: Option<Network>,
    /// Volumes in its file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// Configuration of the MCP gateway, which the SDK starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub mcp: Option<serde_json::Value>,
    /// Workload identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub iam: Option<Iam>,
}

/// The body of `POST /sandboxes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewSandboxV1 {
    /// Whether the guest daemon demands a token. In the second generation it always does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub secure: Option<bool>,
    /// The rest.
    #[serde(flatten)]
    pub sandbox: NewSandbox,
}

/// The `autoResume` member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AutoResume {
    /// Whether traffic wakes it.
    pub enabled: bool,
}

/// A volume in a sandbox's file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMount {
    /// The volume.
    pub name: String,
    /// Where it is mounted.
    pub path: String,
}

/// The `iam` member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Iam {
    /// Tokens by name; none at all is the same as no `iam`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tokens: Option<BTreeMap<String, serde_json::Value>>,
}

/// The body of `POST /sandboxes/{sandboxID}/connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectV1 {
    /// Seconds from now before which it shall not expire.
    #[schema(minimum = 0)]
    pub timeout: i32,
    /// `false`: a paused sandbox boots from its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub memory: Option<bool>,
}

/// The body of `POST /v2/sandboxes/{sandboxID}/connect`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connect {
    /// Seconds from now before which it shall not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0)]
    pub timeout: Option<i32>,
    /// `false`: a paused sandbox boots from its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub memory: Option<bool>,
}

/// The body of `POST /sandboxes/{sandboxID}/timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timeout {
    /// Seconds from now until it expires; a negative number is zero.
    pub timeout: i32,
}

/// The body of `POST /sandboxes/{sandboxID}/refreshes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refresh {
    /// Seconds from now before which it shall not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0, maximum = 3600)]
    pub duration: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies of real clients, from the contract.
    #[test]
    fn bodies_of_the_sdks_are_understood() {
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
    fn what_was_not_said_is_not_sent() {
        let text = r#"{"templateID":"base","timeout":6,"autoPause":false}"#;
        let parsed: NewSandbox = serde_json::from_str(text).expect("valid");
        assert_eq!(serde_json::to_string(&parsed).expect("plain"), text);
    }

    #[test]
    fn wrong_types_are_refused() {
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
