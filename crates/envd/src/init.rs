//! `POST /init`: the host tells a guest who it is, after each boot and each restore, and again until it hears an answer.
//!
//! One at a time. A request that is older than one already applied is answered and ignored. There is no metadata service,
//! so the first token is accepted as it comes: a template's snapshot has none. A token that is set only stays or is
//! confirmed: nobody in the guest can replace it. What identity a metadata service would tell (`sandboxId`, `templateId`)
//! comes with the request, and with it `randomSeed`, by which the guests of one snapshot part ways.
//!
//! With a seed that is new the guest has been restored: it draws other random numbers from then on, takes the sandbox's name,
//! forgets what its log had from before, and drops connections whose peers are gone.
//!
//! Whatever a freeze stopped goes on when the answer is given. Volumes are refused by name, because a host that asks for them
//! must not believe they are there.

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

use crate::certificates::{self, Injected};
use crate::connections::Connection;
use crate::freeze::Audit;
use crate::log::Level;
use crate::state::{SANDBOX_ID, State};
use crate::{VERSION, identity, sockets, sys};

/// A clock this far behind is set; reading it late by less is normal.
const BEHIND_MAX: Duration = Duration::from_millis(50);
/// A clock this far ahead is set.
const AHEAD_MAX: Duration = Duration::from_secs(5);

/// The variable with the address at which programs ask `/me`.
const EVENTS_ADDRESS: &str = "E2B_EVENTS_ADDRESS";

/// How far the initialisation has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    newest: Option<jiff::Timestamp>,
    seeded: Option<String>,
    certificates: Injected,
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
    /// Ours: whether the log has lines of processes' output.
    log_output: Option<bool>,
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
type Refusal = (StatusCode, String);

fn bad(text: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, text.into())
}

pub(crate) async fn init(
    Extract(state): Extract<Arc<State>>,
    connection: Option<Extension<Connection>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (outcome, audit) = match body.map(|body| parse(&body)) {
        Ok(Ok(request)) => take(&state, request, connection.map(|Extension(connection)| connection)).await,
        Ok(Err(refusal)) => (Err(refusal), None),
        Err(_) => (Err(bad("")), None),
    };
    let mut response = match outcome {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err((status, text)) if text.is_empty() => status.into_response(),
        Err(refusal) => refusal.into_response(),
    };
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(HeaderName::from_static("x-envd-version"), HeaderValue::from_static(VERSION));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(audit) = audit.and_then(|audit| serde_json::to_string(&audit).ok()?.parse().ok()) {
        headers.insert(HeaderName::from_static("x-envd-freeze-audit"), audit);
    }
    response
}

fn parse(body: &[u8]) -> Result<Request, Refusal> {
    match body.trim_ascii().first() {
        None => Ok(Request::default()),
        Some(b'{') => serde_json::from_slice(body).map_err(|_| bad("")),
        // A list would do for the parser.
        Some(_) => Err(bad("")),
    }
}

/// In its turn, and if it may: applies a request that is not stale, and ends a freeze in any case. Cancel safe: it waits for its
/// turn first, and then does all of its work at once; a thaw that is cut is one that has not begun.
async fn take(
    state: &Arc<State>,
    request: Request,
    connection: Option<Connection>,
) -> (Result<(), Refusal>, Option<Audit>) {
    let mut progress = state.init.lock().await;
    if let Err(refusal) = authorise(state, request.access_token.as_ref()) {
        return (Err(refusal), None);
    }
    let stale = request.timestamp.zip(progress.newest).is_some_and(|(timestamp, newest)| timestamp < newest);
    let outcome = if stale { Ok(()) } else { apply(state, &mut progress, request, connection) };
    if outcome.is_ok() {
        state.open();
    }
    (outcome, state.end_freeze().await)
}

fn apply(
    state: &Arc<State>,
    progress: &mut Progress,
    request: Request,
    connection: Option<Connection>,
) -> Result<(), Refusal> {
    if let Some(timestamp) = request.timestamp {
        progress.newest = Some(timestamp);
        if state.in_microvm() {
            set_clock(state, timestamp);
        }
    }
    let restored = request.random_seed.filter(|seed| progress.seeded.as_ref() != Some(seed));
    if let Some(seed) = restored {
        restore(state, &seed, connection);
        progress.seeded = Some(seed);
    }
    if let Some(vars) = request.env_vars {
        state.set_env_vars(vars);
    }
    state.set_access_token(request.access_token);
    if let Some(wanted) = request.log_output {
        state.log().take_output(wanted);
    }
    if let Some(id) = request.sandbox_id {
        name(state, &id);
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
        trust(state, progress, bundle)?;
    }
    if request.volume_mounts.is_some_and(|mounts| !mounts.is_empty()) {
        return Err(bad("volumeMounts is not supported by this version of the guest daemon"));
    }
    Ok(())
}

/// The guest was restored from a snapshot, as one of several perhaps.
fn restore(state: &State, seed: &str, connection: Option<Connection>) {
    state.log().clear();
    state.connections.drop_others(connection);
    state.activity.notify_one();
    if !state.in_microvm() {
        return;
    }
    reseed(state, seed);
    if let Err(error) = identity::begin_generation() {
        state.log().error("envd", format!("beginning a generation: {error}"));
    }
    match sockets::end_outward(connection.map(|connection| (connection.local, connection.peer))) {
        Ok(0) => {}
        Ok(ended) => {
            let fields = [("connections", ended.into())];
            state.log().write(Level::Info, "envd", "ended connections from before the restore", fields);
        }
        Err(error) => state.log().error("envd", format!("ending connections from before the restore: {error}")),
    }
}

/// The sandbox has an id: its name, and how its programs learn it.
fn name(state: &State, id: &str) {
    if state.in_microvm() {
        if state.envs().get(SANDBOX_ID).is_none_or(|known| known != id)
            && let Err(error) = identity::become_sandbox(id)
        {
            state.log().error("envd", format!("taking the sandbox's name: {error}"));
        }
        // Unless the host has a service for it, the daemon itself tells programs who they are.
        if !state.envs().contains_key(EVENTS_ADDRESS) {
            state.set_internal(EVENTS_ADDRESS, &format!("http://127.0.0.1:{DAEMON_PORT}"), 0o644);
        }
    }
    state.set_internal(SANDBOX_ID, id, 0o644);
}

/// Trusts certificates now, and keeps them for later in the background: that writes to the disk.
fn trust(state: &Arc<State>, progress: &mut Progress, bundle: String) -> Result<(), Refusal> {
    if !state.in_microvm() {
        return Err(bad("caBundle changes the machine, which this daemon does not do outside of a guest"));
    }
    let root = Path::new("/");
    progress
        .certificates
        .trust(root, &bundle)
        .map_err(|error| bad(format!("error injecting the CA bundle: {error}")))?;
    let lane = state.file_calls.lane([root.join(certificates::SOURCE).as_path()]);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let kept = lane.run(move || Injected::keep(root, &bundle)).await;
        if let Err(error) = kept.map_err(std::io::Error::other).and_then(|kept| kept) {
            state.log().error("envd", format!("keeping the CA bundle: {error}"));
        }
    });
    Ok(())
}

fn authorise(state: &State, given: Option<&Secret>) -> Result<(), Refusal> {
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

/// Mixes the host's fresh bytes into the kernel's pool and makes it reseed from there, so that guests of one snapshot go
/// separate ways (random(4)).
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
            Ok(request) => take(state, request, None).await.0,
            Err(refusal) => Err(refusal),
        };
        outcome.map_or_else(|(status, _)| status.as_u16(), |()| 204)
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
