//! `POST /sandboxes` and `POST /v2/sandboxes`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use hearth_api_types::sandbox::{NewSandbox, NewSandboxV1, Sandbox};
use hearth_store::{ResolveError, Team};
use http::{HeaderMap, HeaderName, StatusCode};

use super::describe;
use super::wanted::{Defaults, Wanted, check_envd_version};
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Writer;
use crate::http::body;
use crate::live::{self, Creation};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

type Created = (StatusCode, Json<Sandbox>);

/// Unsecured unless told otherwise, and short-lived.
pub(crate) async fn first_generation(
    State(control): State<Arc<Control>>,
    Writer(team): Writer,
    body: Body,
) -> Result<Created, Failure> {
    let NewSandboxV1 { secure, sandbox } = body::required(&control.config, body).await?;
    let defaults = Defaults { timeout: Duration::from_secs(15), secured: secure.unwrap_or(false) };
    create(&control, team, sandbox, defaults).await
}

/// Always secured.
pub(crate) async fn second_generation(
    State(control): State<Arc<Control>>,
    Writer(team): Writer,
    headers: HeaderMap,
    body: Body,
) -> Result<Created, Failure> {
    if headers.contains_key(IDEMPOTENCY_KEY) {
        // Ignoring it could make two sandboxes of one.
        return Err(Failure::unsupported(StatusCode::FORBIDDEN, "idempotency keys"));
    }
    let sandbox: NewSandbox = body::required(&control.config, body).await?;
    let defaults = Defaults { timeout: Duration::from_secs(300), secured: true };
    create(&control, team, sandbox, defaults).await
}

async fn create(
    control: &Arc<Control>,
    team: Team,
    sandbox: NewSandbox,
    defaults: Defaults,
) -> Result<Created, Failure> {
    let Wanted { reference, timeout, metadata, env_vars, secured, allow_internet_access, ingress } =
        Wanted::check(sandbox, defaults, team.limits)?;
    let resolved = match control.store.resolve(&reference, &team).await {
        Ok(resolved) => resolved,
        // A private template of another team is as unknown as one that never was.
        Err(ResolveError::UnknownTemplate { .. } | ResolveError::Private { .. }) => {
            return Err(Failure::not_found(format!("template `{reference}` not found")));
        }
        Err(error @ ResolveError::UnknownTag { .. }) => return Err(Failure::not_found(error.to_string())),
        Err(ResolveError::Store(error)) => return Err(Failure::internal("resolving a template", &error)),
    };
    if secured {
        check_envd_version(&resolved.build.envd_version)?;
    }
    let creation = Creation { team, resolved, metadata, env_vars, secured, allow_internet_access, ingress, timeout };
    let row = live::create(control, creation).await?;
    Ok((StatusCode::CREATED, Json(describe::sandbox(control, &row))))
}
