//! `/api-keys`: the keys of a team, looked after by its members or by an operator.

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
use crate::http::auth::{Editor, Keeper, Member};
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::ApiKeyPath;

/// Longest name of a key.
const NAME_CHARS_MAX: usize = 128;

/// List the API keys of a team
#[utoipa::path(
    get, path = "/api-keys", tag = tag::KEYS, operation_id = "listApiKeys",
    responses((status = 200, description = "All of them.", body = Vec<Described>))
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    Keeper(team): Keeper,
) -> Result<Json<Vec<Described>>, Failure> {
    let keys = control.store.api_keys(team.id).await;
    let keys = keys.map_err(|error| Failure::internal("reading the API keys of a team", &error))?;
    Ok(Json(keys.into_iter().map(|(key, user)| describe(key, user)).collect()))
}

/// Make an API key
///
/// The only time that it is shown.
#[utoipa::path(
    post, path = "/api-keys", tag = tag::KEYS, operation_id = "createApiKey",
    request_body = KeyName,
    responses((status = 201, description = "This is it.", body = CreatedApiKey))
)]
pub(crate) async fn create(
    State(control): State<Arc<Control>>,
    Member(team, user): Member,
    body: Body,
) -> Result<(StatusCode, Json<CreatedApiKey>), Failure> {
    let name = name(body::required(&control.config, body).await?)?;
    make(&control, team.id, Some(user), &name).await
}

/// Give an API key another name
#[utoipa::path(
    patch, path = "/api-keys/{apiKeyID}", tag = tag::KEYS, operation_id = "renameApiKey",
    params(ApiKeyPath), request_body = KeyName,
    responses(
        (status = 200, description = "It has it.", body = Described),
        (status = 404, description = "The team has no such key, or there is no such team."),
    )
)]
pub(crate) async fn rename(
    State(control): State<Arc<Control>>,
    Editor(team): Editor,
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
/// Blocked teams may do it, too.
#[utoipa::path(
    delete, path = "/api-keys/{apiKeyID}", tag = tag::KEYS, operation_id = "deleteApiKey",
    params(ApiKeyPath),
    responses(
        (status = 204, description = "Nobody gets in with it any more."),
        (status = 404, description = "The team has no such key, or there is no such team."),
    )
)]
pub(crate) async fn delete(
    State(control): State<Arc<Control>>,
    Keeper(team): Keeper,
    ApiKeyPath(id): ApiKeyPath,
) -> Result<StatusCode, Failure> {
    revoke(&control, team.id, id).await
}

/// Makes a key of a team, as a user or as an operator.
pub(super) async fn make(
    control: &Control,
    team_id: TeamId,
    user: Option<User>,
    name: &str,
) -> Result<(StatusCode, Json<CreatedApiKey>), Failure> {
    let secret = KeySecret::generate();
    let made = control.store.create_api_key_by(user.as_ref().map(|user| user.id), team_id, name, &secret).await;
    let key = made.map_err(|error| match error {
        CreateApiKeyError::UnknownTeam { .. } => Failure::not_found("there is no such team"),
        CreateApiKeyError::TooMany { max } => Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("your team has {max} API keys, the most it may have: revoke one first"),
        ),
        CreateApiKeyError::Store(error) => Failure::internal("making an API key", &error),
        error => Failure::internal("making an API key", &error),
    })?;
    let created = CreatedApiKey { key: secret.expose().to_owned(), described: describe(key, user) };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revokes a key of a team. Requests with it that are under way go on.
pub(super) async fn revoke(control: &Control, team_id: TeamId, id: ApiKeyId) -> Result<StatusCode, Failure> {
    let revoked = control.store.delete_api_key(team_id, id).await;
    match revoked.map_err(|error| Failure::internal("revoking an API key", &error))? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(not_found()),
    }
}

/// A name that can be kept and shown.
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
