//! Queries for lines in a window of time.

use std::pin::pin;

use futures::TryStreamExt as _;
use hearth_types::{ExecutionId, SandboxId, TeamId};
use jiff::Timestamp;
use sea_orm::sqlx::query_as;
use sea_orm::sqlx::sqlite::SqlitePool;
use uuid::Uuid;

use super::write::level_number;
use crate::error::Cause;
use crate::line::{Level, LogLine, Source, StoredLine};
use crate::query::{Direction, Needle, QUERY_BYTES_MAX, QUERY_LINES_MAX, Query};

/// Query for lines. Both orders are those of the index, so nothing is sorted and reading may stop at any row.
macro_rules! select {
    ($order:literal) => {
        concat!(
            "SELECT at_us, level, is_cut, execution_id, template_id, logger, message, fields FROM line
                WHERE sandbox = (SELECT id FROM sandbox WHERE team_id = ? AND sandbox_id = ?)
                    AND at_us >= ? AND at_us < ? AND level >= ?
                ORDER BY at_us ",
            $order,
            ", id ",
            $order
        )
    };
}

type Row = (i64, i64, bool, Uuid, Option<String>, String, String, String);

/// Returns the lines that match a query.
///
/// The search is done here and not by SQLite, whose functions end a text at its first zero byte and know only the upper
/// case of ASCII. At worst all lines of one sandbox are read, which are bounded.
pub(super) async fn query(
    readers: &SqlitePool,
    team_id: TeamId,
    sandbox_id: &SandboxId,
    query: &Query,
    oldest: Timestamp,
) -> Result<Vec<StoredLine>, Cause> {
    let Query { from, until, direction, limit, level_min, search } = query;
    let limit = (*limit).min(QUERY_LINES_MAX) as usize;
    if limit == 0 {
        return Ok(Vec::new());
    }
    let needle = search.as_deref().map(Needle::new);
    let select = match direction {
        Direction::Forward => select!("ASC"),
        Direction::Backward => select!("DESC"),
    };
    let rows = query_as::<_, Row>(select)
        .bind(team_id.as_uuid())
        .bind(sandbox_id.as_str())
        .bind(first_microsecond(from.map_or(oldest, |from| from.max(oldest))))
        .bind(until.map_or(i64::MAX, first_microsecond))
        .bind(level_number(level_min.unwrap_or(Level::Debug)))
        .fetch(readers);
    let mut rows = pin!(rows);
    let mut found = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await? {
        let stored = stored(team_id, sandbox_id, row)?;
        if needle.as_ref().is_some_and(|needle| !needle.is_in(&stored.line)) {
            continue;
        }
        bytes += stored.line.bytes();
        found.push(stored);
        if found.len() == limit || bytes >= QUERY_BYTES_MAX {
            break;
        }
    }
    Ok(found)
}

/// Returns the first whole microsecond that is not before this time: rows have microseconds.
pub(super) fn first_microsecond(time: Timestamp) -> i64 {
    let micros = time.as_nanosecond().div_euclid(1000) + i128::from(time.as_nanosecond().rem_euclid(1000) > 0);
    i64::try_from(micros).unwrap_or(i64::MAX)
}

fn stored(team_id: TeamId, sandbox_id: &SandboxId, row: Row) -> Result<StoredLine, Cause> {
    let (at_us, level, is_cut, execution_id, template_id, logger, message, fields) = row;
    let template_id = template_id.map(|text| text.parse()).transpose();
    let source = Source {
        team_id,
        sandbox_id: sandbox_id.clone(),
        template_id: template_id.map_err(|error| Cause::damaged("template_id", error))?,
        execution_id: ExecutionId::from_uuid(execution_id),
    };
    let known = Level::ALL.into_iter().find(|known| level_number(*known) == level);
    let line = LogLine {
        at: Timestamp::from_microsecond(at_us).map_err(|error| Cause::damaged("at_us", error))?,
        level: known.ok_or_else(|| Cause::damaged("level", format!("{level} is not a level")))?,
        logger,
        message,
        fields: serde_json::from_str(&fields).map_err(|error| Cause::damaged("fields", error))?,
    };
    Ok(StoredLine { source, line, is_cut })
}
