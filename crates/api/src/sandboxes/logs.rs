//! `GET /sandboxes/{sandboxID}/logs` and `GET /v2/sandboxes/{sandboxID}/logs`: log lines of a sandbox.
//!
//! Lines outlive their sandbox, so the handlers do not check that it exists. They return the lines of the caller's team
//! under that id; for an unknown id or another team's sandbox the list is empty.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use hearth_analytics::{Direction, Level, LogLine, Query, StoredLine};
use hearth_api_types::logs::{LogDirection, LogEntry, LogLevel, LogPage, LogPageQuery, LogQuery, Logs};
use hearth_store::Team;
use hearth_types::SandboxId;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::UnbannedTeam;
use crate::http::document::tag;
use crate::http::path::SandboxPath;

/// Field for the source of a line within the guest.
const LOGGER: &str = "logger";
/// Field that marks lines whose text or fields were truncated.
const CUT: &str = "cut";

/// Read the log of a sandbox from a start time (first generation of clients)
///
/// Sorted by time, oldest first. Lines outlive their sandbox. For an unknown sandbox the list is empty.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/logs", tag = tag::SANDBOXES, operation_id = "getSandboxLogsV1",
    params(SandboxPath, LogQuery),
    responses((status = 200, description = "Log lines of the sandbox.", body = Logs))
)]
pub(crate) async fn first_generation(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    SandboxPath(sandbox_id): SandboxPath,
    RawQuery(text): RawQuery,
) -> Result<Json<Logs>, Failure> {
    let query = LogQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let LogQuery { start, limit } = query;
    let direction = Direction::Forward;
    let query = Query { from: start, until: None, direction, limit, level_min: None, search: None };
    let log_entries = read(&control, &team, &sandbox_id, &query).await?;
    let logs = log_entries.iter().map(LogEntry::to_line).collect();
    Ok(Json(Logs { logs, log_entries }))
}

/// Read the log of a sandbox in either direction from a time
///
/// Lines outlive their sandbox. For an unknown sandbox the list is empty.
#[utoipa::path(
    get, path = "/v2/sandboxes/{sandboxID}/logs", tag = tag::SANDBOXES, operation_id = "getSandboxLogs",
    params(SandboxPath, LogPageQuery),
    responses((status = 200, description = "Log lines of the sandbox.", body = LogPage))
)]
pub(crate) async fn second_generation(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    SandboxPath(sandbox_id): SandboxPath,
    RawQuery(text): RawQuery,
) -> Result<Json<LogPage>, Failure> {
    let query = LogPageQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let LogPageQuery { cursor, limit, direction, level, search } = query;
    let (direction, from, until) = match direction {
        LogDirection::Forward => (Direction::Forward, cursor, None),
        LogDirection::Backward => (Direction::Backward, None, cursor),
    };
    let query = Query { from, until, direction, limit, level_min: level.map(level_from_wire), search };
    let logs = read(&control, &team, &sandbox_id, &query).await?;
    Ok(Json(LogPage { logs }))
}

async fn read(control: &Control, team: &Team, sandbox_id: &SandboxId, query: &Query) -> Result<Vec<LogEntry>, Failure> {
    let stored = control.logs.query(team.id, sandbox_id, query).await;
    let stored = stored.map_err(|error| Failure::internal("reading the log of a sandbox", &error))?;
    Ok(stored.into_iter().map(to_entry).collect())
}

/// Converts a stored line to its wire type. Omits the source: the client knows the sandbox from its own request.
fn to_entry(stored: StoredLine) -> LogEntry {
    let StoredLine { source: _, line, is_cut } = stored;
    let LogLine { at, level, logger, message, mut fields } = line;
    // Only the host sets this field; a value from the guest is removed.
    fields.remove(CUT);
    if is_cut {
        fields.insert(CUT.to_owned(), true.to_string());
    }
    fields.insert(LOGGER.to_owned(), logger);
    LogEntry { timestamp: at, level: level_to_wire(level), message, fields }
}

fn level_to_wire(level: Level) -> LogLevel {
    match level {
        Level::Debug => LogLevel::Debug,
        Level::Info => LogLevel::Info,
        Level::Warn => LogLevel::Warn,
        Level::Error => LogLevel::Error,
    }
}

fn level_from_wire(level: LogLevel) -> Level {
    match level {
        LogLevel::Debug => Level::Debug,
        LogLevel::Info => Level::Info,
        LogLevel::Warn => Level::Warn,
        LogLevel::Error => Level::Error,
    }
}
