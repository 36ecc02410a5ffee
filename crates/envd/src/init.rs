//! `POST /init`: the host tells a guest who it is, after each boot and each restore, and again until it hears an answer.
//!
//! One at a time. A request that is older than one already applied is answered and ignored. There is no metadata service,
//! so the first token is accepted as it comes: a template's snapshot has none. A token that is set only stays or is
//! confirmed: nobody in the guest can replace it. What identity a metadata service would tell (`sandboxId`, `templateId`)
//! comes with the request, and with it `randomSeed`, by which the guests of one snapshot part ways.
//!
//! Certificates and volumes are refused by name, because a host that asks for them must not believe they are there. The
//! address of an events service (`hyperloopIP`) is passed over: it is not an error to have none.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State as Extract;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use hearth_types::Secret;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::state::State;
use crate::{VERSION, sys};

/// A clock this far behind is set; reading it late by less is normal.
const BEHIND_MAX: Duration = Duration::from_millis(50);
/// A clock this far ahead is set.
const AHEAD_MAX: Duration = Duration::from_secs(5);

/// How far the initialisation has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    newest: Option<jiff::Timestamp>,
    seeded: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Request {
    timestamp: Option<jiff::Timestamp>,
    #[serde(deserialize_with = "token")]
    access_token: Option<Secret>,
    env_vars: Option<BTreeMap<String, String>>,
    default_user: Option<String>,
    default_workdir: Option<String>,
    sandbox_id: Option<String>,
    template_id: Option<String>,
    random_seed: Option<String>,
    ca_bundle: Option<String>,
    volume_mounts: Option<Vec<IgnoredAny>>,
}

/// A token is not empty and has no backslash.
fn token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    let token = Option::<String>::deserialize(deserializer)?;
    if token.as_ref().is_some_and(|token| token.is_empty() || token.contains('\\')) {
        return Err(serde::de::Error::custom("invalid access token"));
    }
    Ok(token.map(Secret::new))
}

/// Why a request was not (wholly) applied: the contract's status and text.
type Refusal = (StatusCode, &'static str);

pub(crate) async fn init(Extract(state): Extract<Arc<State>>, body: Result<Bytes, BytesRejection>) -> Response {
    let outcome = match body {
        Ok(body) => apply(&state, &body).await.inspect(|()| state.open()),
        Err(_) => Err((StatusCode::BAD_REQUEST, "")),
    };
    let mut response = match outcome {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err((status, "")) => status.into_response(),
        Err(refusal) => refusal.into_response(),
    };
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(HeaderName::from_static("x-envd-version"), HeaderValue::from_static(VERSION));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Cancel safe: it waits for its turn only, and then does all of its work at once.
async fn apply(state: &State, body: &[u8]) -> Result<(), Refusal> {
    let request: Request = match body.trim_ascii().first() {
        None => Request::default(),
        Some(b'{') => serde_json::from_slice(body).map_err(|_| (StatusCode::BAD_REQUEST, ""))?,
        // A list would do for the parser.
        Some(_) => return Err((StatusCode::BAD_REQUEST, "")),
    };
    let mut progress = state.init.lock().await;
    authorise(state, request.access_token.as_ref())?;
    if let Some(timestamp) = request.timestamp {
        if progress.newest.is_some_and(|newest| timestamp < newest) {
            return Ok(());
        }
        progress.newest = Some(timestamp);
        if state.in_microvm() {
            set_clock(timestamp);
        }
    }
    if let Some(vars) = request.env_vars {
        state.set_env_vars(vars);
    }
    state.set_access_token(request.access_token);
    if let Some(id) = request.sandbox_id {
        state.set_internal("E2B_SANDBOX_ID", &id, 0o644);
    }
    if let Some(id) = request.template_id {
        state.set_internal("E2B_TEMPLATE_ID", &id, 0o644);
    }
    if let Some(seed) = request.random_seed.filter(|seed| progress.seeded.as_ref() != Some(seed)) {
        if state.in_microvm() {
            reseed(&seed);
        }
        progress.seeded = Some(seed);
    }
    if let Some(name) = request.default_user.filter(|name| !name.is_empty()) {
        state.set_default_user(name);
    }
    if let Some(path) = request.default_workdir.filter(|path| !path.is_empty()) {
        state.set_default_workdir(path);
    }
    if request.ca_bundle.is_some_and(|bundle| !bundle.is_empty()) {
        return Err((StatusCode::BAD_REQUEST, "caBundle is not supported by this version of the guest daemon"));
    }
    if request.volume_mounts.is_some_and(|mounts| !mounts.is_empty()) {
        return Err((StatusCode::BAD_REQUEST, "volumeMounts is not supported by this version of the guest daemon"));
    }
    Ok(())
}

fn authorise(state: &State, given: Option<&Secret>) -> Result<(), Refusal> {
    let confirmed = given.is_some_and(|given| state.admits(Some(given.expose().as_bytes())));
    if state.access_token().is_none() || confirmed {
        return Ok(());
    }
    let text = if given.is_none() { "access token reset not authorized" } else { "access token validation failed" };
    Err((StatusCode::UNAUTHORIZED, text))
}

fn set_clock(timestamp: jiff::Timestamp) {
    let drift = jiff::Timestamp::now().duration_since(timestamp);
    let behind = drift.is_negative() && drift.unsigned_abs() > BEHIND_MAX;
    let ahead = drift.is_positive() && drift.unsigned_abs() > AHEAD_MAX;
    if (behind || ahead)
        && let Err(error) = sys::set_clock(timestamp)
    {
        eprintln!("envd: setting the clock: {error}");
    }
}

/// Mixes the host's fresh bytes into the kernel's pool and makes it reseed from there, so that guests of one snapshot go
/// separate ways (random(4)).
fn reseed(seed: &str) {
    let mixed = OpenOptions::new().write(true).open("/dev/urandom").and_then(|mut device| {
        device.write_all(seed.as_bytes())?;
        sys::reseed_kernel_random(&device)
    });
    if let Err(error) = mixed {
        eprintln!("envd: seeding the random pool: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(state: &State, body: &str) -> u16 {
        apply(state, body.as_bytes()).await.map_or_else(|(status, _)| status.as_u16(), |()| 204)
    }

    #[tokio::test]
    async fn the_first_token_stays() {
        let state = State::outside();
        assert_eq!(answer(&state, "").await, 204);
        assert_eq!(answer(&state, r#"{"accessToken":""}"#).await, 400);
        assert_eq!(answer(&state, r#"{"accessToken":"a\\b"}"#).await, 400);
        assert_eq!(answer(&state, "{").await, 400);
        assert_eq!(answer(&state, r#"{"accessToken":"secret"}"#).await, 204);
        assert_eq!(answer(&state, r#"{"accessToken":"other"}"#).await, 401);
        assert_eq!(answer(&state, "{}").await, 401);
        assert_eq!(answer(&state, r#"{"accessToken":"secret"}"#).await, 204);
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_refused_after_the_rest() {
        let state = State::outside();
        for (body, status) in [
            (r#"{"envVars":{"A":"1"},"caBundle":"x"}"#, 400),
            (r#"{"envVars":{"A":"2"},"volumeMounts":[{"path":"/v"}]}"#, 400),
            (r#"{"envVars":{"A":"3"},"caBundle":"","volumeMounts":[]}"#, 204),
        ] {
            assert_eq!(answer(&state, body).await, status, "{body}");
            assert!(body.contains(&format!("\"A\":\"{}\"", state.envs()["A"])), "{body}");
        }
    }

    #[tokio::test]
    async fn older_requests_are_ignored() {
        let state = State::outside();
        let now = jiff::Timestamp::now();
        let request = |timestamp: jiff::Timestamp, value: &str| {
            format!(r#"{{"timestamp":"{timestamp}","envVars":{{"A":"{value}"}},"unknown":1}}"#)
        };
        assert_eq!(answer(&state, &request(now, "new")).await, 204);
        let before = now.checked_sub(Duration::from_millis(20)).expect("in range");
        assert_eq!(answer(&state, &request(before, "old")).await, 204);
        assert_eq!(state.envs()["A"], "new");
        assert_eq!(answer(&state, &request(now, "same")).await, 204);
        assert_eq!(state.envs()["A"], "same");
    }
}
