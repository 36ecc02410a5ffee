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
use crate::compared;
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Writer;
use crate::http::body;
use crate::http::document::tag;
use crate::live::{self, Creation};

pub(super) type Created = (StatusCode, Json<Sandbox>);

/// Create a sandbox, as the first generation of clients does
///
/// Unsecured unless told otherwise, and short-lived: 15 seconds when no timeout is given. When the answer is sent the
/// sandbox can be used.
#[utoipa::path(
    post, path = "/sandboxes", tag = tag::SANDBOXES, operation_id = "createSandboxV1",
    request_body = NewSandboxV1,
    responses(
        (status = 201, description = "It runs.", body = Sandbox),
        (
            status = 400,
            description = "The body is not what the schema says, asks for more than the team may have, or for \
                something that this server does not do."
        ),
        (status = 403, description = "The team is blocked or banned, or the feature is not supported."),
        (status = 404, description = "There is no such template, tag, or team."),
        (status = 409, description = "The sandbox was killed while it was started."),
        (status = 429, description = "The team has its maximum of concurrent sandboxes, or calls too often."),
        (status = 503, description = "No node has room or can be reached, or the server is stopping."),
        (status = 504, description = "Starting it took too long."),
    )
)]
pub(crate) async fn first_generation(
    State(control): State<Arc<Control>>,
    Writer(team): Writer,
    body: Body,
) -> Result<Created, Failure> {
    let NewSandboxV1 { secure, sandbox } = body::required(&control.config, body).await?;
    let defaults = Defaults { timeout: Duration::from_secs(15), secured: secure.unwrap_or(false) };
    create(&control, team, sandbox, defaults).await
}

/// Create a sandbox
///
/// Always secured: its guest daemon demands `envdAccessToken`. It lives for 300 seconds when no timeout is given. When the
/// answer is sent the sandbox can be used.
#[utoipa::path(
    post, path = "/v2/sandboxes", tag = tag::SANDBOXES, operation_id = "createSandbox",
    params((
        "Idempotency-Key" = Option<String>, Header,
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 255, nullable = false,
        description = "A name for this request: its repetition gets the same sandbox, not another one."
    )),
    request_body = NewSandbox,
    responses(
        (status = 201, description = "It runs.", body = Sandbox),
        (
            status = 400,
            description = "The body is not what the schema says, asks for more than the team may have, or for \
                something that this server does not do."
        ),
        (status = 403, description = "The team is blocked or banned, or the feature is not supported."),
        (status = 404, description = "There is no such template, tag, or team."),
        (
            status = 409,
            description = "The sandbox was killed while it was started; or a request with this idempotency key is \
                being done, or was and nobody knows what became of it."
        ),
        (status = 422, description = "The idempotency key was used for a different request."),
        (status = 429, description = "The team has its maximum of concurrent sandboxes, or calls too often."),
        (status = 503, description = "No node has room or can be reached, or the server is stopping."),
        (status = 504, description = "Starting it took too long."),
    )
)]
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
            return Err(Failure::not_found(compared::unknown_template(&reference)));
        }
        Err(ResolveError::UnknownTag { reference, tag }) => {
            return Err(Failure::not_found(compared::unknown_tag(&reference, &tag)));
        }
        Err(ResolveError::Store(error)) => return Err(Failure::internal("resolving a template", &error)),
    };
    if secured {
        check_envd_version(&resolved.build.envd_version)?;
    }
    let creation = Creation { team, resolved, metadata, env_vars, secured, allow_internet_access, ingress, timeout };
    let row = live::create(control, creation).await?;
    Ok((StatusCode::CREATED, Json(describe::sandbox(control, &row))))
}
