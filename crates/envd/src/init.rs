//! `POST /init`: sets the guest's identity, after each boot and each restore; the host retries until it has a reply.
//!
//! Requests are applied one at a time. A request that is older than an applied one is acknowledged and ignored. There
//! is no metadata service, so the first token is accepted unchecked: a template's snapshot has none. A token that is
//! set can only be confirmed: no program in the guest can replace it. The identity that a metadata service would
//! provide (`sandboxId`, `templateId`) is part of the request, as is `randomSeed`, which gives guests of one snapshot
//! different random numbers.
//!
//! A new seed means that the guest was restored: the daemon reseeds the random pool, takes the sandbox's name, clears
//! the log of earlier lines, and drops connections whose peers no longer exist.
//!
//! A freeze has ended when the reply is sent. Volumes are rejected, because a host that requests them must not assume
//! that they are mounted.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State as Extract;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use hearth_types::Secret;
use hearth_types::guest::DAEMON_PORT;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::certificates::{self, InjectedCertificates};
use crate::connections::Connection;
use crate::freeze::Audit;
use crate::log::Level;
use crate::state::{SANDBOX_ID, State};
use crate::{VERSION, identity, sockets, sys};

/// Lag beyond which the clock is set; a smaller one is caused by the request's delay.
const BEHIND_MAX: Duration = Duration::from_millis(50);
/// Lead beyond which the clock is set.
const AHEAD_MAX: Duration = Duration::from_secs(5);

/// Environment variable with the address at which programs request `/me`.
const EVENTS_ADDRESS: &str = "E2B_EVENTS_ADDRESS";

/// State of the initialization between requests.
#[derive(Debug, Default)]
pub(crate) struct InitState {
    newest: Option<jiff::Timestamp>,
    applied_seed: Option<String>,
    certificates: InjectedCertificates,
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
    #[serde(rename = "hyperloopIP")]
    hyperloop_ip: Option<String>,
    /// Hearth's extension: log lines of processes' output.
    log_output: Option<bool>,
    ca_bundle: Option<String>,
    volume_mounts: Option<Vec<IgnoredAny>>,
}

/// Parses a token, which is not empty and has no backslash.
fn token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    let token = Option::<String>::deserialize(deserializer)?;
    if token.as_ref().is_some_and(|token| token.is_empty() || token.contains('\\')) {
        return Err(serde::de::Error::custom("invalid access token"));
    }
    Ok(token.map(Secret::new))
}

/// Status and text of a request that was not applied, or only in part; the contract's.
type Rejection = (StatusCode, String);

fn bad_request(text: impl Into<String>) -> Rejection {
    (StatusCode::BAD_REQUEST, text.into())
}

pub(crate) async fn init(
    Extract(state): Extract<Arc<State>>,
    connection: Option<Extension<Connection>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (outcome, audit) = match body.map(|body| parse(&body)) {
        Ok(Ok(request)) => handle(&state, request, connection.map(|Extension(connection)| connection)).await,
        Ok(Err(rejection)) => (Err(rejection), None),
        Err(_) => (Err(bad_request("")), None),
    };
    let mut response = match outcome {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err((status, text)) if text.is_empty() => status.into_response(),
        Err(rejection) => rejection.into_response(),
    };
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(HeaderName::from_static("x-envd-version"), HeaderValue::from_static(VERSION));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(audit) = audit.and_then(|audit| serde_json::to_string(&audit).ok()?.parse().ok()) {
        headers.insert(HeaderName::from_static("x-envd-freeze-audit"), audit);
    }
    response
}

fn parse(body: &[u8]) -> Result<Request, Rejection> {
    match body.trim_ascii().first() {
        None => Ok(Request::default()),
        Some(b'{') => serde_json::from_slice(body).map_err(|_| bad_request("")),
        // serde would accept an array too.
        Some(_) => Err(bad_request("")),
    }
}

/// Applies a request in turn, if it is authorized and not stale, and ends a freeze in any case.
///
/// Cancel safe: it waits only for its turn, then does all of its work without an await; the thaw at the end waits only
/// for the lock, before it starts.
async fn handle(
    state: &Arc<State>,
    request: Request,
    connection: Option<Connection>,
) -> (Result<(), Rejection>, Option<Audit>) {
    let mut init = state.init.lock().await;
    if let Err(rejection) = authorize(state, request.access_token.as_ref()) {
        return (Err(rejection), None);
    }
    let stale = request.timestamp.zip(init.newest).is_some_and(|(timestamp, newest)| timestamp < newest);
    let outcome = if stale { Ok(()) } else { apply(state, &mut init, request, connection) };
    if outcome.is_ok() {
        state.mark_initialized();
    }
    (outcome, state.end_freeze().await)
}

fn apply(
    state: &Arc<State>,
    init: &mut InitState,
    request: Request,
    connection: Option<Connection>,
) -> Result<(), Rejection> {
    if let Some(timestamp) = request.timestamp {
        init.newest = Some(timestamp);
        if state.in_microvm() {
            set_clock(state, timestamp);
        }
    }
    let restored = request.random_seed.filter(|seed| init.applied_seed.as_ref() != Some(seed));
    if let Some(seed) = restored {
        restore(state, &seed, connection);
        init.applied_seed = Some(seed);
    }
    if let Some(vars) = request.env_vars {
        state.set_env_vars(vars);
    }
    state.set_access_token(request.access_token);
    if let Some(enabled) = request.log_output {
        state.log().set_logs_output(enabled);
    }
    if let Some(id) = request.sandbox_id {
        set_sandbox_id(state, &id);
    }
    if let Some(id) = request.template_id {
        state.set_internal("E2B_TEMPLATE_ID", &id, 0o644);
    }
    if let Some(address) = request.hyperloop_ip.filter(|_| state.in_microvm()) {
        match identity::map_events(&address) {
            Ok(address) => state.set_internal(EVENTS_ADDRESS, &format!("http://{address}"), 0o644),
            Err(error) => state.log().error("envd", format!("mapping {}: {error}", identity::EVENTS_NAME)),
        }
    }
    if let Some(name) = request.default_user.filter(|name| !name.is_empty()) {
        state.set_default_user(name);
    }
    if let Some(path) = request.default_workdir.filter(|path| !path.is_empty()) {
        state.set_default_workdir(path);
    }
    if let Some(bundle) = request.ca_bundle.filter(|bundle| !bundle.is_empty()) {
        trust(state, init, bundle)?;
    }
    if request.volume_mounts.is_some_and(|mounts| !mounts.is_empty()) {
        return Err(bad_request("volumeMounts is not supported by this version of the guest daemon"));
    }
    Ok(())
}

/// Applies a restore from a snapshot, from which several guests may have been restored.
fn restore(state: &State, seed: &str, connection: Option<Connection>) {
    state.log().clear();
    state.connections.drop_others(connection);
    state.activity.notify_one();
    if !state.in_microvm() {
        return;
    }
    reseed(state, seed);
    if let Err(error) = identity::write_generation() {
        state.log().error("envd", format!("writing the generation: {error}"));
    }
    match sockets::close_outbound(connection.map(|connection| (connection.local, connection.peer))) {
        Ok(0) => {}
        Ok(closed) => {
            let fields = [("connections", closed.into())];
            state.log().write(Level::Info, "envd", "connections from before the restore closed", fields);
        }
        Err(error) => state.log().error("envd", format!("closing connections from before the restore: {error}")),
    }
}

/// Sets the sandbox's id: as the host name, and in the environment of programs.
fn set_sandbox_id(state: &State, id: &str) {
    if state.in_microvm() {
        if state.envs().get(SANDBOX_ID).is_none_or(|known| known != id)
            && let Err(error) = identity::set_identity(id)
        {
            state.log().error("envd", format!("setting the sandbox's name: {error}"));
        }
        // Unless the host provides this service, the daemon itself serves `/me`.
        if !state.envs().contains_key(EVENTS_ADDRESS) {
            state.set_internal(EVENTS_ADDRESS, &format!("http://127.0.0.1:{DAEMON_PORT}"), 0o644);
        }
    }
    state.set_internal(SANDBOX_ID, id, 0o644);
}

/// Trusts certificates immediately, and stores them in the background, because that writes to the disk.
fn trust(state: &Arc<State>, init: &mut InitState, bundle: String) -> Result<(), Rejection> {
    if !state.in_microvm() {
        return Err(bad_request("caBundle is supported only inside a microVM"));
    }
    let root = Path::new("/");
    init.certificates
        .trust(root, &bundle)
        .map_err(|error| bad_request(format!("error injecting the CA bundle: {error}")))?;
    let lane = state.file_calls.lane([root.join(certificates::SOURCE).as_path()]);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let stored = lane.run(move || InjectedCertificates::store_source(root, &bundle)).await;
        if let Err(error) = stored.map_err(std::io::Error::other).and_then(|stored| stored) {
            state.log().error("envd", format!("storing the CA bundle: {error}"));
        }
    });
    Ok(())
}

fn authorize(state: &State, given: Option<&Secret>) -> Result<(), Rejection> {
    let confirmed = given.is_some_and(|given| state.admits(Some(given.expose().as_bytes())));
    if state.access_token().is_none() || confirmed {
        return Ok(());
    }
    let text = if given.is_none() { "access token reset not authorized" } else { "access token validation failed" };
    Err((StatusCode::UNAUTHORIZED, text.to_owned()))
}

fn set_clock(state: &State, timestamp: jiff::Timestamp) {
    let drift = jiff::Timestamp::now().duration_since(timestamp);
    let behind = drift.is_negative() && drift.unsigned_abs() > BEHIND_MAX;
    let ahead = drift.is_positive() && drift.unsigned_abs() > AHEAD_MAX;
    if (behind || ahead)
        && let Err(error) = sys::set_clock(timestamp)
    {
        state.log().error("envd", format!("setting the clock: {error}"));
    }
}

/// Mixes the host's random bytes into the kernel's pool and reseeds from it.
///
/// Guests of one snapshot thereby draw different random numbers (random(4)).
fn reseed(state: &State, seed: &str) {
    let mixed = OpenOptions::new().write(true).open("/dev/urandom").and_then(|mut device| {
        device.write_all(seed.as_bytes())?;
        sys::reseed_kernel_random(&device)
    });
    if let Err(error) = mixed {
        state.log().error("envd", format!("seeding the random pool: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(state: &Arc<State>, body: &str) -> u16 {
        let outcome = match parse(body.as_bytes()) {
            Ok(request) => handle(state, request, None).await.0,
            Err(rejection) => Err(rejection),
        };
        outcome.map_or_else(|(status, _)| status.as_u16(), |()| 204)
    }

    #[tokio::test]
    async fn the_first_token_cannot_be_replaced() {
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
    async fn unsupported_fields_are_rejected_after_the_others_are_applied() {
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
