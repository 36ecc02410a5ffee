//! The tables, step by step. Steps are only added, never changed once released, and never undone. The file's
//! `user_version` counts those it has.

use sea_orm::sqlx::sqlite::SqlitePool;
use sea_orm::sqlx::{AssertSqlSafe, Connection as _, query_scalar, raw_sql};

use crate::error::Cause;

const STEPS: &[&str] = &[LOG_LINES];

/// Ids grow with arrival, so the lowest are the oldest of all. The triggers are what keeps `bytes` true, and a sandbox
/// without lines from staying.
const LOG_LINES: &str = "
CREATE TABLE sandbox (
    id INTEGER PRIMARY KEY,
    team_id BLOB NOT NULL,
    sandbox_id TEXT NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (team_id, sandbox_id)
) STRICT;
CREATE TABLE line (
    id INTEGER PRIMARY KEY,
    sandbox INTEGER NOT NULL REFERENCES sandbox (id),
    at_us INTEGER NOT NULL,
    level INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    is_cut INTEGER NOT NULL,
    execution_id BLOB NOT NULL,
    template_id TEXT,
    logger TEXT NOT NULL,
    message TEXT NOT NULL,
    fields TEXT NOT NULL
) STRICT;
CREATE INDEX line_sandbox_time ON line (sandbox, at_us);
CREATE TRIGGER line_came AFTER INSERT ON line BEGIN
    UPDATE sandbox SET bytes = bytes + NEW.bytes WHERE id = NEW.sandbox;
END;
CREATE TRIGGER line_went AFTER DELETE ON line BEGIN
    UPDATE sandbox SET bytes = bytes - OLD.bytes WHERE id = OLD.sandbox;
    DELETE FROM sandbox WHERE id = OLD.sandbox AND bytes <= 0;
END;
";

/// Brings the tables up to date; `false`: a newer version did so before, and nothing was changed.
pub(super) async fn ensure(writer: &SqlitePool) -> Result<bool, Cause> {
    let mut connection = writer.acquire().await?;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let version: i64 = query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await?;
    let Some(pending) = usize::try_from(version).ok().and_then(|version| STEPS.get(version..)) else {
        return Ok(false);
    };
    for step in pending {
        raw_sql(*step).execute(&mut *transaction).await?;
    }
    // A pragma takes no parameters; this is a number of ours.
    let version = AssertSqlSafe(format!("PRAGMA user_version = {}", STEPS.len()));
    raw_sql(version).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(true)
}
