//! Sandboxes through the REST API.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hearth_types::Secret;
use http::Method;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Call, Endpoint};
use crate::{Error, Sandbox};

/// How long a call may take. A create may wait for a busy node.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

/// What a sandbox is to be.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// Template reference.
    #[serde(rename = "templateID")]
    pub template: String,
    /// Seconds until it expires; `None`: the server's default.
    #[serde(rename = "timeout", skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Texts to find it by.
    pub metadata: BTreeMap<String, String>,
    /// Environment of its commands.
    pub env_vars: BTreeMap<String, String>,
    /// `Some(false)`: no way out.
    #[serde(rename = "allow_internet_access", skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
}

impl NewSandbox {
    /// A sandbox of a template, with defaults for everything else.
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

/// What the server tells about a sandbox.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// The template it was created from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// `running` or `paused`.
    pub state: String,
    /// When it was started.
    pub started_at: jiff::Timestamp,
    /// When it expires.
    pub end_at: jiff::Timestamp,
    /// Texts to find it by.
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

/// A client with its team's key. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) api: Endpoint,
    pub(crate) edge: Endpoint,
    key: Secret,
}

impl Client {
    /// A client of the API at `api_url` whose sandboxes are reached through the edge at `edge_url`; nothing is sent yet.
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

    /// Creates a sandbox; it answers when this returns. Dropping the future may leave one that expires by itself.
    pub async fn create(&self, new: &NewSandbox) -> Result<Sandbox, Error> {
        let body = serde_json::to_vec(new).expect("texts and numbers have a JSON form");
        let created: Created = self.api.json(self.call(Method::POST, "/v2/sandboxes", body.into())).await?;
        Ok(Sandbox::new(self.clone(), created.sandbox_id, created.envd_access_token.map(Secret::new)))
    }

    /// A sandbox that is known to be there, by its id and its token.
    #[must_use]
    pub fn attach(&self, sandbox_id: &str, token: Option<Secret>) -> Sandbox {
        Sandbox::new(self.clone(), sandbox_id.to_owned(), token)
    }

    /// What the server knows of a sandbox.
    pub async fn info(&self, sandbox_id: &str) -> Result<SandboxDetail, Error> {
        let path = format!("/sandboxes/{sandbox_id}");
        self.api.json(self.call(Method::GET, &path, Bytes::new())).await
    }

    /// The first page of running sandboxes, newest first.
    pub async fn list(&self) -> Result<Vec<SandboxDetail>, Error> {
        self.api.json(self.call(Method::GET, "/v2/sandboxes?limit=100", Bytes::new())).await
    }

    /// Ends a sandbox. One that is not there is an error; see [`Error::is_not_found`].
    pub async fn kill(&self, sandbox_id: &str) -> Result<(), Error> {
        let path = format!("/sandboxes/{sandbox_id}");
        self.api.send(self.call(Method::DELETE, &path, Bytes::new())).await.map(drop)
    }

    /// Lets a sandbox expire in that many seconds from now.
    pub async fn set_timeout(&self, sandbox_id: &str, seconds: u32) -> Result<(), Error> {
        let path = format!("/sandboxes/{sandbox_id}/timeout");
        let body = format!("{{\"timeout\":{seconds}}}");
        self.api.send(self.call(Method::POST, &path, body.into())).await.map(drop)
    }
}
