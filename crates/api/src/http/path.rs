//! What a path names.
//!
//! Routes are matched on the raw path and decoded afterwards, one segment at a time, so that `%2F` and `%3A` inside of
//! a segment stay inside.

use axum::extract::{FromRequestParts, RawPathParams};
use hearth_types::{ApiKeyId, SandboxId, TeamId};
use http::request::Parts;
use utoipa::IntoParams;

use crate::failure::Failure;

/// Name of the path parameter with a sandbox id.
const SANDBOX_ID: &str = "sandboxID";
/// Name of the path parameter with a team's id.
const TEAM_ID: &str = "teamID";
/// Name of the path parameter with a key's id.
const API_KEY_ID: &str = "apiKeyID";
/// Name of the path parameter with a node's name.
const NODE_ID: &str = "nodeID";
/// Name of the path parameter with a template's alias.
const ALIAS: &str = "alias";

/// The sandbox that a path names.
#[derive(Debug, IntoParams)]
#[into_params(names("sandboxID"), parameter_in = Path)]
pub(crate) struct SandboxPath(
    /// The sandbox, by its ID alone, or followed by a dash and a client ID.
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

/// The team that a path names.
#[derive(Debug, IntoParams)]
#[into_params(names("teamID"), parameter_in = Path)]
pub(crate) struct TeamPath(
    /// The team.
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

/// The key that a path names.
#[derive(Debug, IntoParams)]
#[into_params(names("apiKeyID"), parameter_in = Path)]
pub(crate) struct ApiKeyPath(
    /// The key, by its ID.
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

/// The decoded name of a node, not yet checked.
#[derive(Debug, IntoParams)]
#[into_params(names("nodeID"), parameter_in = Path)]
pub(crate) struct NodePath(
    /// The node, by its name.
    #[param(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub(crate) String,
);

impl<S: Send + Sync> FromRequestParts<S> for NodePath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        parameter(parts, state, NODE_ID).await.map(Self)
    }
}

/// The decoded text of an alias, not yet checked.
#[derive(Debug, IntoParams)]
#[into_params(names("alias"), parameter_in = Path)]
pub(crate) struct AliasPath(
    /// A template reference as one segment: `[namespace/]name[:tag]`, percent-encoded.
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

/// The id alone, or followed by a dash and a client id, which is what ids once looked like.
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
    fn long_ids_are_cut_at_the_dash() {
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
