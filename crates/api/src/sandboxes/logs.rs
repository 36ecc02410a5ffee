//! `GET /sandboxes/{sandboxID}/logs` and `GET /v2/sandboxes/{sandboxID}/logs`: what a sandbox said.
//!
//! Lines outlive their sandbox, so nobody asks whether there is one: who asks sees the lines of its own team under that id,
//! and for an id that is unknown, or another team's, there are none.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use hearth_analytics::{Direction, Level, LogLine, Query, Stored};
use hearth_api_types::logs::{LogDirection, LogEntry, LogLevel, LogPage, LogPageQuery, LogQuery, Logs};
use hearth_store::Team;
use hearth_types::SandboxId;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Reader;
use crate::http::document::tag;
use crate::http::path::SandboxPath;

/// The field with the part of the guest that said it.
const LOGGER: &str = "logger";
/// The field of lines that were too long, or had too much in their fields.
const CUT: &str = "cut";

/// Read what a sandbox said, from a time on, oldest first
///
/// Lines outlive their sandbox. There are none for one that is unknown.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/logs", tag = tag::SANDBOXES, operation_id = "getSandboxLogsV1",
    params(SandboxPath, LogQuery),
    responses((status = 200, description = "What it said.", body = Logs))
)]
pub(crate) async fn first_generation(
    State(control): State<Arc<Control>>,
    Reader(team): Reader,
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

/// Read what a sandbox said, either way from a time
///
/// Lines outlive their sandbox. There are none for one that is unknown.
#[utoipa::path(
    get, path = "/v2/sandboxes/{sandboxID}/logs", tag = tag::SANDBOXES, operation_id = "getSandboxLogs",
    params(SandboxPath, LogPageQuery),
    responses((status = 200, description = "What it said.", body = LogPage))
)]
pub(crate) async fn second_generation(
    State(control): State<Arc<Control>>,
    Reader(team): Reader,
    SandboxPath(sandbox_id): SandboxPath,
    RawQuery(text): RawQuery,
) -> Result<Json<LogPage>, Failure> {
    let query = LogPageQuery::parse(text.as_deref().unwrap_or_default()).map_err(Failure::invalid)?;
    let LogPageQuery { cursor, limit, direction, level, search } = query;
    let (direction, from, until) = match direction {
        LogDirection::Forward => (Direction::Forward, cursor, None),
        LogDirection::Backward => (Direction::Backward, None, cursor),
    };
    let query = Query { from, until, direction, limit, level_min: level.map(wanted), search };
    let logs = read(&control, &team, &sandbox_id, &query).await?;
    Ok(Json(LogPage { logs }))
}

async fn read(control: &Control, team: &Team, sandbox_id: &SandboxId, query: &Query) -> Result<Vec<LogEntry>, Failure> {
    let stored = control.logs.query(team.id, sandbox_id, query).await;
    let stored = stored.map_err(|error| Failure::internal("reading the log of a sandbox", &error))?;
    Ok(stored.into_iter().map(entry).collect())
}

/// A line as clients see it. Who said it they know: they asked.
fn entry(stored: Stored) -> LogEntry {
    let Stored { source: _, line, is_cut } = stored;
    let LogLine { at, level, logger, message, mut fields } = line;
    // What the host says about a line is not for the guest to say.
    fields.remove(CUT);
    if is_cut {
        fields.insert(CUT.to_owned(), true.to_string());
    }
    fields.insert(LOGGER.to_owned(), logger);
    LogEntry { timestamp: at, level: shown(level), message, fields }
}

fn shown(level: Level) -> LogLevel {
    match level {
        Level::Debug => LogLevel::Debug,
        Level::Info => LogLevel::Info,
        Level::Warn => LogLevel::Warn,
        Level::Error => LogLevel::Error,
    }
}

fn wanted(level: LogLevel) -> Level {
    match level {
        LogLevel::Debug => Level::Debug,
        LogLevel::Info => Level::Info,
        LogLevel::Warn => Level::Warn,
        LogLevel::Error => Level::Error,
    }
}
