//! Recording and reading usages of teams.

use std::time::Duration;

use hearth_types::TeamId;
use jiff::Timestamp;
use sea_orm::sqlx::sqlite::{SqliteConnection, SqlitePool};
use sea_orm::sqlx::{Connection as _, query, query_as};

use super::read::first_microsecond;
use super::space::{STEP_LINES, Space};
use super::writer::Writer;
use crate::error::Cause;
use crate::sample::{Usage, downsample_usages};

pub(super) async fn record(writer: &Writer, space: &Space, usages: &[(TeamId, Usage)]) -> Result<(), Cause> {
    let mut connection = writer.acquire().await?;
    space.make_room_for_usages(&mut connection, usages.len() as u64).await?;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for (team_id, usage) in usages {
        let Usage { at, span, sandboxes_max, starts } = *usage;
        query(
            "INSERT INTO usage (team_id, at_us, span_ms, sandboxes_max, starts) VALUES (?, ?, ?, ?, ?)
                ON CONFLICT DO NOTHING",
        )
        .bind(team_id.as_uuid())
        .bind(at.as_microsecond())
        .bind(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
        .bind(i64::from(sandboxes_max))
        .bind(i64::from(starts))
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    connection.release();
    Ok(())
}

pub(super) async fn range(
    readers: &SqlitePool,
    team_id: TeamId,
    from: Timestamp,
    until: Timestamp,
    step: Duration,
) -> Result<Vec<Usage>, Cause> {
    let rows: Vec<(i64, i64, i64, i64)> = query_as(
        "SELECT at_us, span_ms, sandboxes_max, starts FROM usage
            WHERE team_id = ? AND at_us >= ? AND at_us < ? ORDER BY at_us",
    )
    .bind(team_id.as_uuid())
    .bind(first_microsecond(from))
    .bind(first_microsecond(until))
    .fetch_all(readers)
    .await?;
    let usages = rows.into_iter().map(usage).collect::<Result<Vec<_>, Cause>>()?;
    Ok(downsample_usages(&usages, step))
}

/// Deletes usages from before `oldest`.
pub(super) async fn delete_aged(connection: &mut SqliteConnection, oldest: Timestamp) -> Result<(), Cause> {
    while delete(connection, oldest.as_microsecond()).await? {}
    Ok(())
}

/// Deletes some of the oldest usages of all teams. Returns `false` if there are none.
pub(super) async fn delete_oldest(connection: &mut SqliteConnection) -> Result<bool, Cause> {
    delete(connection, i64::MAX).await
}

async fn delete(connection: &mut SqliteConnection, before_us: i64) -> Result<bool, Cause> {
    let deleted = query(
        "DELETE FROM usage WHERE (team_id, at_us) IN
            (SELECT team_id, at_us FROM usage WHERE at_us < ? ORDER BY at_us LIMIT ?)",
    )
    .bind(before_us)
    .bind(STEP_LINES)
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected() > 0)
}

fn usage(row: (i64, i64, i64, i64)) -> Result<Usage, Cause> {
    let (at_us, span_ms, sandboxes_max, starts) = row;
    let number = |column, value: i64| u32::try_from(value).map_err(|error| Cause::damaged(column, error));
    Ok(Usage {
        at: Timestamp::from_microsecond(at_us).map_err(|error| Cause::damaged("at_us", error))?,
        span: Duration::from_millis(u64::try_from(span_ms).map_err(|error| Cause::damaged("span_ms", error))?),
        sandboxes_max: number("sandboxes_max", sandboxes_max)?,
        starts: number("starts", starts)?,
    })
}
