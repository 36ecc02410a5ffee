//! `POST /sandboxes` and `POST /v2/sandboxes`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use hearth_api_types::sandbox::{NewSandbox, NewSandboxV1, Sandbox};
use hearth_store::{NamedRequest, ResolveError, Team};
use http::{HeaderMap, StatusCode};

use super::wanted::{Defaults, Wanted, check_envd_version};
use super::{describe, named};
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Writer;
use crate::http::body;
use crate::live::{self, Creation};

pub(super) type Created = (StatusCode, Json<Sandbox>);

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
    let key = named::key(&headers)?;
    let text = body::bytes(&control.config, body).await?;
    let sandbox: NewSandbox = body::parse_required(&text)?;
    let defaults = Defaults { timeout: Duration::from_secs(300), secured: true };
    match key {
        Some(key) => {
            let request = NamedRequest { team_id: team.id, key, request: named::hash(&text)? };
            named::create(&control, team, request, sandbox, defaults).await
        }
        None => create(&control, team, sandbox, defaults).await,
    }
}

pub(super) async fn create(
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
