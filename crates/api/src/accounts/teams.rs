//! Handler of `GET /teams`: the teams and API keys for a client after a login.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api_types::account::TeamOfUser;
use hearth_store::{CreateApiKeyError, KeySecret, Standing};

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::AuthenticatedUser;
use crate::http::document::tag;

/// Name of the keys that are created for logins.
const KEY_NAME: &str = "login";

/// List the teams of the user, each with a new API key
///
/// Banned teams are omitted. Existing keys cannot be shown, so a new key is created for each team. A user has at most
/// 32 of these keys in a team; a further one replaces the least recently used key.
#[utoipa::path(
    get, path = "/teams", tag = tag::TEAMS, operation_id = "listTeams",
    responses((status = 200, description = "All teams of the user that are not banned.", body = Vec<TeamOfUser>))
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    AuthenticatedUser(user): AuthenticatedUser,
) -> Result<Json<Vec<TeamOfUser>>, Failure> {
    let failed = |error| Failure::internal("reading the teams of a user", &error);
    let mut memberships = control.store.memberships(user.id).await.map_err(failed)?;
    memberships.retain(|membership| !matches!(membership.team.standing, Standing::Banned { .. }));
    // Clients use the default team after a login, so exactly one team must be the default.
    let has_default = memberships.iter().any(|membership| membership.is_default);
    let mut teams = Vec::with_capacity(memberships.len());
    for (index, membership) in memberships.into_iter().enumerate() {
        let secret = KeySecret::generate();
        let created = control.store.create_login_key(user.id, membership.team.id, KEY_NAME, &secret).await;
        created.map_err(|error| match error {
            CreateApiKeyError::Store(error) => Failure::internal("creating an API key for a login", &error),
            error => Failure::internal("creating an API key for a login", &error),
        })?;
        teams.push(TeamOfUser {
            team_id: membership.team.id.to_string(),
            name: membership.team.name,
            api_key: secret.expose().to_owned(),
            is_default: membership.is_default || (!has_default && index == 0),
        });
    }
    Ok(Json(teams))
}
