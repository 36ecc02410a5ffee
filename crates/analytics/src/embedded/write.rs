//! Appending lines.

use hearth_types::TemplateId;
use sea_orm::sqlx::sqlite::SqliteConnection;
use sea_orm::sqlx::{Connection as _, query, query_scalar};

use super::space::{LINE_OVERHEAD_BYTES, Space};
use super::writer::Writer;
use crate::error::Cause;
use crate::intake::Accepted;
use crate::line::{Level, Source};

/// Maximum bytes of lines in one transaction; bounds the transaction's part of the write-ahead log.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;

pub(super) async fn append(writer: &Writer, space: &Space, source: &Source, lines: Vec<Accepted>) -> Result<(), Cause> {
    let mut connection = writer.acquire().await?;
    let mut remaining = lines.as_slice();
    while !remaining.is_empty() {
        let (chunk, after) = remaining.split_at(chunk_length(remaining));
        remaining = after;
        let bytes = chunk.iter().map(bytes).sum::<usize>() as u64;
        space.make_room(&mut connection, source.team_id, &source.sandbox_id, bytes).await?;
        insert(&mut connection, source, chunk).await?;
    }
    connection.release();
    Ok(())
}

/// Returns the number of lines to insert in the next transaction; at least one.
fn chunk_length(lines: &[Accepted]) -> usize {
    let mut sum = 0;
    let length = lines.iter().take_while(|line| {
        sum += bytes(line);
        sum <= CHUNK_BYTES_MAX
    });
    length.count().max(1)
}

/// Returns the bytes that a line counts against the bound of its sandbox.
fn bytes(accepted: &Accepted) -> usize {
    accepted.line.bytes() + LINE_OVERHEAD_BYTES
}

async fn insert(connection: &mut SqliteConnection, source: &Source, lines: &[Accepted]) -> Result<(), Cause> {
    let Source { team_id, sandbox_id, template_id, execution_id } = source;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    query("INSERT INTO sandbox (team_id, sandbox_id) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(team_id.as_uuid())
        .bind(sandbox_id.as_str())
        .execute(&mut *transaction)
        .await?;
    let sandbox: i64 = query_scalar("SELECT id FROM sandbox WHERE team_id = ? AND sandbox_id = ?")
        .bind(team_id.as_uuid())
        .bind(sandbox_id.as_str())
        .fetch_one(&mut *transaction)
        .await?;
    for accepted in lines {
        let Accepted { line, is_cut } = accepted;
        let fields = serde_json::to_string(&line.fields).map_err(|error| Cause::damaged("fields", error))?;
        query(
            "INSERT INTO line
                (sandbox, at_us, level, bytes, is_cut, execution_id, template_id, logger, message, fields)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(sandbox)
        .bind(line.at.as_microsecond())
        .bind(level_number(line.level))
        .bind(i64::try_from(bytes(accepted)).unwrap_or(i64::MAX))
        .bind(is_cut)
        .bind(execution_id.as_uuid())
        .bind(template_id.as_ref().map(TemplateId::as_str))
        .bind(&line.logger)
        .bind(&line.message)
        .bind(fields)
        .execute(&mut *transaction)
        .await?;
    }
    Ok(transaction.commit().await?)
}

/// Returns the number of a level in the table.
pub(super) fn level_number(level: Level) -> i64 {
    match level {
        Level::Debug => 0,
        Level::Info => 1,
        Level::Warn => 2,
        Level::Error => 3,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::line::LogLine;

    #[test]
    fn chunks_are_bounded_and_never_empty() {
        let line = |length: usize| Accepted {
            line: LogLine {
                at: Timestamp::UNIX_EPOCH,
                level: Level::Info,
                logger: String::new(),
                message: "x".repeat(length - LINE_OVERHEAD_BYTES),
                fields: BTreeMap::new(),
            },
            is_cut: false,
        };
        for (lengths, expected) in [
            (vec![CHUNK_BYTES_MAX / 2; 3], 2),
            (vec![CHUNK_BYTES_MAX], 1),
            (vec![CHUNK_BYTES_MAX + 1, 200], 1),
            (vec![200, CHUNK_BYTES_MAX], 1),
            (vec![200; 7], 7),
        ] {
            let lines: Vec<_> = lengths.iter().copied().map(line).collect();
            assert_eq!(chunk_length(&lines), expected, "{lengths:?}");
        }
    }
}
