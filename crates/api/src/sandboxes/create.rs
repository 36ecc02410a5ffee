//! `POST /sandboxes` and `POST /v2/sandboxes`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use hearth_api_types::sandbox::{NewSandbox, NewSandboxV1, Sandbox};
use hearth_store::{IdempotentRequest, Team};
use http::{HeaderMap, StatusCode};

use super::validate::{Defaults, check_envd_version, validate};
use super::{describe, idempotency};
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::ActiveTeam;
use crate::http::body;
use crate::http::document::tag;
use crate::{live, preparation};

pub(super) type Created = (StatusCode, Json<Sandbox>);

/// Create a sandbox (first generation of clients)
///
/// `secure` defaults to `false`, `timeout` to 15 seconds. The sandbox is ready for use when the reply arrives.
#[utoipa::path(
    post, path = "/sandboxes", tag = tag::SANDBOXES, operation_id = "createSandboxV1",
    request_body = NewSandboxV1,
    responses(
        (status = 201, description = "The sandbox runs.", body = Sandbox),
        (
            status = 400,
            description = "The body does not match the schema, exceeds a limit of the team, or requests a \
                feature that this server does not support."
        ),
        (status = 403, description = "The team is blocked or banned, or the feature is not supported."),
        (status = 404, description = "The template, the tag or the team does not exist."),
        (status = 409, description = "The sandbox was killed while it was created."),
        (status = 429, description = "The team has reached its maximum of concurrent sandboxes or its request rate limit."),
        (
            status = 503,
            description = "No node is reachable or has room, the template is being prepared, or the server is stopping."
        ),
        (status = 504, description = "The sandbox did not start in time."),
    )
)]
pub(crate) async fn first_generation(
    State(control): State<Arc<Control>>,
    ActiveTeam(team): ActiveTeam,
    body: Body,
) -> Result<Created, Failure> {
    let NewSandboxV1 { secure, sandbox } = body::required(&control.config, body).await?;
    let defaults = Defaults { timeout: Duration::from_secs(15), secured: secure.unwrap_or(false) };
    create(&control, team, sandbox, defaults).await
}

/// Create a sandbox
///
/// The sandbox is always secured: its guest daemon requires `envdAccessToken`. `timeout` defaults to 300 seconds. The
/// sandbox is ready for use when the reply arrives.
#[utoipa::path(
    post, path = "/v2/sandboxes", tag = tag::SANDBOXES, operation_id = "createSandbox",
    params((
        "Idempotency-Key" = Option<String>, Header,
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 255, nullable = false,
        description = "Identifies this request: a repetition with the same key and body returns the same sandbox instead \
            of creating another one."
    )),
    request_body = NewSandbox,
    responses(
        (status = 201, description = "The sandbox runs.", body = Sandbox),
        (
            status = 400,
            description = "The body does not match the schema, exceeds a limit of the team, or requests a \
                feature that this server does not support."
        ),
        (status = 403, description = "The team is blocked or banned, or the feature is not supported."),
        (status = 404, description = "The template, the tag or the team does not exist."),
        (
            status = 409,
            description = "The sandbox was killed while it was created; or a request with this idempotency key is in \
                progress, or its outcome is unknown."
        ),
        (status = 422, description = "The idempotency key was used with a different request."),
        (status = 429, description = "The team has reached its maximum of concurrent sandboxes or its request rate limit."),
        (
            status = 503,
            description = "No node is reachable or has room, the template is being prepared, or the server is stopping."
        ),
        (status = 504, description = "The sandbox did not start in time."),
    )
)]
pub(crate) async fn second_generation(
    State(control): State<Arc<Control>>,
    ActiveTeam(team): ActiveTeam,
    headers: HeaderMap,
    body: Body,
) -> Result<Created, Failure> {
    let key = idempotency::key(&headers)?;
    let text = body::bytes(&control.config, body).await?;
    let sandbox: NewSandbox = body::parse_required(&text)?;
    let defaults = Defaults { timeout: Duration::from_secs(300), secured: true };
    match key {
        Some(key) => {
            let request = IdempotentRequest { team_id: team.id, key, request: idempotency::hash(&text)? };
            idempotency::create(&control, team, request, sandbox, defaults).await
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
    let creation = validate(sandbox, defaults, team.limits)?;
    let (resolved, waited) = preparation::resolve(control, &creation.reference, &team).await?;
    if creation.secured {
        check_envd_version(&resolved.build.envd_version)?;
    }
    let budget = control.config.create_budget.saturating_sub(waited);
    let row = live::create(control, &team, resolved, creation, budget).await?;
    Ok((StatusCode::CREATED, Json(describe::sandbox(control, &row))))
}
