//! Idempotent creates (`Idempotency-Key`): a repeated request returns the sandbox of the first one.
//!
//! The key is reserved before the create starts, and in the same task, so that the key is released or stored with the
//! reply even if the client disconnects. Only a server crash in between leaves a key without a reply. It is then unknown
//! whether a sandbox was created, and repetitions receive that error until the key expires.
//!
//! Tokens are not stored: they are derived from the sandbox's id. If visitors need a token, the stored reply has an empty
//! one as a marker.

use std::sync::Arc;
use std::time::Duration;

use hearth_api_types::ErrorCode;
use hearth_api_types::sandbox::{NewSandbox, Sandbox};
use hearth_stdx::chain;
use hearth_store::{Idempotent, IdempotentRequest, IdempotentTimes, Team};
use http::{HeaderMap, HeaderName, StatusCode};
use sha2::{Digest as _, Sha256};

use super::create::{self, Created};
use super::validate::Defaults;
use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::{now, saturating_add};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const KEY_CHARS_MAX: usize = 255;
/// Time allowed on top of the create budget, for reading templates and writing rows.
const CREATE_SLACK: Duration = Duration::from_secs(10);
/// `Retry-After` of a request whose key is in progress.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Returns the idempotency key of a request, if it has one.
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

/// Returns a hash of the request body. White space and the order of members do not change it.
pub(super) fn hash(text: &[u8]) -> Result<String, Failure> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(Failure::invalid)?;
    Ok(hex::encode(Sha256::digest(value.to_string())))
}

/// Creates a sandbox, or returns the reply of the first request with this key. Continues when the future is dropped.
pub(super) async fn create(
    control: &Arc<Control>,
    team: Team,
    request: IdempotentRequest,
    sandbox: NewSandbox,
    defaults: Defaults,
) -> Result<Created, Failure> {
    let task = {
        let control = Arc::clone(control);
        async move { create_once(&control, team, &request, sandbox, defaults).await }
    };
    control.tasks.spawn("idempotent create", task).await.unwrap_or_else(|_| Err(Failure::already_logged()))
}

async fn create_once(
    control: &Arc<Control>,
    team: Team,
    request: &IdempotentRequest,
    sandbox: NewSandbox,
    defaults: Defaults,
) -> Result<Created, Failure> {
    let now = now();
    let times = IdempotentTimes {
        now,
        decided_by: saturating_add(now, control.config.create_budget + CREATE_SLACK),
        expires_at: saturating_add(now, control.config.idempotency_retention),
    };
    let begun = control.store.begin_idempotent(request, times).await;
    let begun = begun.map_err(|error| {
        let failure = Failure::internal("reserving an idempotency key", &error);
        if error.is_full() { Failure::storage_full() } else { failure }
    });
    match begun? {
        Idempotent::First => {}
        Idempotent::Done { answer } => return repeat(control, &answer),
        Idempotent::Running => {
            return Err(Failure::new(StatusCode::CONFLICT, "a request with this idempotency key is in progress")
                .with_code(ErrorCode::IdempotencyInProgress)
                .worth_retrying_after(RETRY_PAUSE));
        }
        Idempotent::Unknown => {
            return Err(Failure::new(
                StatusCode::CONFLICT,
                "the outcome of the first request with this idempotency key is not known: check which sandboxes \
                 exist, then use another key",
            )
            .with_code(ErrorCode::IdempotencyOutcomeUnknown));
        }
        Idempotent::Mismatch => {
            let message = "this idempotency key was used for a different request";
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, message)
                .with_code(ErrorCode::IdempotencyRequestMismatch));
        }
    }
    let outcome = create::create(control, team, sandbox, defaults).await;
    let stored = match &outcome {
        Ok((_, reply)) => {
            let sandbox = reply.0.clone();
            let traffic_access_token = sandbox.traffic_access_token.as_ref().map(|_| String::new());
            let without_tokens = Sandbox { envd_access_token: None, traffic_access_token, ..sandbox };
            let text = serde_json::to_string(&without_tokens).expect("a reply is plain data");
            control.store.finish_idempotent(request, &text).await
        }
        // After any error the sandbox is being released, and no client has received its id.
        Err(_) => control.store.release_idempotent(request).await,
    };
    if let Err(error) = stored {
        tracing::error!(error = %chain(&error), "outcome of idempotent request not stored");
    }
    outcome
}

/// Returns a stored reply, completed with the sandbox's tokens.
fn repeat(control: &Control, text: &str) -> Result<Created, Failure> {
    let stored: Sandbox =
        serde_json::from_str(text).map_err(|error| Failure::internal("reading a stored reply", &error))?;
    let sandbox_id = stored
        .sandbox_id
        .parse()
        .map_err(|error| Failure::internal("reading the sandbox id of a stored reply", &error))?;
    // Only the second generation accepts keys, and its sandboxes are always secured.
    let envd_access_token = Some(control.tokens.envd_access_token(&sandbox_id).expose().to_owned());
    let traffic_token = || control.tokens.traffic_access_token(&sandbox_id).expose().to_owned();
    let traffic_access_token = stored.traffic_access_token.as_ref().map(|_| traffic_token());
    Ok((StatusCode::CREATED, axum::Json(Sandbox { envd_access_token, traffic_access_token, ..stored })))
}
