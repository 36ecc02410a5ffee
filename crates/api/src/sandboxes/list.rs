//! `GET /v2/sandboxes`, which returns pages, and `GET /sandboxes`, which returns everything in one reply.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use hearth_api_types::list::{LIMIT_MAX, ListQuery, metadata_of};
use hearth_api_types::page::{self, Cursor};
use hearth_api_types::sandbox::{ListedSandbox, SandboxState as WireState};
use hearth_store::{
    ListedSandbox as Row, Order, ResolveError, SandboxCursor, SandboxPage, SandboxQuery, SandboxState, Team,
};
use hearth_types::{TemplateId, TemplateReference};
use http::{HeaderName, HeaderValue};

use super::describe;
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::UnbannedTeam;
use crate::http::document::tag;

/// Token of the next page. Absent on the last page.
pub(crate) const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");
/// Number of running sandboxes that match, on all pages.
pub(crate) const TOTAL_RUNNING: HeaderName = HeaderName::from_static("x-total-running");

/// List sandboxes in pages
///
/// Sorted by start time, newest first by default.
#[utoipa::path(
    get, path = "/v2/sandboxes", tag = tag::SANDBOXES, operation_id = "listSandboxes",
    params(ListQuery),
    responses((
        status = 200, description = "A page of sandboxes.", body = Vec<ListedSandbox>,
        headers(
            (
                "X-Next-Token" = String,
                description = "The `nextToken` of the next page. Absent on the last page."
            ),
            (
                "X-Total-Running" = u64,
                description = "Number of running sandboxes that match, on all pages. Absent if `state` excludes them."
            ),
        )
    ))
)]
pub(crate) async fn page(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    RawQuery(text): RawQuery,
) -> Result<Response, Failure> {
    let query = ListQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let order = query.order;
    let page = find(&control, &team, query).await?;
    let SandboxPage { sandboxes, next, running_total } = page;
    let mut response = described(&control, sandboxes).into_response();
    if let Some(SandboxCursor { started_at, sandbox_id }) = next {
        let token = Cursor { at: started_at, id: sandbox_id.to_string() }.to_token(order);
        let token = HeaderValue::try_from(token).expect("base64 is a header value");
        response.headers_mut().insert(NEXT_TOKEN, token);
    }
    if let Some(total) = running_total {
        response.headers_mut().insert(TOTAL_RUNNING, HeaderValue::from(total));
    }
    Ok(response)
}

/// List all running sandboxes
///
/// Returns all of them in one reply, newest first.
#[utoipa::path(
    get, path = "/sandboxes", tag = tag::SANDBOXES, operation_id = "listSandboxesV1",
    params((
        "metadata" = Option<String>, Query,
        description = "Metadata that sandboxes must have: `key=value` pairs joined by `&`. Keys and values are form \
            encoded, and the joined text is form encoded once more."
    )),
    responses((status = 200, description = "All matching sandboxes.", body = Vec<ListedSandbox>))
)]
pub(crate) async fn all(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    RawQuery(text): RawQuery,
) -> Result<Response, Failure> {
    let metadata = metadata_of(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let mut query = running(&team, metadata);
    let mut sandboxes = Vec::new();
    // Bounded by the team's limit of concurrent sandboxes.
    loop {
        let page = read(&control, &query).await?;
        sandboxes.extend(page.sandboxes);
        query.after = page.next;
        if query.after.is_none() {
            return Ok(described(&control, sandboxes).into_response());
        }
    }
}

fn described(control: &Control, rows: Vec<Row>) -> Json<Vec<ListedSandbox>> {
    Json(rows.into_iter().map(|row| describe::listed(control, row)).collect())
}

fn running(team: &Team, metadata: BTreeMap<String, String>) -> SandboxQuery {
    SandboxQuery {
        team_id: team.id,
        states: vec![SandboxState::Running],
        template_id: None,
        started_from: None,
        metadata,
        order: Order::NewestFirst,
        after: None,
        limit: LIMIT_MAX,
    }
}

async fn find(control: &Control, team: &Team, query: ListQuery) -> Result<SandboxPage, Failure> {
    let ListQuery { states, metadata, template, started_after, order, limit, after } = query;
    let includes_running = states.contains(&WireState::Running);
    let empty = SandboxPage { sandboxes: Vec::new(), next: None, running_total: includes_running.then_some(0) };
    if !includes_running {
        // Paused sandboxes are not supported yet.
        return Ok(empty);
    }
    let template_id = match template {
        Some(reference) => match template_id(control, team, &reference).await? {
            Some(template_id) => Some(template_id),
            None => return Ok(empty),
        },
        None => None,
    };
    let order = match order {
        page::Order::Ascending => Order::OldestFirst,
        page::Order::Descending => Order::NewestFirst,
    };
    let after = after.map(cursor).transpose()?;
    let started_from = started_after;
    read(control, &SandboxQuery { template_id, started_from, order, after, limit, ..running(team, metadata) }).await
}

fn cursor(after: Cursor) -> Result<SandboxCursor, Failure> {
    let Cursor { at, id } = after;
    let sandbox_id = id.parse().map_err(|_| Failure::invalid("nextToken is malformed"))?;
    Ok(SandboxCursor { started_at: at, sandbox_id })
}

/// Resolves a template reference. Returns `None` if the template does not exist or the team must not use it.
async fn template_id(
    control: &Control,
    team: &Team,
    reference: &TemplateReference,
) -> Result<Option<TemplateId>, Failure> {
    match control.store.resolve_template(reference, team).await {
        Ok(template) => Ok(Some(template.id)),
        Err(ResolveError::UnknownTemplate { .. } | ResolveError::UnknownTag { .. } | ResolveError::Private { .. }) => {
            Ok(None)
        }
        Err(ResolveError::Store(error)) => Err(Failure::internal("resolving a template", &error)),
    }
}

async fn read(control: &Control, query: &SandboxQuery) -> Result<SandboxPage, Failure> {
    control.store.list_sandboxes(query).await.map_err(|error| Failure::internal("listing sandboxes", &error))
}
