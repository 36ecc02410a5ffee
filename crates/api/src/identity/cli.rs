//! Handlers of `/docs/api/cli`, the login page of the command line.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hearth_proxy::serve::Peer;
use hearth_store::{LoginTimes, Proof, Standing, User};
use hearth_types::Secret;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};

use super::address::Address;
use super::form::Form;
use super::page::{LoginError, Page, private};
use super::password::{Outcome, PasswordAttempt};
use super::target::LoopbackTarget;
use super::{CLIENT_ID, REVOKE, TOKEN};
use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::now;

/// Header with which a browser reports the relation to the requesting site (Fetch Metadata Request Headers).
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// `GET /docs/api/cli`: shows the login page with `next`, or the result of a login with `state`.
pub(crate) async fn show(State(control): State<Arc<Control>>, uri: Uri) -> Response {
    let query = Form::parse(uri.query().unwrap_or_default().as_bytes());
    match (query.get("state"), query.get("next")) {
        (Some("success"), _) => Page::LoggedIn { email: query.filled("email") }.into_response(),
        (Some("error"), _) => {
            Page::Failed { reason: query.filled("error").unwrap_or("no reason was given") }.into_response()
        }
        (_, Some(next)) => match next.parse() {
            Ok(target) => login_page(&control, target).await.unwrap_or_else(failed),
            Err(_) => invalid_target(),
        },
        _ => rejected(StatusCode::BAD_REQUEST, "The parameter `next` is missing or repeated."),
    }
}

/// Returns the page that starts a login.
async fn login_page(control: &Control, target: LoopbackTarget) -> Result<Response, Failure> {
    if let Some(provider) = &control.login_service.provider {
        return Ok(Page::Provider { target, issuer: provider.host() }.into_response());
    }
    let found = control.store.has_passwords().await;
    let has_passwords = found.map_err(|error| Failure::internal("looking up passwords", &error))?;
    let form = Page::Form { target, email: "", error: None };
    Ok(if has_passwords { form.into_response() } else { Page::NoPasswords.into_response() })
}

/// `POST /docs/api/cli`: checks a password.
pub(crate) async fn submit(
    State(control): State<Arc<Control>>,
    peer: Option<Extension<Peer>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if control.login_service.provider.is_some() {
        return rejected(
            StatusCode::FORBIDDEN,
            "This server does not accept passwords: log in at the identity provider.",
        );
    }
    if !is_same_origin(&control, &uri, &headers) {
        return rejected(StatusCode::FORBIDDEN, "The form was sent by a page of another site.");
    }
    let form = match Form::read(&control.config, &headers, body).await {
        Ok(form) => form,
        Err(failure) => return rejected(failure.status(), failure.message()),
    };
    let Some(Ok(target)) = form.get("next").map(str::parse) else { return invalid_target() };
    let (Some(email), Some(password)) = (form.get("email"), form.get("password")) else {
        return rejected(StatusCode::BAD_REQUEST, "The form needs an email address and a password.");
    };
    let attempt = PasswordAttempt {
        email: email.trim(),
        password: Secret::new(password),
        from: peer.and_then(|Extension(peer)| peer.ip()),
    };
    let address = control.login_service.addresses.of(&uri, &headers);
    match log_in(&control, attempt, target, &address).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => Page::Form { target, email: email.trim(), error: Some(error) }.into_response(),
        Err(failure) => failed(failure),
    }
}

async fn log_in(
    control: &Control,
    attempt: PasswordAttempt<'_>,
    target: LoopbackTarget,
    address: &Address,
) -> Result<Result<Response, LoginError>, Failure> {
    let from = attempt.from;
    let outcome = control.login_service.passwords.verify(&control.store, attempt).await;
    let (user, hash) = match outcome.map_err(|error| Failure::internal("looking up a password", &error))? {
        Outcome::Correct(user, hash) => (user, hash),
        Outcome::Wrong => {
            tracing::info!(from = from.map(tracing::field::display), "wrong password");
            return Ok(Err(LoginError::Password));
        }
        Outcome::TooMany(wait) => {
            // Anyone can cause this line at any rate, so it is not a warning: it must not hide real warnings.
            tracing::info!(from = from.map(tracing::field::display), "too many password attempts");
            return Ok(Err(LoginError::TooMany(wait)));
        }
        Outcome::Busy => return Ok(Err(LoginError::Busy)),
    };
    if !has_usable_team(control, &user).await? {
        return Ok(Err(LoginError::NoTeam));
    }
    let lifetime = control.config.identity.login_lifetime;
    let response =
        NewLogin { user: &user, proof: Proof::Password(&hash), lifetime, target, address }.begin(control).await?;
    Ok(response.ok_or(LoginError::Password))
}

/// Returns true if the user is a member of a team that is not banned. Clients need such a team after a login.
pub(super) async fn has_usable_team(control: &Control, user: &User) -> Result<bool, Failure> {
    let found = control.store.memberships(user.id).await;
    let memberships = found.map_err(|error| Failure::internal("reading the teams of a user", &error))?;
    Ok(memberships.iter().any(|membership| !matches!(membership.team.standing, Standing::Banned { .. })))
}

/// Login of an authenticated user.
pub(super) struct NewLogin<'a> {
    pub(super) user: &'a User,
    pub(super) proof: Proof<'a>,
    pub(super) lifetime: Duration,
    /// Receives the tokens.
    pub(super) target: LoopbackTarget,
    /// Base of the token and revoke endpoints.
    pub(super) address: &'a Address,
}

impl NewLogin<'_> {
    /// Stores the login and redirects to the command line with its tokens.
    ///
    /// Returns `None` if the proof is no longer valid.
    pub(super) async fn begin(self, control: &Control) -> Result<Option<Response>, Failure> {
        let Self { user, proof, lifetime, target, address } = self;
        let now = now();
        let expires_at = now.checked_add(lifetime).unwrap_or(jiff::Timestamp::MAX);
        let begun = control.store.create_login(user.id, proof, LoginTimes { now, expires_at }).await;
        let begun = begun.map_err(|error| Failure::internal("storing a login", &error))?;
        let Some((login, refresh_token)) = begun else { return Ok(None) };
        let signed = control.login_service.signer.sign(&login, now);
        let (access_token, _) = signed.map_err(|error| Failure::internal("signing an access token", &error))?;
        tracing::info!(user = %user.id, login = %login.id, "user logged in");
        let (token, revoke) = (address.at(TOKEN), address.at(REVOKE));
        Ok(Some(redirect(&target.with(&[
            ("email", &user.email),
            ("accessToken", access_token.expose()),
            ("refreshToken", refresh_token.expose()),
            ("tokenEndpoint", &token),
            ("revokeEndpoint", &revoke),
            ("clientId", CLIENT_ID),
        ]))))
    }
}

/// Redirects the browser with status 303, so that it sends a GET request.
pub(super) fn redirect(to: &str) -> Response {
    match HeaderValue::from_str(to) {
        Ok(to) => private((StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response()),
        Err(_) => rejected(StatusCode::BAD_REQUEST, "The address to redirect to is invalid."),
    }
}

/// Returns true if a page of this server or the user caused the request, by `Sec-Fetch-Site` and `Origin`.
///
/// Browsers do not always send these headers: the first is not sent over plain HTTP, the second not with every GET. A
/// missing header counts as valid; a client that is not a browser sends neither.
pub(super) fn is_same_origin(control: &Control, uri: &Uri, headers: &HeaderMap) -> bool {
    let site = headers.get(SITE);
    let is_own_site = site.is_none_or(|site| site == "same-origin" || site == "none");
    let is_own_origin = headers.get(header::ORIGIN).is_none_or(|origin| {
        // A browser that hides its origin sends `null`, but still reports the same origin in `Sec-Fetch-Site`.
        let is_hidden = origin == "null" && site.is_some_and(|site| site == "same-origin");
        is_hidden
            || origin.to_str().is_ok_and(|origin| control.login_service.addresses.is_own_origin(origin, uri, headers))
    });
    is_own_site && is_own_origin
}

pub(super) fn rejected(status: StatusCode, reason: &str) -> Response {
    Page::Rejected { status, reason }.into_response()
}

pub(super) fn invalid_target() -> Response {
    rejected(StatusCode::BAD_REQUEST, "The parameter `next` must be a port of this computer: http://localhost:PORT.")
}

pub(super) fn failed(failure: Failure) -> Response {
    rejected(failure.status(), failure.message())
}
