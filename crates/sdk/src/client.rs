//! REST API client and its types.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hearth_types::Secret;
use http::Method;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Call, Endpoint};
use crate::{Error, Sandbox};

/// Timeout of a call. A create may wait for a busy node.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

/// Settings of a new sandbox.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// Template reference.
    #[serde(rename = "templateID")]
    pub template: String,
    /// Seconds until it expires; `None` for the server's default.
    #[serde(rename = "timeout", skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// User-defined pairs, by which sandboxes can be filtered.
    pub metadata: BTreeMap<String, String>,
    /// Environment variables of its commands.
    pub env_vars: BTreeMap<String, String>,
    /// `Some(false)` disables internet access.
    #[serde(rename = "allow_internet_access", skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
}

impl NewSandbox {
    /// Returns the settings of a sandbox from a template, with defaults for everything else.
    #[must_use]
    pub fn of(template: &str) -> Self {
        Self {
            template: template.to_owned(),
            timeout_seconds: None,
            metadata: BTreeMap::new(),
            env_vars: BTreeMap::new(),
            allow_internet_access: None,
        }
    }
}

/// Description of a sandbox by the server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Template from which it was created.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// `running` or `paused`.
    pub state: String,
    pub started_at: jiff::Timestamp,
    /// Time at which it expires.
    pub end_at: jiff::Timestamp,
    /// User-defined pairs.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "envdAccessToken")]
    envd_access_token: Option<String>,
}

/// API client with a team's API key. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) api: Endpoint,
    pub(crate) edge: Endpoint,
    key: Secret,
}

impl Client {
    /// Returns a client of the API at `api_url` and the edge at `edge_url`, without connecting.
    ///
    /// # Errors
    /// A URL is not of the form `http://host:port`.
    pub fn new(api_url: &str, edge_url: &str, key: Secret) -> Result<Self, Error> {
        Ok(Self { api: Endpoint::new(api_url)?, edge: Endpoint::new(edge_url)?, key })
    }

    fn call<'a>(&self, method: Method, path: &'a str, body: Bytes) -> Call<'a> {
        let headers = vec![("x-api-key", self.key.expose().to_owned())];
        Call { method, path, headers, body, timeout: CALL_TIMEOUT }
    }

    /// Creates a sandbox and returns when it is ready.
    ///
    /// Dropping the future may leave a sandbox, which expires by itself.
    pub async fn create(&self, new: &NewSandbox) -> Result<Sandbox, Error> {
        let body = serde_json::to_vec(new).expect("texts and numbers have a JSON form");
        let created: Created = self.api.json(self.call(Method::POST, "/v2/sandboxes", body.into())).await?;
        Ok(Sandbox::new(self.clone(), created.sandbox_id, created.envd_access_token.map(Secret::new)))
    }

    /// Returns a handle to an existing sandbox, by its id and its access token.
    #[must_use]
    pub fn attach(&self, sandbox_id: &str, token: Option<Secret>) -> Sandbox {
        Sandbox::new(self.clone(), sandbox_id.to_owned(), token)
    }

    /// Fetches the description of a sandbox.
    pub async fn info(&self, sandbox_id: &str) -> Result<SandboxDetail, Error> {
        let path = format!("/sandboxes/{sandbox_id}");
        self.api.json(self.call(Method::GET, &path, Bytes::new())).await
    }

    /// Fetches the first page of running sandboxes, newest first.
    pub async fn list(&self) -> Result<Vec<SandboxDetail>, Error> {
        self.api.json(self.call(Method::GET, "/v2/sandboxes?limit=100", Bytes::new())).await
    }

    /// Kills a sandbox. A missing one is an error; see [`Error::is_not_found`].
    pub async fn kill(&self, sandbox_id: &str) -> Result<(), Error> {
        let path = format!("/sandboxes/{sandbox_id}");
        self.api.send(self.call(Method::DELETE, &path, Bytes::new())).await.map(drop)
    }

    /// Sets the end time of a sandbox; `seconds` counts from now.
    pub async fn set_timeout(&self, sandbox_id: &str, seconds: u32) -> Result<(), Error> {
        let path = format!("/sandboxes/{sandbox_id}/timeout");
        let body = format!("{{\"timeout\":{seconds}}}");
        self.api.send(self.call(Method::POST, &path, body.into())).await.map(drop)
    }
}
