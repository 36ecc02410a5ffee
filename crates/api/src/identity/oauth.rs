//! Handlers of `/oauth/token` and `/oauth/revoke`.
//!
//! The command line uses them to renew a login (RFC 6749, section 6) and to end it (RFC 7009).

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hearth_store::{RefreshToken, Renewal};
use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;

use super::CLIENT_ID;
use super::form::Form;
use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::now;

/// Successful response (RFC 6749, section 5.1).
#[derive(Serialize)]
struct Tokens<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: u64,
    refresh_token: &'a str,
}

/// Error code (RFC 6749, section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Code {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    UnsupportedGrantType,
    /// Code of the authorization endpoint (section 4.1.2.1). Clients accept it here too.
    ServerError,
}

/// Error response (RFC 6749, section 5.2).
#[derive(Serialize)]
struct OAuthError {
    #[serde(skip)]
    status: StatusCode,
    error: Code,
    error_description: String,
}

impl OAuthError {
    fn new(error: Code, description: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, error_description: description.into() }
    }
}

impl From<Failure> for OAuthError {
    fn from(failure: Failure) -> Self {
        let status = failure.status();
        let error = if status.is_server_error() { Code::ServerError } else { Code::InvalidRequest };
        Self { status, error, error_description: failure.message().to_owned() }
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        (self.status, no_store(), Json(self)).into_response()
    }
}

/// Returns the headers that forbid caching of a response (RFC 6749, section 5.1).
fn no_store() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    headers
}

/// `POST /oauth/token`: renews a login.
pub(crate) async fn token(State(control): State<Arc<Control>>, headers: HeaderMap, body: Body) -> Response {
    renew(&control, &headers, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn renew(control: &Control, headers: &HeaderMap, body: Body) -> Result<Response, OAuthError> {
    let form = Form::read(&control.config, headers, body).await?;
    match form.filled("grant_type") {
        Some("refresh_token") => {}
        Some(_) => return Err(OAuthError::new(Code::UnsupportedGrantType, "the grant type is not `refresh_token`")),
        None => return Err(missing("grant_type")),
    }
    check_client(form.filled("client_id").ok_or_else(|| missing("client_id"))?)?;
    let presented = form.filled("refresh_token").ok_or_else(|| missing("refresh_token"))?;
    // An expired, ended and unknown login get the same reply. In each case the user has to log in again.
    let expired = || OAuthError::new(Code::InvalidGrant, "the login has ended: log in again");
    let presented: RefreshToken = presented.parse().map_err(|_| expired())?;
    let now = now();
    let renewed = control.store.renew_login(&presented, now).await;
    match renewed.map_err(|error| Failure::internal("renewing a login", &error))? {
        Renewal::Renewed(login, refresh_token) => {
            let signed = control.login_service.signer.sign(&login, now);
            let (access_token, lifetime) =
                signed.map_err(|error| Failure::internal("signing an access token", &error))?;
            let tokens = Tokens {
                access_token: access_token.expose(),
                token_type: "Bearer",
                expires_in: lifetime.as_secs(),
                refresh_token: refresh_token.expose(),
            };
            Ok((no_store(), Json(tokens)).into_response())
        }
        Renewal::Unknown => Err(expired()),
        Renewal::Reused { id, user_id } => {
            tracing::warn!(login = %id, user = %user_id, "login ended: refresh token was used twice");
            Err(expired())
        }
    }
}

/// `POST /oauth/revoke`: ends a login. An unknown token counts as revoked (RFC 7009, section 2.2).
pub(crate) async fn revoke(State(control): State<Arc<Control>>, headers: HeaderMap, body: Body) -> Response {
    delete_login(&control, &headers, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn delete_login(control: &Control, headers: &HeaderMap, body: Body) -> Result<Response, OAuthError> {
    let form = Form::read(&control.config, headers, body).await?;
    form.filled("client_id").map_or(Ok(()), check_client)?;
    let token = form.filled("token").ok_or_else(|| missing("token"))?;
    // The type of the token is clear from its format, so the parameter `token_type_hint` is ignored.
    let ended = match token.parse::<RefreshToken>() {
        Ok(token) => control.store.delete_login_of(&token).await,
        Err(_) => match control.login_service.signer.login(token) {
            Some(id) => control.store.delete_login(id).await,
            None => Ok(false),
        },
    };
    if ended.map_err(|error| Failure::internal("ending a login", &error))? {
        tracing::info!("user logged out");
    }
    Ok((StatusCode::OK, no_store()).into_response())
}

fn missing(name: &str) -> OAuthError {
    OAuthError::new(Code::InvalidRequest, format!("the parameter `{name}` is missing or repeated"))
}

fn check_client(id: &str) -> Result<(), OAuthError> {
    if id == CLIENT_ID { Ok(()) } else { Err(OAuthError::new(Code::InvalidClient, "unknown client")) }
}
