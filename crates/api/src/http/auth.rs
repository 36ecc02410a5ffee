//! Who calls: API keys in the header `X-API-Key`.
//!
//! A handler asks for a [`Reader`] or a [`Writer`], so that a route without a check does not come to be by forgetting
//! one.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use hearth_stdx::chain;
use hearth_store::{ApiKey, KeySecret, Standing, Team};
use http::request::Parts;
use http::{HeaderName, StatusCode};

use crate::control::Control;
use crate::failure::Failure;
use crate::live::expiry::{now, time_left};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The use of a key is noted at most this often: noting it is a commit to the disk.
const LAST_USED_PRECISION: Duration = Duration::from_secs(60);

/// A team that may look and delete. Blocked teams may, too.
#[derive(Debug)]
pub(crate) struct Reader(pub(crate) Team);

/// A team that may use what its limits allow.
#[derive(Debug)]
pub(crate) struct Writer(pub(crate) Team);

impl FromRequestParts<Arc<Control>> for Reader {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        let team = authenticate(parts, control).await?;
        match team.standing {
            Standing::Active | Standing::Blocked { .. } => Ok(Self(team)),
            Standing::Banned { .. } => Err(banned()),
        }
    }
}

impl FromRequestParts<Arc<Control>> for Writer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Failure> {
        let team = authenticate(parts, control).await?;
        match team.standing {
            Standing::Active => Ok(Self(team)),
            Standing::Blocked { reason } => {
                Err(Failure::new(StatusCode::FORBIDDEN, format!("your team is blocked: {reason}")))
            }
            Standing::Banned { .. } => Err(banned()),
        }
    }
}

fn banned() -> Failure {
    Failure::new(StatusCode::FORBIDDEN, "your team is banned")
}

async fn authenticate(parts: &Parts, control: &Arc<Control>) -> Result<Team, Failure> {
    let unauthorized = |message: &'static str| Failure::new(StatusCode::UNAUTHORIZED, message);
    let Some(presented) = parts.headers.get(API_KEY) else {
        return Err(unauthorized("no API key: send one in the header X-API-Key"));
    };
    // All that is wrong with a key is said the same way, whether it never was one or is none of ours.
    let invalid = || unauthorized("invalid API key");
    let secret: KeySecret = presented.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
    let found = control.store.authenticate(&secret.hash()).await;
    let (team, key) = found.map_err(|error| Failure::internal("looking up an API key", &error))?.ok_or_else(invalid)?;
    tracing::Span::current().record("team", tracing::field::display(team.id));
    note_use(control, &key);
    Ok(team)
}

/// Notes the use of a key, in the background and not too often.
fn note_use(control: &Arc<Control>, key: &ApiKey) {
    let now = now();
    if key.last_used_at.is_some_and(|last| time_left(now, last) < LAST_USED_PRECISION) {
        return;
    }
    // One at a time: what is skipped now is noted with the key's next use.
    let Ok(permit) = Arc::clone(&control.key_use).try_acquire_owned() else { return };
    let (store, key_id) = (control.store.clone(), key.id);
    control.tasks.spawn("key use", async move {
        if let Err(error) = store.touch_api_key(key_id, now).await {
            tracing::warn!(key = %key_id, error = %chain(&error), "the use of an API key was not noted");
        }
        drop(permit);
    });
}
