//! Extractors for path parameters.
//!
//! Routes are matched on the raw path and each segment is decoded afterwards, so `%2F` and `%3A` do not split a
//! segment.

use axum::extract::{FromRequestParts, RawPathParams};
use hearth_types::{ApiKeyId, SandboxId, TeamId};
use http::request::Parts;
use utoipa::IntoParams;

use crate::failure::Failure;

const SANDBOX_ID: &str = "sandboxID";
const TEAM_ID: &str = "teamID";
const API_KEY_ID: &str = "apiKeyID";
const NODE_ID: &str = "nodeID";
const ALIAS: &str = "alias";

/// Sandbox ID in a path.
#[derive(Debug, IntoParams)]
#[into_params(names("sandboxID"), parameter_in = Path)]
pub(crate) struct SandboxPath(
    /// ID of the sandbox, optionally followed by a dash and a client ID.
    #[param(value_type = String, pattern = "^[a-z0-9]{1,64}(-[^-]*)?$")]
    pub(crate) SandboxId,
);

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = parameter(parts, state, SANDBOX_ID).await?;
        let sandbox_id = parse_sandbox_id(&text)?;
        tracing::Span::current().record("sandbox", tracing::field::display(&sandbox_id));
        Ok(Self(sandbox_id))
    }
}

/// Team ID in a path.
#[derive(Debug, IntoParams)]
#[into_params(names("teamID"), parameter_in = Path)]
pub(crate) struct TeamPath(
    /// ID of the team.
    #[param(value_type = String, format = Uuid)]
    pub(crate) TeamId,
);

impl<S: Send + Sync> FromRequestParts<S> for TeamPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = parameter(parts, state, TEAM_ID).await?;
        text.parse().map(Self).map_err(|_| Failure::bad_request("invalid team ID"))
    }
}

/// API key ID in a path.
#[derive(Debug, IntoParams)]
#[into_params(names("apiKeyID"), parameter_in = Path)]
pub(crate) struct ApiKeyPath(
    /// ID of the API key.
    #[param(value_type = String, format = Uuid)]
    pub(crate) ApiKeyId,
);

impl<S: Send + Sync> FromRequestParts<S> for ApiKeyPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = parameter(parts, state, API_KEY_ID).await?;
        text.parse().map(Self).map_err(|_| Failure::bad_request("invalid API key ID"))
    }
}

/// Decoded name of a node in a path. It is not validated.
#[derive(Debug, IntoParams)]
#[into_params(names("nodeID"), parameter_in = Path)]
pub(crate) struct NodePath(
    /// Name of the node.
    #[param(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub(crate) String,
);

impl<S: Send + Sync> FromRequestParts<S> for NodePath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        parameter(parts, state, NODE_ID).await.map(Self)
    }
}

/// Decoded text of a template alias in a path. It is not validated.
#[derive(Debug, IntoParams)]
#[into_params(names("alias"), parameter_in = Path)]
pub(crate) struct AliasPath(
    /// Template reference `[namespace/]name[:tag]` as one percent-encoded segment.
    #[param(pattern = "^([A-Za-z0-9_-]+/)?[A-Za-z0-9_-]+(:[A-Za-z0-9_.-]+)?$", max_length = 386)]
    pub(crate) String,
);

impl<S: Send + Sync> FromRequestParts<S> for AliasPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        parameter(parts, state, ALIAS).await.map(Self)
    }
}

async fn parameter<S: Send + Sync>(parts: &mut Parts, state: &S, name: &'static str) -> Result<String, Failure> {
    let invalid = || Failure::bad_request(format!("invalid {name} in the path"));
    let parameters = RawPathParams::from_request_parts(parts, state).await.map_err(|_| invalid())?;
    let found = parameters.iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| value.to_owned()).ok_or_else(invalid)
}

/// Parses a sandbox ID, optionally followed by a dash and a client ID, which is the format of old IDs.
fn parse_sandbox_id(text: &str) -> Result<SandboxId, Failure> {
    let id = match text.split_once('-') {
        Some((_, client)) if client.contains('-') => return Err(Failure::bad_request("invalid sandbox ID")),
        Some((id, _)) => id,
        None => text,
    };
    id.parse().map_err(|_| Failure::bad_request("invalid sandbox ID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_after_a_dash_are_ignored() {
        for (text, expected) in [
            ("i0123456789abcdefghij", Some("i0123456789abcdefghij")),
            ("abc-6532622b", Some("abc")),
            ("abc-", Some("abc")),
            ("a-b-c", None),
            ("-6532622b", None),
            ("", None),
            ("ABC", None),
            ("a_b", None),
            ("a b", None),
            ("é", None),
        ] {
            let parsed = parse_sandbox_id(text).ok();
            assert_eq!(parsed.as_ref().map(SandboxId::as_str), expected, "{text}");
        }
    }
}
