//! Enforcement of the bounds: deletion of old rows, and return of free pages to the file system.
//!
//! Everything is deleted in small steps, each in its own transaction. A step touches at most some hundred pages, which
//! bounds the write-ahead log. After a failure or a cancelled call, the previous steps remain effective.

use std::path::PathBuf;

use hearth_types::{SandboxId, TeamId};
use jiff::Timestamp;
use sea_orm::sqlx::sqlite::SqliteConnection;
use sea_orm::sqlx::{AssertSqlSafe, Connection as _, query, query_as, query_scalar, raw_sql};

use super::{samples, usages};
use crate::error::Cause;

pub(super) const PAGE_BYTES: u32 = 4096;
/// Part of the file's bound that is reserved for the write-ahead log. The log is emptied at half of it.
pub(super) const WAL_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Pages in the write-ahead log after which SQLite moves them into the file: 2 MiB.
pub(super) const CHECKPOINT_PAGES: u64 = 512;
/// Bytes that a line needs besides its texts: ids, times, headers, its index entry, and unused space in pages.
pub(super) const LINE_OVERHEAD_BYTES: usize = 128;

/// Pages that new lines need for each page of their texts, at worst: a text slightly longer than a page takes two.
const PAGES_PER_TEXT_PAGE: u64 = 2;
/// Maximum number of lines, or rows of another kind, that one step deletes: at worst each is on a separate page.
pub(super) const STEP_LINES: i64 = 512;
/// Fraction (1/N) of an exceeded bound that is freed in addition, so that not every append has to delete.
const HEADROOM_FRACTION: u64 = 64;
/// Free pages that stay in the file for the next lines: 4 MiB, which is also the headroom of the default bound.
const FREE_PAGES_MAX: i64 = 1024;

/// Fractions (1/N) of the file for all samples together, and for all usages together.
const SAMPLES_PART: u64 = 4;
const USAGES_PART: u64 = 16;
/// Bytes that a sample needs with its index entry, when pages are half empty.
const SAMPLE_ROW_BYTES: u64 = 200;
/// Bytes that a usage needs with its index entry, when pages are half empty.
const USAGE_ROW_BYTES: u64 = 160;
/// Pages that a transaction of few rows may need: one for each level of some trees, and as many again for page splits.
const ROW_PAGES: u64 = 16;

/// The bounds of the file.
#[derive(Debug)]
pub(super) struct Space {
    pages_max: u64,
    sandbox_bytes_max: u64,
    write_ahead_log: PathBuf,
}

impl Space {
    pub(super) fn new(bytes_max: u64, sandbox_bytes_max: u64, write_ahead_log: PathBuf) -> Self {
        let pages_max = bytes_max.saturating_sub(WAL_BYTES_MAX) / u64::from(PAGE_BYTES);
        Self { pages_max, sandbox_bytes_max, write_ahead_log }
    }

    /// Maximum number of pages of the file.
    pub(super) fn pages_max(&self) -> u64 {
        self.pages_max
    }

    /// Makes room for `bytes` of a sandbox's lines.
    ///
    /// The sandbox's own oldest lines are deleted first, then those of the team with the most bytes.
    pub(super) async fn make_room(
        &self,
        connection: &mut SqliteConnection,
        team_id: TeamId,
        sandbox_id: &SandboxId,
        bytes: u64,
    ) -> Result<(), Cause> {
        self.make_room_in_sandbox(connection, team_id, sandbox_id, bytes).await?;
        self.make_room_in_file(connection, bytes.div_ceil(PAGE_BYTES.into()) * PAGES_PER_TEXT_PAGE).await?;
        self.bound_write_ahead_log(connection).await
    }

    /// Makes room for a sample: deletes the oldest samples first, then the oldest lines.
    pub(super) async fn make_room_for_sample(&self, connection: &mut SqliteConnection) -> Result<(), Cause> {
        let mut excess = Excess::new(self.pages_max * u64::from(PAGE_BYTES) / SAMPLES_PART / SAMPLE_ROW_BYTES);
        while excess.of(row_count(connection, "sample").await? + 1).is_some() {
            if !samples::delete_oldest(connection).await? {
                break;
            }
        }
        self.make_room_in_file(connection, ROW_PAGES).await?;
        self.bound_write_ahead_log(connection).await
    }

    /// Makes room for the usages of `teams` teams.
    pub(super) async fn make_room_for_usages(
        &self,
        connection: &mut SqliteConnection,
        teams: u64,
    ) -> Result<(), Cause> {
        let mut excess = Excess::new(self.pages_max * u64::from(PAGE_BYTES) / USAGES_PART / USAGE_ROW_BYTES);
        while excess.of(row_count(connection, "usage").await? + teams).is_some() {
            if !usages::delete_oldest(connection).await? {
                break;
            }
        }
        // Each row may be on a separate page, and so may its index entry.
        self.make_room_in_file(connection, ROW_PAGES + 2 * teams).await?;
        self.bound_write_ahead_log(connection).await
    }

    async fn bound_write_ahead_log(&self, connection: &mut SqliteConnection) -> Result<(), Cause> {
        // Overlapping readers without a gap prevent SQLite from restarting the log.
        let log_bytes = tokio::fs::metadata(&self.write_ahead_log).await.map_or(0, |metadata| metadata.len());
        if log_bytes > WAL_BYTES_MAX / 2 {
            empty_write_ahead_log(connection).await?;
        }
        Ok(())
    }

    async fn make_room_in_sandbox(
        &self,
        connection: &mut SqliteConnection,
        team_id: TeamId,
        sandbox_id: &SandboxId,
        bytes: u64,
    ) -> Result<(), Cause> {
        const COUNTED: &str = "SELECT id, bytes FROM sandbox WHERE team_id = ? AND sandbox_id = ?";
        let mut excess = Excess::new(self.sandbox_bytes_max);
        loop {
            let counted: Option<(i64, i64)> = query_as(COUNTED)
                .bind(team_id.as_uuid())
                .bind(sandbox_id.as_str())
                .fetch_optional(&mut *connection)
                .await?;
            let Some((sandbox, used)) = counted else { return Ok(()) };
            let Some(excess) = excess.of(u64::try_from(used).unwrap_or(0) + bytes) else { return Ok(()) };
            delete_oldest_of(connection, sandbox, excess).await?;
        }
    }

    async fn make_room_in_file(&self, connection: &mut SqliteConnection, pages: u64) -> Result<(), Cause> {
        const USED: &str = "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count";
        let mut excess = Excess::new(self.pages_max);
        loop {
            let used: i64 = query_scalar(USED).fetch_one(&mut *connection).await?;
            let Some(excess) = excess.of(u64::try_from(used).unwrap_or(0) + pages) else { return Ok(()) };
            if !delete_oldest(connection, excess * u64::from(PAGE_BYTES)).await?
                && !samples::delete_oldest(connection).await?
                && !usages::delete_oldest(connection).await?
            {
                return Ok(());
            }
        }
    }

    /// Deletes rows that are older than `oldest` and rows beyond the bound, and returns free pages to the file system.
    pub(super) async fn tidy(&self, connection: &mut SqliteConnection, oldest: Timestamp) -> Result<(), Cause> {
        while delete_aged(connection, oldest).await? {}
        self.make_room_in_file(connection, 0).await?;
        shrink(connection).await?;
        // SQLite never sets the limit below the file's size, so it is set again after the file shrank. A pragma takes
        // no parameters; the number is computed here.
        let cap = AssertSqlSafe(format!("PRAGMA max_page_count = {}", self.pages_max));
        raw_sql(cap).execute(&mut *connection).await?;
        empty_write_ahead_log(connection).await
    }
}

/// Amount by which a bound is exceeded. Once it is exceeded, the target is lowered by the headroom.
#[derive(Debug)]
struct Excess {
    max: u64,
    target: u64,
}

impl Excess {
    fn new(max: u64) -> Self {
        Self { max, target: max }
    }

    fn of(&mut self, used: u64) -> Option<u64> {
        if used <= self.target {
            return None;
        }
        self.target = self.max - self.max / HEADROOM_FRACTION;
        Some(used - self.target)
    }
}

/// Returns the number of rows of a kind.
async fn row_count(connection: &mut SqliteConnection, name: &'static str) -> Result<u64, Cause> {
    let count: i64 = query_scalar("SELECT kept FROM counted WHERE name = ?").bind(name).fetch_one(connection).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Returns the position of the last line to delete to free `bytes`, given lines in the order of deletion.
fn last_to_delete<P>(lines: impl IntoIterator<Item = (P, i64)>, bytes: u64) -> Option<P> {
    let mut freed = 0u64;
    let mut last = None;
    for (position, line_bytes) in lines {
        if freed >= bytes && last.is_some() {
            break;
        }
        freed += u64::try_from(line_bytes).unwrap_or(0);
        last = Some(position);
    }
    last
}

/// Deletes the oldest lines of a sandbox, of about `bytes` and at most [`STEP_LINES`].
async fn delete_oldest_of(connection: &mut SqliteConnection, sandbox: i64, bytes: u64) -> Result<(), Cause> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let lines: Vec<(i64, i64, i64)> =
        query_as("SELECT at_us, id, bytes FROM line WHERE sandbox = ? ORDER BY at_us, id LIMIT ?")
            .bind(sandbox)
            .bind(STEP_LINES)
            .fetch_all(&mut *transaction)
            .await?;
    let last = last_to_delete(lines.into_iter().map(|(at_us, id, bytes)| ((at_us, id), bytes)), bytes);
    // A wrong count would make the caller loop forever.
    let (at_us, id) = last.ok_or_else(|| Cause::damaged("bytes", "a sandbox has bytes but no lines"))?;
    query("DELETE FROM line WHERE sandbox = ? AND (at_us, id) <= (?, ?)")
        .bind(sandbox)
        .bind(at_us)
        .bind(id)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction.commit().await?)
}

/// Deletes the oldest lines of the team with the most bytes, of about `bytes`. Returns `false` if there are none.
///
/// A team that fills the file loses its own lines, and not those of teams with little output.
async fn delete_oldest(connection: &mut SqliteConnection, bytes: u64) -> Result<bool, Cause> {
    const MOST: &str = "SELECT team_id FROM sandbox GROUP BY team_id ORDER BY sum(bytes) DESC LIMIT 1";
    const OLDEST: &str = "SELECT id, bytes FROM line
        WHERE sandbox IN (SELECT id FROM sandbox WHERE team_id = ?) ORDER BY id LIMIT ?";
    const DELETE: &str = "DELETE FROM line WHERE id <= ? AND sandbox IN (SELECT id FROM sandbox WHERE team_id = ?)";
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let most: Option<Vec<u8>> = query_scalar(MOST).fetch_optional(&mut *transaction).await?;
    let Some(team) = most else { return Ok(false) };
    let lines: Vec<(i64, i64)> = query_as(OLDEST).bind(&team).bind(STEP_LINES).fetch_all(&mut *transaction).await?;
    let Some(last) = last_to_delete(lines, bytes) else { return Ok(false) };
    query(DELETE).bind(last).bind(&team).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Deletes some lines that are older than `oldest`. Returns `false` if they were the last ones.
///
/// The time of a line is never after its arrival (`intake` ensures it), and ids increase with arrival. All lines that
/// arrived before `oldest` are therefore the lowest ids and too old, and only those need to be examined. A line that a
/// guest dated back is invisible as soon as its time is too old, and is deleted when it is among the lowest ids.
async fn delete_aged(connection: &mut SqliteConnection, oldest: Timestamp) -> Result<bool, Cause> {
    let deleted = query(
        "DELETE FROM line WHERE id IN
            (SELECT id FROM (SELECT id, at_us FROM line ORDER BY id LIMIT ?) WHERE at_us < ?)",
    )
    .bind(STEP_LINES)
    .bind(oldest.as_microsecond())
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected() == u64::try_from(STEP_LINES).unwrap_or(0))
}

/// Returns free pages to the file system, except [`FREE_PAGES_MAX`].
async fn shrink(connection: &mut SqliteConnection) -> Result<(), Cause> {
    let mut before = i64::MAX;
    loop {
        let free: i64 = query_scalar("PRAGMA freelist_count").fetch_one(&mut *connection).await?;
        // A file that was created without incremental vacuum cannot shrink; its pages are reused.
        if free <= FREE_PAGES_MAX || free >= before {
            return Ok(());
        }
        before = free;
        // Moves at most 256 pages.
        raw_sql("PRAGMA incremental_vacuum(256)").execute(&mut *connection).await?;
    }
}

/// Moves all pages of the write-ahead log into the file, and truncates it.
///
/// Waits for readers, but only briefly: they may use the log for a while.
async fn empty_write_ahead_log(connection: &mut SqliteConnection) -> Result<(), Cause> {
    raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_exceeded_bound_frees_headroom_too() {
        let mut excess = Excess::new(640);
        assert_eq!(excess.of(640), None);
        assert_eq!(excess.of(641), Some(11));
        assert_eq!(excess.of(635), Some(5));
        assert_eq!(excess.of(630), None);
    }

    proptest! {
        #[test]
        fn as_few_lines_as_needed_and_at_least_one_are_deleted(
            lines in prop::collection::vec(1i64..20, 0..20),
            bytes in 0u64..200,
        ) {
            let last = last_to_delete(lines.iter().copied().enumerate(), bytes);
            let Some(last) = last else {
                prop_assert!(lines.is_empty());
                return Ok(());
            };
            let sum = |lines: &[i64]| u64::try_from(lines.iter().sum::<i64>()).expect("positive");
            prop_assert!(sum(&lines[..=last]) >= bytes || last + 1 == lines.len());
            prop_assert!(last == 0 || sum(&lines[..last]) < bytes);
        }
    }
}
