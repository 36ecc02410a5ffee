//! `/docs/api/cli`: where the command line sends people to, and what it hears of them.

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
use super::page::{Page, Wrong, private};
use super::password::{Attempted, Outcome};
use super::target::Target;
use super::{CLIENT_ID, REVOKE, TOKEN};
use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::now;

/// How a browser says where a request comes from (Fetch Metadata Request Headers).
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// `GET /docs/api/cli`: with `next` the way in, with `state` how it went.
pub(crate) async fn show(State(control): State<Arc<Control>>, uri: Uri) -> Response {
    let query = Form::parse(uri.query().unwrap_or_default().as_bytes());
    match (query.get("state"), query.get("next")) {
        (Some("success"), _) => Page::LoggedIn { email: query.filled("email") }.into_response(),
        (Some("error"), _) => {
            Page::Failed { why: query.filled("error").unwrap_or("no reason was given") }.into_response()
        }
        (_, Some(next)) => match next.parse() {
            Ok(target) => ask(&control, target).await.unwrap_or_else(broken),
            Err(_) => no_target(),
        },
        _ => refused(StatusCode::BAD_REQUEST, "Nothing asks for a login."),
    }
}

/// The way in.
async fn ask(control: &Control, target: Target) -> Result<Response, Failure> {
    if let Some(provider) = &control.doorkeeper.provider {
        return Ok(Page::Provider { target, issuer: provider.host() }.into_response());
    }
    let found = control.store.has_passwords().await;
    let has_passwords = found.map_err(|error| Failure::internal("looking for passwords", &error))?;
    let form = Page::Form { target, email: "", wrong: None };
    Ok(if has_passwords { form.into_response() } else { Page::NobodyYet.into_response() })
}

/// `POST /docs/api/cli`: a password.
pub(crate) async fn submit(
    State(control): State<Arc<Control>>,
    peer: Option<Extension<Peer>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if control.doorkeeper.provider.is_some() {
        return refused(StatusCode::FORBIDDEN, "There are no passwords here: log in at the identity provider.");
    }
    if !is_from_here(&control, &uri, &headers) {
        return refused(StatusCode::FORBIDDEN, "This was sent by a page of somebody else.");
    }
    let form = match Form::read(&control.config, &headers, body).await {
        Ok(form) => form,
        Err(failure) => return refused(failure.status(), failure.message()),
    };
    let Some(Ok(target)) = form.get("next").map(str::parse) else { return no_target() };
    let (Some(email), Some(password)) = (form.get("email"), form.get("password")) else {
        return refused(StatusCode::BAD_REQUEST, "An address and a password are needed.");
    };
    let attempted = Attempted {
        email: email.trim(),
        password: Secret::new(password),
        from: peer.and_then(|Extension(peer)| peer.ip()),
    };
    let address = control.doorkeeper.addresses.of(&uri, &headers);
    match log_in(&control, attempted, target, &address).await {
        Ok(Ok(response)) => response,
        Ok(Err(wrong)) => Page::Form { target, email: email.trim(), wrong: Some(wrong) }.into_response(),
        Err(failure) => broken(failure),
    }
}

async fn log_in(
    control: &Control,
    attempted: Attempted<'_>,
    target: Target,
    address: &Address,
) -> Result<Result<Response, Wrong>, Failure> {
    let from = attempted.from;
    let outcome = control.doorkeeper.gate.attempt(&control.store, attempted).await;
    let (user, hash) = match outcome.map_err(|error| Failure::internal("looking up a password", &error))? {
        Outcome::Right(user, hash) => (user, hash),
        Outcome::Wrong => {
            tracing::info!(from = from.map(tracing::field::display), "a password was wrong");
            return Ok(Err(Wrong::Password));
        }
        Outcome::TooMany(wait) => {
            // As often as somebody likes to guess, so it is no warning: it must not bury others.
            tracing::info!(from = from.map(tracing::field::display), "too many passwords were tried");
            return Ok(Err(Wrong::TooMany(wait)));
        }
        Outcome::Busy => return Ok(Err(Wrong::Busy)),
    };
    if !may_enter(control, &user).await? {
        return Ok(Err(Wrong::NoTeam));
    }
    let lifetime = control.config.identity.login_lifetime;
    let begun = Entry { user: &user, proof: Proof::Password(&hash), lifetime, target, address }.begin(control).await?;
    Ok(begun.ok_or(Wrong::Password))
}

/// Whether there is a team that a user may act for: a client that logs in looks for one.
pub(super) async fn may_enter(control: &Control, user: &User) -> Result<bool, Failure> {
    let found = control.store.memberships(user.id).await;
    let memberships = found.map_err(|error| Failure::internal("reading the teams of a user", &error))?;
    Ok(memberships.iter().any(|membership| !matches!(membership.team.standing, Standing::Banned { .. })))
}

/// Somebody who is let in.
pub(super) struct Entry<'a> {
    pub(super) user: &'a User,
    pub(super) proof: Proof<'a>,
    pub(super) lifetime: Duration,
    pub(super) target: Target,
    pub(super) address: &'a Address,
}

impl Entry<'_> {
    /// Begins a login, and tells the command line. `None`: the proof is none any more.
    pub(super) async fn begin(self, control: &Control) -> Result<Option<Response>, Failure> {
        let Self { user, proof, lifetime, target, address } = self;
        let now = now();
        let expires_at = now.checked_add(lifetime).unwrap_or(jiff::Timestamp::MAX);
        let begun = control.store.begin_login(user.id, proof, LoginTimes { now, expires_at }).await;
        let begun = begun.map_err(|error| Failure::internal("beginning a login", &error))?;
        let Some((login, refresh_token)) = begun else { return Ok(None) };
        let signed = control.doorkeeper.signer.sign(&login, now);
        let (access_token, _) = signed.map_err(|error| Failure::internal("signing an access token", &error))?;
        tracing::info!(user = %user.id, login = %login.id, "a user logged in");
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

/// Sends the browser on with a GET, whatever it came with.
pub(super) fn redirect(to: &str) -> Response {
    match HeaderValue::from_str(to) {
        Ok(to) => private((StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response()),
        Err(_) => refused(StatusCode::BAD_REQUEST, "There is no such address."),
    }
}

/// Whether a browser sent a request because of a page of ours, or of the person in front of it. Browsers send neither header
/// in all cases: the first not to plain HTTP, the second not with every GET. What is not sent is believed; a client that is no
/// browser sends none.
pub(super) fn is_from_here(control: &Control, uri: &Uri, headers: &HeaderMap) -> bool {
    let site = headers.get(SITE);
    let is_site_ours = site.is_none_or(|site| site == "same-origin" || site == "none");
    let is_origin_ours = headers.get(header::ORIGIN).is_none_or(|origin| {
        // A browser that hides its origin names none, and still says that it is the same.
        let is_hidden = origin == "null" && site.is_some_and(|site| site == "same-origin");
        is_hidden || origin.to_str().is_ok_and(|origin| control.doorkeeper.addresses.is_ours(origin, uri, headers))
    });
    is_site_ours && is_origin_ours
}

pub(super) fn refused(status: StatusCode, why: &str) -> Response {
    Page::Refused { status, why }.into_response()
}

pub(super) fn no_target() -> Response {
    refused(StatusCode::BAD_REQUEST, "The parameter `next` has to be a port of this computer: http://localhost:PORT.")
}

pub(super) fn broken(failure: Failure) -> Response {
    refused(failure.status(), failure.message())
}
