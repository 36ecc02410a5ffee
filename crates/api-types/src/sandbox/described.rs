//! Response bodies.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::network::Network;
use super::requested::VolumeMount;

/// A sandbox that was created or connected to, with what a client needs to reach it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// The sandbox.
    #[serde(rename = "sandboxID")]
    #[schema(pattern = "^[a-z0-9]+$")]
    pub sandbox_id: String,
    /// The template it was created from, never its alias.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// First alias of that template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub alias: Option<String>,
    /// A constant that old clients need.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Semantic version of the guest daemon.
    pub envd_version: String,
    /// What the guest daemon demands; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub envd_access_token: Option<String>,
    /// What the edge demands; `null`: nothing.
    #[schema(required = true)]
    pub traffic_access_token: Option<String>,
    /// Domain of sandbox host names; `null`: the client's own.
    #[schema(required = true)]
    pub domain: Option<String>,
}

impl std::fmt::Debug for Sandbox {
    /// Without the tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("sandbox_id", &self.sandbox_id).finish_non_exhaustive()
    }
}

/// What clients may know of a sandbox's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// It runs.
    Running,
    /// It is saved and takes no node's room.
    Paused,
}

/// A sandbox in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    /// The sandbox.
    #[serde(rename = "sandboxID")]
    #[schema(pattern = "^[a-z0-9]+$")]
    pub sandbox_id: String,
    /// The template it was created from, never its alias.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// First alias of that template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub alias: Option<String>,
    /// A constant that old clients need.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Semantic version of the guest daemon.
    pub envd_version: String,
    /// Whether it runs.
    pub state: SandboxState,
    /// When it was last started.
    pub started_at: Timestamp,
    /// When it expires; when paused: since when.
    pub end_at: Timestamp,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Root disk in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// What it was tagged with; absent: nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Volumes in its file system.
    #[serde(default)]
    #[schema(required = true)]
    pub volume_mounts: Vec<VolumeMount>,
}

/// Everything about a sandbox.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// What the list says of it.
    #[serde(flatten)]
    pub listed: ListedSandbox,
    /// What the guest daemon demands; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub envd_access_token: Option<String>,
    /// Domain of sandbox host names; `null`: the client's own.
    #[schema(required = true)]
    pub domain: Option<String>,
    /// What the create said about it; `null`: nothing.
    #[schema(required = true)]
    pub allow_internet_access: Option<bool>,
    /// Network rules; absent, and never `null`, when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub network: Option<Network>,
    /// How it ends and begins.
    pub lifecycle: Lifecycle,
}

impl std::fmt::Debug for SandboxDetail {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SandboxDetail").field("listed", &self.listed).finish_non_exhaustive()
    }
}

/// What happens when a sandbox expires, and when traffic arrives at a paused one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// What expiry does.
    pub on_timeout: OnTimeout,
    /// Whether traffic wakes it.
    pub auto_resume: bool,
}

/// What expiry does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// All of it is gone.
    Kill,
    /// It is saved.
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
    fn nulls_stand_where_clients_need_them_and_nowhere_else() {
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
