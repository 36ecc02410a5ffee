//! Migrations of the tables.
//!
//! Migrations are only added. They are never changed once released, and never undone. The file's `user_version` is the
//! number of applied migrations.

use sea_orm::sqlx::{AssertSqlSafe, Connection as _, query_scalar, raw_sql};

use super::writer::Writer;
use crate::error::Cause;

const MIGRATIONS: &[&str] = &[LOG_LINES, SAMPLES];

/// Tables of log lines.
///
/// Ids increase with arrival, so the lowest are the oldest of all sandboxes. The triggers maintain `bytes`, and delete
/// a sandbox that has no lines.
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

/// Tables of samples and usages.
///
/// The samples of a sandbox are adjacent. The indices are for deletion by age: the coarser a sample, the older it is.
/// Triggers count rows, because counting them one by one would take longer than adding one.
const SAMPLES: &str = "
CREATE TABLE counted (
    name TEXT PRIMARY KEY,
    kept INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counted (name, kept) VALUES ('sample', 0), ('usage', 0);
CREATE TABLE sampled (
    id INTEGER PRIMARY KEY,
    team_id BLOB NOT NULL,
    sandbox_id TEXT NOT NULL,
    samples INTEGER NOT NULL DEFAULT 0,
    UNIQUE (team_id, sandbox_id)
) STRICT;
CREATE TABLE sample (
    sandbox INTEGER NOT NULL REFERENCES sampled (id),
    at_us INTEGER NOT NULL,
    step_s INTEGER NOT NULL,
    weight INTEGER NOT NULL,
    cpu_count INTEGER NOT NULL,
    cpu_used_pct REAL NOT NULL,
    mem_total INTEGER NOT NULL,
    mem_used INTEGER NOT NULL,
    mem_cache INTEGER NOT NULL,
    disk_total INTEGER NOT NULL,
    disk_used INTEGER NOT NULL,
    PRIMARY KEY (sandbox, at_us)
) STRICT, WITHOUT ROWID;
CREATE INDEX sample_age ON sample (step_s, at_us);
CREATE TRIGGER sample_came AFTER INSERT ON sample BEGIN
    UPDATE sampled SET samples = samples + 1 WHERE id = NEW.sandbox;
    UPDATE counted SET kept = kept + 1 WHERE name = 'sample';
END;
CREATE TRIGGER sample_went AFTER DELETE ON sample BEGIN
    UPDATE sampled SET samples = samples - 1 WHERE id = OLD.sandbox;
    DELETE FROM sampled WHERE id = OLD.sandbox AND samples <= 0;
    UPDATE counted SET kept = kept - 1 WHERE name = 'sample';
END;
CREATE TABLE usage (
    team_id BLOB NOT NULL,
    at_us INTEGER NOT NULL,
    span_ms INTEGER NOT NULL,
    sandboxes_max INTEGER NOT NULL,
    starts INTEGER NOT NULL,
    PRIMARY KEY (team_id, at_us)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_age ON usage (at_us);
CREATE TRIGGER usage_came AFTER INSERT ON usage BEGIN
    UPDATE counted SET kept = kept + 1 WHERE name = 'usage';
END;
CREATE TRIGGER usage_went AFTER DELETE ON usage BEGIN
    UPDATE counted SET kept = kept - 1 WHERE name = 'usage';
END;
";

/// Brings the tables up to date. Returns `false`, and changes nothing, if a newer version did so before.
pub(super) async fn ensure(writer: &Writer) -> Result<bool, Cause> {
    let mut connection = writer.acquire().await?;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let version: i64 = query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await?;
    let Some(pending) = usize::try_from(version).ok().and_then(|version| MIGRATIONS.get(version..)) else {
        return Ok(false);
    };
    for migration in pending {
        raw_sql(*migration).execute(&mut *transaction).await?;
    }
    // A pragma takes no parameters; the number is a constant.
    let version = AssertSqlSafe(format!("PRAGMA user_version = {}", MIGRATIONS.len()));
    raw_sql(version).execute(&mut *transaction).await?;
    transaction.commit().await?;
    connection.release();
    Ok(true)
}
