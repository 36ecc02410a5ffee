//! Creates that name themselves (`Idempotency-Key`): a repetition gets the first one's sandbox, not another one.
//!
//! The name is taken before anything else happens, and in the task that creates, so that it is given back or kept with
//! the answer whatever becomes of the client. Only a server that dies in between leaves a name without an answer; then
//! nobody knows whether a sandbox was made, and that is what is said until the name expires.
//!
//! Tokens are not kept: they follow from the sandbox's id. That there is one for visitors is kept, as an empty one.

use std::sync::Arc;
use std::time::Duration;

use hearth_api_types::ErrorCode;
use hearth_api_types::sandbox::{NewSandbox, Sandbox};
use hearth_stdx::chain;
use hearth_store::{Named, NamedRequest, NamedTimes, Team};
use http::{HeaderMap, HeaderName, StatusCode};
use sha2::{Digest as _, Sha256};

use super::create::{self, Created};
use super::wanted::Defaults;
use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::{later, now};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest key.
const KEY_CHARS_MAX: usize = 255;
/// How long a create may take on top of its budget, for reading templates and writing rows.
const CREATE_SLACK: Duration = Duration::from_secs(10);
/// When to ask again for what is being done.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The name that a request has, if any.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let is_allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let text = value.to_str().ok().filter(|text| (1..=KEY_CHARS_MAX).contains(&text.len()));
    match text.filter(|text| text.as_bytes().iter().all(is_allowed)) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(Failure::invalid(format_args!(
            "Idempotency-Key must have 1 to {KEY_CHARS_MAX} characters of a-z, 0-9 and `-`"
        ))),
    }
}

/// A hash of what is asked for. Spaces and the order of members do not matter.
pub(super) fn hash(text: &[u8]) -> Result<String, Failure> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(Failure::invalid)?;
    Ok(hex::encode(Sha256::digest(value.to_string())))
}

/// Creates a sandbox, or answers with the one that this request made before. Goes on when the future is dropped.
pub(super) async fn create(
    control: &Arc<Control>,
    team: Team,
    request: NamedRequest,
    sandbox: NewSandbox,
    defaults: Defaults,
) -> Result<Created, Failure> {
    let task = {
        let control = Arc::clone(control);
        async move { once(&control, team, &request, sandbox, defaults).await }
    };
    control.tasks.spawn("named create", task).await.unwrap_or_else(|_| Err(Failure::broken()))
}

async fn once(
    control: &Arc<Control>,
    team: Team,
    request: &NamedRequest,
    sandbox: NewSandbox,
    defaults: Defaults,
) -> Result<Created, Failure> {
    let now = now();
    let times = NamedTimes {
        now,
        decided_by: later(now, control.config.create_budget + CREATE_SLACK),
        expires_at: later(now, control.config.idempotency_kept),
    };
    let begun = control.store.begin_named(request, times).await;
    let begun = begun.map_err(|error| {
        let failure = Failure::internal("taking an idempotency key", &error);
        if error.is_full() { Failure::storage_full() } else { failure }
    });
    match begun? {
        Named::First => {}
        Named::Done { answer } => return repeat(control, &answer),
        Named::Running => {
            return Err(Failure::new(StatusCode::CONFLICT, "a request with this idempotency key is being done")
                .with_code(ErrorCode::IdempotencyInProgress)
                .worth_retrying_after(RETRY_PAUSE));
        }
        Named::Unknown => {
            return Err(Failure::new(
                StatusCode::CONFLICT,
                "what became of the first request with this idempotency key is not known: look at your sandboxes, and \
                 use another key",
            )
            .with_code(ErrorCode::IdempotencyOutcomeUnknown));
        }
        Named::Mismatch => {
            let message = "this idempotency key was used for a different request";
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, message)
                .with_code(ErrorCode::IdempotencyRequestMismatch));
        }
    }
    let outcome = create::create(control, team, sandbox, defaults).await;
    let kept = match &outcome {
        Ok((_, answer)) => {
            let sandbox = answer.0.clone();
            let traffic_access_token = sandbox.traffic_access_token.as_ref().map(|_| String::new());
            let without_tokens = Sandbox { envd_access_token: None, traffic_access_token, ..sandbox };
            let text = serde_json::to_string(&without_tokens).expect("an answer is plain data");
            control.store.finish_named(request, &text).await
        }
        // Whatever went wrong: what is left of the sandbox is being cleared away, and nobody was told its id.
        Err(_) => control.store.forget_named(request).await,
    };
    if let Err(error) = kept {
        tracing::error!(error = %chain(&error), "the outcome of a request with an idempotency key was not kept");
    }
    outcome
}

/// The answer that was kept, with the sandbox's tokens.
fn repeat(control: &Control, text: &str) -> Result<Created, Failure> {
    let kept: Sandbox =
        serde_json::from_str(text).map_err(|error| Failure::internal("reading an answer that was kept", &error))?;
    let sandbox_id = kept
        .sandbox_id
        .parse()
        .map_err(|error| Failure::internal("reading the sandbox of an answer that was kept", &error))?;
    // Only the second generation takes keys, and its sandboxes are secured.
    let envd_access_token = Some(control.tokens.envd_access_token(&sandbox_id).expose().to_owned());
    let visitors = || control.tokens.traffic_access_token(&sandbox_id).expose().to_owned();
    let traffic_access_token = kept.traffic_access_token.as_ref().map(|_| visitors());
    Ok((StatusCode::CREATED, axum::Json(Sandbox { envd_access_token, traffic_access_token, ..kept })))
}
