//! Authentication: extractors for the calling team, user or operator.
//!
//! ```text
//!   X-API-Key                          a team                         ─┐
//!   Authorization: Bearer + X-Team-ID  a user, for one of their teams ─┼─▶ UnbannedTeam, ActiveTeam
//!   X-Admin-Token + X-Team-ID          an operator, for any team      ─┘
//!   Authorization: Bearer              a user                         ───▶ AuthenticatedUser
//!   X-Admin-Token                      an operator                    ───▶ Operator
//! ```
//!
//! Every handler that needs authentication takes one of these types as an argument, so a handler cannot use a team
//! without a check. A request is accepted when one scheme of the route succeeds; the error of a failed scheme is
//! returned only if all of them fail.

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

pub use self::bearer::KeySetError;
use self::bearer::Principal;
pub(crate) use self::bearer::Verifier;
use super::rate::{QuotaCell, RateKey};
use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::{now, time_until};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const TEAM_ID: HeaderName = HeaderName::from_static("x-team-id");
const ADMIN_TOKEN: HeaderName = HeaderName::from_static("x-admin-token");
const BEARER: &str = "Bearer ";

/// Minimum time between two stored uses of a key, because each of them is a commit to the disk.
const LAST_USED_PRECISION: Duration = Duration::from_secs(60);

/// Team that is active or blocked, for routes that read or delete. Admits all schemes.
#[derive(Debug)]
pub(crate) struct UnbannedTeam(pub(crate) Team);

/// Team that is active, for routes that create or change. Admits all schemes.
#[derive(Debug)]
pub(crate) struct ActiveTeam(pub(crate) Team);

/// Team that is active or blocked. Admits users and operators, but no API keys.
#[derive(Debug)]
pub(crate) struct ManagedUnbannedTeam(pub(crate) Team);

/// Team that is active. Admits users and operators, but no API keys.
#[derive(Debug)]
pub(crate) struct ManagedActiveTeam(pub(crate) Team);

/// Team that is active, and the calling user, who is a member of it.
#[derive(Debug)]
pub(crate) struct Member(pub(crate) Team, pub(crate) User);

/// User of a valid user token, independent of a team.
#[derive(Debug)]
pub(crate) struct AuthenticatedUser(pub(crate) User);

/// Caller with the admin token of this server.
#[derive(Debug)]
pub(crate) struct Operator;

/// Authentication scheme that selects a team.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Key,
    User,
    Operator,
}

const ALL_SCHEMES: &[Scheme] = &[Scheme::Key, Scheme::User, Scheme::Operator];
const MANAGER_SCHEMES: &[Scheme] = &[Scheme::User, Scheme::Operator];
const USER_SCHEME: &[Scheme] = &[Scheme::User];

/// Result of a successful scheme.
struct Authenticated {
    team: Team,
    /// `None` for an API key or an operator.
    user: Option<User>,
}

impl FromRequestParts<Arc<Control>> for UnbannedTeam {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        authenticate(parts, control, ALL_SCHEMES).await.and_then(require_unbanned).map(|caller| Self(caller.team))
    }
}

impl FromRequestParts<Arc<Control>> for ActiveTeam {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        authenticate(parts, control, ALL_SCHEMES).await.and_then(require_active).map(|caller| Self(caller.team))
    }
}

impl FromRequestParts<Arc<Control>> for ManagedUnbannedTeam {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        authenticate(parts, control, MANAGER_SCHEMES).await.and_then(require_unbanned).map(|caller| Self(caller.team))
    }
}

impl FromRequestParts<Arc<Control>> for ManagedActiveTeam {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        authenticate(parts, control, MANAGER_SCHEMES).await.and_then(require_active).map(|caller| Self(caller.team))
    }
}

impl FromRequestParts<Arc<Control>> for Member {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        let Authenticated { team, user } = authenticate(parts, control, USER_SCHEME).await.and_then(require_active)?;
        user.map(|user| Self(team, user)).ok_or_else(|| unauthorized("no user token"))
    }
}

impl FromRequestParts<Arc<Control>> for AuthenticatedUser {
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

fn require_unbanned(caller: Authenticated) -> Result<Authenticated, Failure> {
    match &caller.team.standing {
        Standing::Active | Standing::Blocked { .. } => Ok(caller),
        Standing::Banned { reason } => Err(forbidden("banned", reason)),
    }
}

fn require_active(caller: Authenticated) -> Result<Authenticated, Failure> {
    match &caller.team.standing {
        Standing::Active => Ok(caller),
        Standing::Blocked { reason } => Err(forbidden("blocked", reason)),
        Standing::Banned { reason } => Err(forbidden("banned", reason)),
    }
}

fn forbidden(standing: &str, reason: &str) -> Failure {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Failure::new(StatusCode::FORBIDDEN, format!("your team is {standing}{reason}"))
}

/// Returns the caller by the first scheme that succeeds, and counts the request against the team's rate limit.
async fn authenticate(parts: &Parts, control: &Arc<Control>, schemes: &[Scheme]) -> Result<Authenticated, Failure> {
    let mut rejections = Vec::new();
    let mut authenticated = None;
    for scheme in schemes {
        let tried = match scheme {
            Scheme::Key => by_key(parts, control).await,
            Scheme::User => by_user(parts, control).await,
            Scheme::Operator => by_operator(parts, control).await,
        };
        match tried {
            Ok(Some(caller)) => {
                authenticated = Some(caller);
                break;
            }
            Ok(None) => {}
            Err(rejection) if rejection.status() == StatusCode::UNAUTHORIZED => rejections.push(rejection),
            Err(failure) => return Err(failure),
        }
    }
    let Some(caller) = authenticated else { return Err(unauthenticated(parts, schemes, rejections)) };
    tracing::Span::current().record("team", tracing::field::display(caller.team.id));
    let quota = parts.extensions.get::<QuotaCell>();
    control.rates.count(RateKey::Team(caller.team.id), quota)?;
    Ok(caller)
}

/// Returns the failure of a request for which no scheme succeeded.
fn unauthenticated(parts: &Parts, schemes: &[Scheme], rejections: Vec<Failure>) -> Failure {
    let missing = if schemes.contains(&Scheme::Key) {
        "no API key: send one in the header X-API-Key"
    } else {
        "no user token: send one in the header Authorization, and a team in X-Team-ID"
    };
    match rejections.into_iter().next() {
        None => unauthorized(missing),
        // A client that sends another credential instead of a key most likely does not know that the route takes a key.
        Some(rejection) if schemes.contains(&Scheme::Key) && !parts.headers.contains_key(API_KEY) => {
            unauthorized(format!("{missing} ({})", rejection.message()))
        }
        Some(rejection) => rejection,
    }
}

async fn by_key(parts: &Parts, control: &Arc<Control>) -> Result<Option<Authenticated>, Failure> {
    let Some(presented) = parts.headers.get(API_KEY) else { return Ok(None) };
    // A malformed key and an unknown key get the same reply.
    let invalid = || unauthorized("invalid API key");
    let secret: KeySecret = presented.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
    let found = control.store.authenticate(&secret.hash()).await;
    let (team, key) = found.map_err(|error| Failure::internal("looking up an API key", &error))?.ok_or_else(invalid)?;
    record_use(control, &key);
    Ok(Some(Authenticated { team, user: None }))
}

async fn by_user(parts: &Parts, control: &Arc<Control>) -> Result<Option<Authenticated>, Failure> {
    let Some(user) = user(parts, control).await? else { return Ok(None) };
    let Some(team_id) = team_id(parts)? else {
        return Err(unauthorized("a user token needs a team: send its ID in the header X-Team-ID"));
    };
    let found = control.store.membership(user.id, team_id).await;
    let found = found.map_err(|error| Failure::internal("looking up a membership", &error))?;
    // Another team and a team that does not exist get the same reply.
    let team = found.ok_or_else(|| unauthorized("you are not a member of this team"))?;
    Ok(Some(Authenticated { team, user: Some(user) }))
}

async fn by_operator(parts: &Parts, control: &Arc<Control>) -> Result<Option<Authenticated>, Failure> {
    if !is_operator(parts, control)? {
        return Ok(None);
    }
    let Some(team_id) = team_id(parts)? else {
        return Err(unauthorized("an admin token needs a team here: send its ID in the header X-Team-ID"));
    };
    let found = control.store.team(team_id).await.map_err(|error| Failure::internal("looking up a team", &error))?;
    let team = found.ok_or_else(|| Failure::not_found("there is no such team"))?;
    Ok(Some(Authenticated { team, user: None }))
}

/// Returns the team in the header `X-Team-ID`, if the request has one.
fn team_id(parts: &Parts) -> Result<Option<TeamId>, Failure> {
    let Some(text) = parts.headers.get(TEAM_ID) else { return Ok(None) };
    let parsed = text.to_str().ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| unauthorized("the header X-Team-ID holds no team ID"))
}

/// Returns the user of the token in the header `Authorization`, if the request has one.
async fn user(parts: &Parts, control: &Arc<Control>) -> Result<Option<User>, Failure> {
    let Some(presented) = parts.headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = presented.to_str().ok().and_then(|text| text.get(..BEARER.len()).zip(text.get(BEARER.len()..)));
    let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER)).map(|(_, token)| token.trim());
    let principal = token.and_then(|token| control.verifier.principal(token));
    // The reply has neither the reason nor the subject. The debug log has the reason.
    let invalid = || unauthorized("invalid user token");
    let found = match principal.ok_or_else(invalid)? {
        Principal::Login(id) => control.store.user_by_login(id, now()).await,
        Principal::Subject(subject) => control.store.user_by_subject(&subject).await,
    };
    let found = found.map_err(|error| Failure::internal("looking up a user", &error))?;
    found.map(Some).ok_or_else(invalid)
}

fn is_operator(parts: &Parts, control: &Control) -> Result<bool, Failure> {
    let Some(presented) = parts.headers.get(ADMIN_TOKEN) else { return Ok(false) };
    let expected = control.config.admin_token.as_ref();
    // The duration of the comparison reveals at most the length of the token.
    let is_valid = expected.is_some_and(|expected| expected.expose().as_bytes().ct_eq(presented.as_bytes()).into());
    if is_valid { Ok(true) } else { Err(unauthorized("invalid admin token")) }
}

/// Stores the time of use of a key in the background, at most once per [`LAST_USED_PRECISION`].
fn record_use(control: &Arc<Control>, key: &ApiKey) {
    let now = now();
    if key.last_used_at.is_some_and(|last| time_until(now, last) < LAST_USED_PRECISION) {
        return;
    }
    // One write at a time: a use that is skipped here is stored with the key's next use.
    let Ok(permit) = Arc::clone(&control.key_use).try_acquire_owned() else { return };
    let (store, key_id) = (control.store.clone(), key.id);
    control.tasks.spawn("key use", async move {
        if let Err(error) = store.touch_api_key(key_id, now).await {
            tracing::warn!(key = %key_id, error = %chain(&error), "storing the use of an API key failed");
        }
        drop(permit);
    });
}
