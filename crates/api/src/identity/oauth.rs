//! `/oauth/token` and `/oauth/revoke`: how the command line renews a login (RFC 6749, 6) and ends it (RFC 7009).

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hearth_store::{RefreshToken, Renewed};
use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;

use super::CLIENT_ID;
use super::form::Form;
use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::now;

/// RFC 6749, 5.1.
#[derive(Serialize)]
struct Tokens<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: u64,
    refresh_token: &'a str,
}

/// RFC 6749, 5.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Code {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    UnsupportedGrantType,
    /// Not among the RFC's for this place, but among those for the other (4.1.2.1), and everybody knows it.
    ServerError,
}

#[derive(Serialize)]
struct Refusal {
    #[serde(skip)]
    status: StatusCode,
    error: Code,
    error_description: String,
}

impl Refusal {
    fn new(error: Code, description: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, error_description: description.into() }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = failure.status();
        let error = if status.is_server_error() { Code::ServerError } else { Code::InvalidRequest };
        Self { status, error, error_description: failure.message().to_owned() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, unkept(), Json(self)).into_response()
    }
}

/// Nobody keeps an answer (RFC 6749, 5.1).
fn unkept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    headers
}

/// `POST /oauth/token`.
pub(crate) async fn token(State(control): State<Arc<Control>>, headers: HeaderMap, body: Body) -> Response {
    renew(&control, &headers, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn renew(control: &Control, headers: &HeaderMap, body: Body) -> Result<Response, Refusal> {
    let form = Form::read(&control.config, headers, body).await?;
    match form.filled("grant_type") {
        Some("refresh_token") => {}
        Some(_) => return Err(Refusal::new(Code::UnsupportedGrantType, "the grant type is not `refresh_token`")),
        None => return Err(missing("grant_type")),
    }
    check_client(form.filled("client_id").ok_or_else(|| missing("client_id"))?)?;
    let presented = form.filled("refresh_token").ok_or_else(|| missing("refresh_token"))?;
    // Expired, ended or never issued: whoever holds it has to log in again, and need not know more.
    let over = || Refusal::new(Code::InvalidGrant, "the login is over: log in again");
    let presented: RefreshToken = presented.parse().map_err(|_| over())?;
    let now = now();
    let renewed = control.store.renew_login(&presented, now).await;
    match renewed.map_err(|error| Failure::internal("renewing a login", &error))? {
        Renewed::Renewed(login, refresh_token) => {
            let signed = control.doorkeeper.signer.sign(&login, now);
            let (access_token, lifetime) =
                signed.map_err(|error| Failure::internal("signing an access token", &error))?;
            let tokens = Tokens {
                access_token: access_token.expose(),
                token_type: "Bearer",
                expires_in: lifetime.as_secs(),
                refresh_token: refresh_token.expose(),
            };
            Ok((unkept(), Json(tokens)).into_response())
        }
        Renewed::Unknown => Err(over()),
        Renewed::Reused { id, user_id } => {
            tracing::warn!(login = %id, user = %user_id, "a refresh token was used twice: its login is ended");
            Err(over())
        }
    }
}

/// `POST /oauth/revoke`. A token that means nothing is revoked already (RFC 7009, 2.2).
pub(crate) async fn revoke(State(control): State<Arc<Control>>, headers: HeaderMap, body: Body) -> Response {
    end(&control, &headers, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn end(control: &Control, headers: &HeaderMap, body: Body) -> Result<Response, Refusal> {
    let form = Form::read(&control.config, headers, body).await?;
    form.filled("client_id").map_or(Ok(()), check_client)?;
    let token = form.filled("token").ok_or_else(|| missing("token"))?;
    // What kind it is, the token says better than its hint.
    let ended = match token.parse::<RefreshToken>() {
        Ok(token) => control.store.end_login_of(&token).await,
        Err(_) => match control.doorkeeper.signer.login(token) {
            Some(id) => control.store.end_login(id).await,
            None => Ok(false),
        },
    };
    if ended.map_err(|error| Failure::internal("ending a login", &error))? {
        tracing::info!("a user logged out");
    }
    Ok((StatusCode::OK, unkept()).into_response())
}

fn missing(name: &str) -> Refusal {
    Refusal::new(Code::InvalidRequest, format!("the parameter `{name}` is missing or repeated"))
}

fn check_client(id: &str) -> Result<(), Refusal> {
    if id == CLIENT_ID { Ok(()) } else { Err(Refusal::new(Code::InvalidClient, "there is no such client")) }
}
