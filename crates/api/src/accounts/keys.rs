//! Handlers of `/api-keys`: API keys of a team, managed by its members or by an operator.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use hearth_api_types::account::{ApiKey as Described, CreatedApiKey, Creator, KeyName, Mask};
use hearth_store::{ApiKey, CreateApiKeyError, KeyMask, KeySecret, User};
use hearth_types::{ApiKeyId, TeamId};
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::{ManagedActiveTeam, ManagedUnbannedTeam, Member};
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::ApiKeyPath;

/// Longest name of a key.
const NAME_CHARS_MAX: usize = 128;

/// List the API keys of a team
#[utoipa::path(
    get, path = "/api-keys", tag = tag::KEYS, operation_id = "listApiKeys",
    responses((status = 200, description = "All API keys of the team, masked.", body = Vec<Described>))
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    ManagedUnbannedTeam(team): ManagedUnbannedTeam,
) -> Result<Json<Vec<Described>>, Failure> {
    let keys = control.store.api_keys(team.id).await;
    let keys = keys.map_err(|error| Failure::internal("reading the API keys of a team", &error))?;
    Ok(Json(keys.into_iter().map(|(key, user)| describe(key, user)).collect()))
}

/// Create an API key
///
/// Only this reply contains the whole key.
#[utoipa::path(
    post, path = "/api-keys", tag = tag::KEYS, operation_id = "createApiKey",
    request_body = KeyName,
    responses((status = 201, description = "The new API key.", body = CreatedApiKey))
)]
pub(crate) async fn create(
    State(control): State<Arc<Control>>,
    Member(team, user): Member,
    body: Body,
) -> Result<(StatusCode, Json<CreatedApiKey>), Failure> {
    let name = name(body::required(&control.config, body).await?)?;
    issue(&control, team.id, Some(user), &name).await
}

/// Rename an API key
#[utoipa::path(
    patch, path = "/api-keys/{apiKeyID}", tag = tag::KEYS, operation_id = "renameApiKey",
    params(ApiKeyPath), request_body = KeyName,
    responses(
        (status = 200, description = "The renamed API key.", body = Described),
        (status = 404, description = "The team has no such key, or the team does not exist."),
    )
)]
pub(crate) async fn rename(
    State(control): State<Arc<Control>>,
    ManagedActiveTeam(team): ManagedActiveTeam,
    ApiKeyPath(id): ApiKeyPath,
    body: Body,
) -> Result<Json<Described>, Failure> {
    let name = name(body::required(&control.config, body).await?)?;
    let failed = |error| Failure::internal("renaming an API key", &error);
    if !control.store.rename_api_key(team.id, id, &name).await.map_err(failed)? {
        return Err(not_found());
    }
    let keys = control.store.api_keys(team.id).await.map_err(failed)?;
    let renamed = keys.into_iter().find(|(key, _)| key.id == id).ok_or_else(not_found)?;
    Ok(Json(describe(renamed.0, renamed.1)))
}

/// Revoke an API key
///
/// Later requests with the key are rejected. A blocked team may revoke keys too.
#[utoipa::path(
    delete, path = "/api-keys/{apiKeyID}", tag = tag::KEYS, operation_id = "deleteApiKey",
    params(ApiKeyPath),
    responses(
        (status = 204, description = "The key is revoked."),
        (status = 404, description = "The team has no such key, or the team does not exist."),
    )
)]
pub(crate) async fn delete(
    State(control): State<Arc<Control>>,
    ManagedUnbannedTeam(team): ManagedUnbannedTeam,
    ApiKeyPath(id): ApiKeyPath,
) -> Result<StatusCode, Failure> {
    revoke(&control, team.id, id).await
}

/// Creates a key of a team for a user, or for an operator if `user` is `None`.
pub(super) async fn issue(
    control: &Control,
    team_id: TeamId,
    user: Option<User>,
    name: &str,
) -> Result<(StatusCode, Json<CreatedApiKey>), Failure> {
    let secret = KeySecret::generate();
    let created = control.store.create_api_key_by(user.as_ref().map(|user| user.id), team_id, name, &secret).await;
    let key = created.map_err(|error| match error {
        CreateApiKeyError::UnknownTeam { .. } => Failure::not_found("there is no such team"),
        CreateApiKeyError::TooMany { max } => Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("your team has {max} API keys, the most it may have: revoke one first"),
        ),
        CreateApiKeyError::Store(error) => Failure::internal("creating an API key", &error),
        error => Failure::internal("creating an API key", &error),
    })?;
    let created = CreatedApiKey { key: secret.expose().to_owned(), described: describe(key, user) };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revokes a key of a team. Requests in progress with the key continue.
pub(super) async fn revoke(control: &Control, team_id: TeamId, id: ApiKeyId) -> Result<StatusCode, Failure> {
    let revoked = control.store.delete_api_key(team_id, id).await;
    match revoked.map_err(|error| Failure::internal("revoking an API key", &error))? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(not_found()),
    }
}

/// Trims and validates the name of a key.
pub(super) fn name(KeyName { name }: KeyName) -> Result<String, Failure> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.contains(char::is_control) {
        return Err(Failure::invalid(format_args!(
            "name must have 1 to {NAME_CHARS_MAX} characters, all of them visible"
        )));
    }
    Ok(name.to_owned())
}

fn not_found() -> Failure {
    Failure::not_found("API key not found")
}

fn describe(key: ApiKey, user: Option<User>) -> Described {
    let ApiKey { id, team_id: _, name, mask, created_at, last_used_at, created_by: _ } = key;
    let KeyMask { prefix, value_length, masked_prefix, masked_suffix } = mask;
    Described {
        id: id.to_string(),
        name,
        mask: Mask { prefix, value_length, masked_value_prefix: masked_prefix, masked_value_suffix: masked_suffix },
        created_at,
        created_by: user.map(|user| Creator { id: user.id.to_string(), email: user.email }),
        last_used: last_used_at,
    }
}
