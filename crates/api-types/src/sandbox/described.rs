//! Response bodies.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::network::Network;
use super::requested::VolumeMount;

/// Reply to a create or connect, with the tokens and names that a client needs to reach the sandbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// ID of the sandbox.
    #[serde(rename = "sandboxID")]
    #[schema(pattern = "^[a-z0-9]+$")]
    pub sandbox_id: String,
    /// ID of the template it was created from, never an alias.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// First alias of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub alias: Option<String>,
    /// Constant that old clients require.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Semantic version of the guest daemon.
    pub envd_version: String,
    /// Token that the guest daemon requires; absent if it requires none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub envd_access_token: Option<String>,
    /// Token that the edge requires from visitors; `null` if it requires none.
    #[schema(required = true)]
    pub traffic_access_token: Option<String>,
    /// Domain of sandbox host names; `null` if the client uses the domain it was configured with.
    #[schema(required = true)]
    pub domain: Option<String>,
}

impl std::fmt::Debug for Sandbox {
    /// Omits the tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("sandbox_id", &self.sandbox_id).finish_non_exhaustive()
    }
}

/// State of a sandbox that clients can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// The sandbox runs on a node.
    Running,
    /// The sandbox is stored and uses no capacity of a node.
    Paused,
}

/// A sandbox in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    /// ID of the sandbox.
    #[serde(rename = "sandboxID")]
    #[schema(pattern = "^[a-z0-9]+$")]
    pub sandbox_id: String,
    /// ID of the template it was created from, never an alias.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// First alias of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub alias: Option<String>,
    /// Constant that old clients require.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Semantic version of the guest daemon.
    pub envd_version: String,
    /// Current state.
    pub state: SandboxState,
    /// Time of the last start.
    pub started_at: Timestamp,
    /// Expiry time; for a paused sandbox, the time of the pause.
    pub end_at: Timestamp,
    /// Number of virtual CPUs.
    pub cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Size of the root disk in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// Metadata of the create request; absent if there is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Volumes mounted in the sandbox.
    #[serde(default)]
    #[schema(required = true)]
    pub volume_mounts: Vec<VolumeMount>,
}

/// Full description of a sandbox.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// Members that lists have too.
    #[serde(flatten)]
    pub listed: ListedSandbox,
    /// Token that the guest daemon requires; absent if it requires none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub envd_access_token: Option<String>,
    /// Domain of sandbox host names; `null` if the client uses the domain it was configured with.
    #[schema(required = true)]
    pub domain: Option<String>,
    /// Value of the create request; `null` if it had none.
    #[schema(required = true)]
    pub allow_internet_access: Option<bool>,
    /// Network rules; absent, and never `null`, when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub network: Option<Network>,
    /// Effect of expiry, and of traffic while the sandbox is paused.
    pub lifecycle: Lifecycle,
}

impl std::fmt::Debug for SandboxDetail {
    /// Omits the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SandboxDetail").field("listed", &self.listed).finish_non_exhaustive()
    }
}

/// Effect of expiry, and of traffic while a sandbox is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// Effect of expiry.
    pub on_timeout: OnTimeout,
    /// True if traffic resumes a paused sandbox.
    pub auto_resume: bool,
}

/// Effect of expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The sandbox is killed.
    Kill,
    /// The sandbox is paused.
    Pause,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> ListedSandbox {
        ListedSandbox {
            sandbox_id: "i1".to_owned(),
            template_id: "t".to_owned(),
            alias: None,
            client_id: "c".to_owned(),
            envd_version: "0.6.4".to_owned(),
            state: SandboxState::Running,
            started_at: "2026-01-02T03:04:05.5Z".parse().expect("valid"),
            end_at: "2026-01-02T03:05:05Z".parse().expect("valid"),
            cpu_count: 2,
            memory_mb: 512,
            disk_size_mb: 1024,
            metadata: BTreeMap::new(),
            volume_mounts: Vec::new(),
        }
    }

    #[test]
    fn absent_values_are_null_only_where_clients_require_it() {
        let detail = SandboxDetail {
            listed: listed(),
            envd_access_token: None,
            domain: None,
            allow_internet_access: None,
            network: None,
            lifecycle: Lifecycle { on_timeout: OnTimeout::Kill, auto_resume: false },
        };
        let expected = concat!(
            r#"{"sandboxID":"i1","templateID":"t","clientID":"c","envdVersion":"0.6.4","state":"running","#,
            r#""startedAt":"2026-01-02T03:04:05.5Z","endAt":"2026-01-02T03:05:05Z","cpuCount":2,"memoryMB":512,"#,
            r#""diskSizeMB":1024,"volumeMounts":[],"domain":null,"allowInternetAccess":null,"#,
            r#""lifecycle":{"onTimeout":"kill","autoResume":false}}"#,
        );
        assert_eq!(serde_json::to_string(&detail).expect("plain"), expected);
        assert_eq!(serde_json::from_str::<SandboxDetail>(expected).expect("valid"), detail);
    }

    #[test]
    fn a_created_sandbox_prints_without_its_tokens() {
        let sandbox = Sandbox {
            sandbox_id: "i1".to_owned(),
            template_id: "t".to_owned(),
            alias: Some("base".to_owned()),
            client_id: "c".to_owned(),
            envd_version: "0.6.4".to_owned(),
            envd_access_token: Some("hunter2".to_owned()),
            traffic_access_token: None,
            domain: None,
        };
        assert!(!format!("{sandbox:?}").contains("hunter2"));
        let text = serde_json::to_string(&sandbox).expect("plain");
        assert!(text.contains(r#""envdAccessToken":"hunter2","trafficAccessToken":null,"domain":null"#), "{text}");
    }
}
