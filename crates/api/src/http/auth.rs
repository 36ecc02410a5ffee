//! Who calls, and for which team.
//!
//! ```text
//!   X-API-Key                        a team                   ─┐
//!   Authorization: Bearer + X-Team-ID  a user, for a team of theirs  ├─▶ Reader, Writer: the team
//!   X-Admin-Token + X-Team-ID        an operator, for any team  ─┘
//!   Authorization: Bearer            a user                   ───▶ Caller
//!   X-Admin-Token                    an operator              ───▶ Operator
//! ```
//!
//! A handler asks for one of these types, so that a route without a check does not come to be by forgetting one. Whoever
//! passes any of the schemes of a route is let in; a scheme that fails is told only if no other passes.

pub(crate) mod bearer;
mod published;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use hearth_stdx::chain;
use hearth_store::{ApiKey, KeySecret, Standing, Team, User};
use hearth_types::TeamId;
use http::request::Parts;
use http::{HeaderName, StatusCode, header};
use subtle::ConstantTimeEq as _;

use self::bearer::Holder;
pub(crate) use self::bearer::Verifier;
pub use self::bearer::WrongKeys;
use super::rate::{self, Slot};
use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::{now, time_left};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const TEAM_ID: HeaderName = HeaderName::from_static("x-team-id");
const ADMIN_TOKEN: HeaderName = HeaderName::from_static("x-admin-token");
const BEARER: &str = "Bearer ";

/// The use of a key is noted at most this often: noting it is a commit to the disk.
const LAST_USED_PRECISION: Duration = Duration::from_secs(60);

/// A team that may look and delete. Blocked teams may, too.
#[derive(Debug)]
pub(crate) struct Reader(pub(crate) Team);

/// A team that may use what its limits allow.
#[derive(Debug)]
pub(crate) struct Writer(pub(crate) Team);

/// A person or an operator who looks after a team's keys, and may look and delete.
#[derive(Debug)]
pub(crate) struct Keeper(pub(crate) Team);

/// The same, who may also change what is there.
#[derive(Debug)]
pub(crate) struct Editor(pub(crate) Team);

/// A person who may do everything for a team.
#[derive(Debug)]
pub(crate) struct Member(pub(crate) Team, pub(crate) User);

/// A person.
#[derive(Debug)]
pub(crate) struct Caller(pub(crate) User);

/// Whoever runs this server.
#[derive(Debug)]
pub(crate) struct Operator;

/// A way to speak for a team.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Key,
    User,
    Operator,
}

const ANY: &[Scheme] = &[Scheme::Key, Scheme::User, Scheme::Operator];
const PEOPLE: &[Scheme] = &[Scheme::User, Scheme::Operator];
const USERS: &[Scheme] = &[Scheme::User];

/// Who was let in.
struct Admitted {
    team: Team,
    user: Option<User>,
}

impl FromRequestParts<Arc<Control>> for Reader {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        admit(parts, control, ANY).await.and_then(may_look).map(|admitted| Self(admitted.team))
    }
}

impl FromRequestParts<Arc<Control>> for Writer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        admit(parts, control, ANY).await.and_then(may_act).map(|admitted| Self(admitted.team))
    }
}

impl FromRequestParts<Arc<Control>> for Keeper {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        admit(parts, control, PEOPLE).await.and_then(may_look).map(|admitted| Self(admitted.team))
    }
}

impl FromRequestParts<Arc<Control>> for Editor {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        admit(parts, control, PEOPLE).await.and_then(may_act).map(|admitted| Self(admitted.team))
    }
}

impl FromRequestParts<Arc<Control>> for Member {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        let Admitted { team, user } = admit(parts, control, USERS).await.and_then(may_act)?;
        user.map(|user| Self(team, user)).ok_or_else(|| unauthorized("no user token"))
    }
}

impl FromRequestParts<Arc<Control>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        match user(parts, control).await? {
            Some(user) => Ok(Self(user)),
            None => Err(unauthorized("no user token: send one in the header Authorization")),
        }
    }
}

impl FromRequestParts<Arc<Control>> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        match is_operator(parts, control)? {
            true => Ok(Self),
            false => Err(unauthorized("no admin token: send one in the header X-Admin-Token")),
        }
    }
}

fn unauthorized(message: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::new(StatusCode::UNAUTHORIZED, message)
}

fn may_look(admitted: Admitted) -> Result<Admitted, Failure> {
    match &admitted.team.standing {
        Standing::Active | Standing::Blocked { .. } => Ok(admitted),
        Standing::Banned { reason } => Err(excluded("banned", reason)),
    }
}

fn may_act(admitted: Admitted) -> Result<Admitted, Failure> {
    match &admitted.team.standing {
        Standing::Active => Ok(admitted),
        Standing::Blocked { reason } => Err(excluded("blocked", reason)),
        Standing::Banned { reason } => Err(excluded("banned", reason)),
    }
}

fn excluded(how: &str, reason: &str) -> Failure {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Failure::new(StatusCode::FORBIDDEN, format!("your team is {how}{reason}"))
}

/// Finds out who calls, by the first scheme that passes, and counts the request against the team's rate.
async fn admit(parts: &Parts, control: &Arc<Control>, schemes: &[Scheme]) -> Result<Admitted, Failure> {
    let mut refusals = Vec::new();
    let mut admitted = None;
    for scheme in schemes {
        let tried = match scheme {
            Scheme::Key => by_key(parts, control).await,
            Scheme::User => by_user(parts, control).await,
            Scheme::Operator => by_operator(parts, control).await,
        };
        match tried {
            Ok(Some(found)) => {
                admitted = Some(found);
                break;
            }
            Ok(None) => {}
            Err(refusal) if refusal.status() == StatusCode::UNAUTHORIZED => refusals.push(refusal),
            Err(failure) => return Err(failure),
        }
    }
    let Some(admitted) = admitted else { return Err(nobody(parts, schemes, refusals)) };
    tracing::Span::current().record("team", tracing::field::display(admitted.team.id));
    let slot = parts.extensions.get::<Slot>();
    control.rates.count(rate::Who::Team(admitted.team.id), slot)?;
    Ok(admitted)
}

/// No scheme passed.
fn nobody(parts: &Parts, schemes: &[Scheme], refusals: Vec<Failure>) -> Failure {
    let missing = if schemes.contains(&Scheme::Key) {
        "no API key: send one in the header X-API-Key"
    } else {
        "no user token: send one in the header Authorization, and a team in X-Team-ID"
    };
    match refusals.into_iter().next() {
        None => unauthorized(missing),
        // Who sends something else instead of a key most likely does not know that a key is what is wanted.
        Some(refusal) if schemes.contains(&Scheme::Key) && !parts.headers.contains_key(API_KEY) => {
            unauthorized(format!("{missing} ({})", refusal.message()))
        }
        Some(refusal) => refusal,
    }
}

async fn by_key(parts: &Parts, control: &Arc<Control>) -> Result<Option<Admitted>, Failure> {
    let Some(presented) = parts.headers.get(API_KEY) else { return Ok(None) };
    // All that is wrong with a key is said the same way, whether it never was one or is none of ours.
    let invalid = || unauthorized("invalid API key");
    let secret: KeySecret = presented.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
    let found = control.store.authenticate(&secret.hash()).await;
    let (team, key) = found.map_err(|error| Failure::internal("looking up an API key", &error))?.ok_or_else(invalid)?;
    note_use(control, &key);
    Ok(Some(Admitted { team, user: None }))
}

async fn by_user(parts: &Parts, control: &Arc<Control>) -> Result<Option<Admitted>, Failure> {
    let Some(user) = user(parts, control).await? else { return Ok(None) };
    let Some(team_id) = team_id(parts)? else {
        return Err(unauthorized("a user token needs a team: send its ID in the header X-Team-ID"));
    };
    let found = control.store.membership(user.id, team_id).await;
    let found = found.map_err(|error| Failure::internal("looking up a membership", &error))?;
    // A team that is none of theirs is as unknown as one that never was.
    let team = found.ok_or_else(|| unauthorized("you are not a member of this team"))?;
    Ok(Some(Admitted { team, user: Some(user) }))
}

async fn by_operator(parts: &Parts, control: &Arc<Control>) -> Result<Option<Admitted>, Failure> {
    if !is_operator(parts, control)? {
        return Ok(None);
    }
    let Some(team_id) = team_id(parts)? else {
        return Err(unauthorized("an admin token needs a team here: send its ID in the header X-Team-ID"));
    };
    let found = control.store.team(team_id).await.map_err(|error| Failure::internal("looking up a team", &error))?;
    let team = found.ok_or_else(|| Failure::not_found("there is no such team"))?;
    Ok(Some(Admitted { team, user: None }))
}

/// The team that a request names.
fn team_id(parts: &Parts) -> Result<Option<TeamId>, Failure> {
    let Some(text) = parts.headers.get(TEAM_ID) else { return Ok(None) };
    let parsed = text.to_str().ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| unauthorized("the header X-Team-ID holds no team ID"))
}

/// The person that a request's token is about.
async fn user(parts: &Parts, control: &Arc<Control>) -> Result<Option<User>, Failure> {
    let Some(presented) = parts.headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = presented.to_str().ok().and_then(|text| text.get(..BEARER.len()).zip(text.get(BEARER.len()..)));
    let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER)).map(|(_, token)| token.trim());
    let holder = token.and_then(|token| control.verifier.holder(token));
    // Neither why nor whose: who may know that has the token's issuer to ask. The log has more.
    let invalid = || unauthorized("invalid user token");
    let found = match holder.ok_or_else(invalid)? {
        Holder::Login(id) => control.store.user_by_login(id, now()).await,
        Holder::Subject(subject) => control.store.user_by_subject(&subject).await,
    };
    let found = found.map_err(|error| Failure::internal("looking up a user", &error))?;
    found.map(Some).ok_or_else(invalid)
}

fn is_operator(parts: &Parts, control: &Control) -> Result<bool, Failure> {
    let Some(presented) = parts.headers.get(ADMIN_TOKEN) else { return Ok(false) };
    let known = control.config.admin_token.as_ref();
    // The time this takes tells at most how long the token is.
    let is_right = known.is_some_and(|known| known.expose().as_bytes().ct_eq(presented.as_bytes()).into());
    if is_right { Ok(true) } else { Err(unauthorized("invalid admin token")) }
}

/// Notes the use of a key, in the background and not too often.
fn note_use(control: &Arc<Control>, key: &ApiKey) {
    let now = now();
    if key.last_used_at.is_some_and(|last| time_left(now, last) < LAST_USED_PRECISION) {
        return;
    }
    // One at a time: what is skipped now is noted with the key's next use.
    let Ok(permit) = Arc::clone(&control.key_use).try_acquire_owned() else { return };
    let (store, key_id) = (control.store.clone(), key.id);
    control.tasks.spawn("key use", async move {
        if let Err(error) = store.touch_api_key(key_id, now).await {
            tracing::warn!(key = %key_id, error = %chain(&error), "the use of an API key was not noted");
        }
        drop(permit);
    });
}
