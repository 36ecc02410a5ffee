//! `GET /teams`: what a client that just logged in needs to know.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api_types::account::TeamOfUser;
use hearth_store::{CreateApiKeyError, KeySecret, Standing};

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Caller;
use crate::http::document::tag;

/// What a key that is made for a login is called.
const KEY_NAME: &str = "login";

/// List the caller's teams, each with a new API key
///
/// Without those that are banned. A key that is there already cannot be shown, so one is made for each.
/// A user has at most 32 of these keys in a team: the least recently used one is replaced.
#[utoipa::path(
    get, path = "/teams", tag = tag::TEAMS, operation_id = "listTeams",
    responses((status = 200, description = "All of them.", body = Vec<TeamOfUser>))
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    Caller(user): Caller,
) -> Result<Json<Vec<TeamOfUser>>, Failure> {
    let failed = |error| Failure::internal("reading the teams of a user", &error);
    let mut memberships = control.store.memberships(user.id).await.map_err(failed)?;
    memberships.retain(|membership| !matches!(membership.team.standing, Standing::Banned { .. }));
    // A client logs in to the default, so there must be one.
    let has_default = memberships.iter().any(|membership| membership.is_default);
    let mut teams = Vec::with_capacity(memberships.len());
    for (index, membership) in memberships.into_iter().enumerate() {
        let secret = KeySecret::generate();
        let made = control.store.create_login_key(user.id, membership.team.id, KEY_NAME, &secret).await;
        made.map_err(|error| match error {
            CreateApiKeyError::Store(error) => Failure::internal("making an API key for a login", &error),
            error => Failure::internal("making an API key for a login", &error),
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
