//! What has to go, and giving space back.
//!
//! Everything is deleted in small steps, each a transaction of its own: a step touches at most some hundred pages, which is
//! what bounds the write-ahead log, and a failure or a cancelled call keeps what the steps before it achieved.

use std::path::PathBuf;

use hearth_types::{SandboxId, TeamId};
use jiff::Timestamp;
use sea_orm::sqlx::sqlite::SqliteConnection;
use sea_orm::sqlx::{AssertSqlSafe, Connection as _, query, query_as, query_scalar, raw_sql};

use super::{samples, usages};
use crate::error::Cause;

/// Size of a page.
pub(super) const PAGE_BYTES: u32 = 4096;
/// The part of the file's bound that is set aside for the write-ahead log. It is emptied at half of it.
pub(super) const WAL_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Pages in the write-ahead log after which SQLite moves them into the file: 2 MiB.
pub(super) const CHECKPOINT_PAGES: u64 = 512;
/// What a line needs besides its texts: ids, times, headers, its place in the index, and what stays free in a page.
pub(super) const LINE_OVERHEAD_BYTES: usize = 128;

/// Pages that new lines need for each page of their texts, at worst: a text that is just longer than a page takes two.
const PAGES_PER_TEXT_PAGE: u64 = 2;
/// Lines, or rows of another kind, that one step deletes, at most: at worst each is on a page of its own.
pub(super) const STEP_LINES: i64 = 512;
/// When something has to go, this part of the bound goes with it, so that not every append has to delete.
const GOES_WITH_IT: u64 = 64;
/// Free pages that stay in the file for the next lines: 4 MiB, which is also what goes at once of the default bound.
const FREE_PAGES_KEPT: i64 = 1024;

/// Which part of the file all samples together may need, and which all usages.
const SAMPLES_PART: u64 = 4;
const USAGES_PART: u64 = 16;
/// What a sample needs with its place in the index, when the pages are half empty.
const SAMPLE_ROW_BYTES: u64 = 200;
/// What a usage needs, in the same way.
const USAGE_ROW_BYTES: u64 = 160;
/// Pages that a transaction of few rows may need: one for each level of some trees, and as many when pages are divided.
const ROW_PAGES: u64 = 16;

/// The bounds.
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

    /// Most pages of the file.
    pub(super) fn pages_max(&self) -> u64 {
        self.pages_max
    }

    /// Makes room for so many bytes of a sandbox's lines: first at its own cost, then at that of the
    /// team that has most.
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

    /// Makes room for a sample: first among samples, then at the cost of the oldest lines.
    pub(super) async fn make_room_for_sample(&self, connection: &mut SqliteConnection) -> Result<(), Cause> {
        let mut excess = Excess::new(self.pages_max * u64::from(PAGE_BYTES) / SAMPLES_PART / SAMPLE_ROW_BYTES);
        while excess.of(counted(connection, "sample").await? + 1).is_some() {
            if !samples::delete_oldest(connection).await? {
                break;
            }
        }
        self.make_room_in_file(connection, ROW_PAGES).await?;
        self.bound_write_ahead_log(connection).await
    }

    /// Makes room for the usages of so many teams.
    pub(super) async fn make_room_for_usages(
        &self,
        connection: &mut SqliteConnection,
        teams: u64,
    ) -> Result<(), Cause> {
        let mut excess = Excess::new(self.pages_max * u64::from(PAGE_BYTES) / USAGES_PART / USAGE_ROW_BYTES);
        while excess.of(counted(connection, "usage").await? + teams).is_some() {
            if !usages::delete_oldest(connection).await? {
                break;
            }
        }
        // Each may be on a page of its own, and so its place in the index.
        self.make_room_in_file(connection, ROW_PAGES + 2 * teams).await?;
        self.bound_write_ahead_log(connection).await
    }

    async fn bound_write_ahead_log(&self, connection: &mut SqliteConnection) -> Result<(), Cause> {
        // Readers that follow each other without a gap keep SQLite from beginning the log anew.
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

    /// Removes what is older than `oldest`, what is too much, and what is free.
    pub(super) async fn tidy(&self, connection: &mut SqliteConnection, oldest: Timestamp) -> Result<(), Cause> {
        while delete_aged(connection, oldest).await? {}
        self.make_room_in_file(connection, 0).await?;
        give_back(connection).await?;
        // Never lower than what the file has, so it is set again when that became less. A pragma takes no parameters;
        // this is a number of ours.
        let cap = AssertSqlSafe(format!("PRAGMA max_page_count = {}", self.pages_max));
        raw_sql(cap).execute(&mut *connection).await?;
        empty_write_ahead_log(connection).await
    }
}

/// How much is too much. Once something is, more goes than has to.
#[derive(Debug)]
struct Excess {
    max: u64,
    target: u64,
}

impl Excess {
    fn new(max: u64) -> Self {
        Self { max, target: max }
    }

    fn of(&mut self, wanted: u64) -> Option<u64> {
        if wanted <= self.target {
            return None;
        }
        self.target = self.max - self.max / GOES_WITH_IT;
        Some(wanted - self.target)
    }
}

/// How many rows of a kind there are.
async fn counted(connection: &mut SqliteConnection, name: &'static str) -> Result<u64, Cause> {
    let kept: i64 = query_scalar("SELECT kept FROM counted WHERE name = ?").bind(name).fetch_one(connection).await?;
    Ok(u64::try_from(kept).unwrap_or(0))
}

/// The place of the last line that has to go, of lines in the order in which they go.
fn last_to_go<P>(lines: impl IntoIterator<Item = (P, i64)>, bytes: u64) -> Option<P> {
    let mut gone = 0u64;
    let mut last = None;
    for (place, line_bytes) in lines {
        if gone >= bytes && last.is_some() {
            break;
        }
        gone += u64::try_from(line_bytes).unwrap_or(0);
        last = Some(place);
    }
    last
}

/// One step: the oldest lines of a sandbox, of about so many bytes.
async fn delete_oldest_of(connection: &mut SqliteConnection, sandbox: i64, bytes: u64) -> Result<(), Cause> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let lines: Vec<(i64, i64, i64)> =
        query_as("SELECT at_us, id, bytes FROM line WHERE sandbox = ? ORDER BY at_us, id LIMIT ?")
            .bind(sandbox)
            .bind(STEP_LINES)
            .fetch_all(&mut *transaction)
            .await?;
    let last = last_to_go(lines.into_iter().map(|(at_us, id, bytes)| ((at_us, id), bytes)), bytes);
    // The count would be wrong, and this would never end.
    let (at_us, id) = last.ok_or_else(|| Cause::damaged("bytes", "a sandbox has bytes but no lines"))?;
    query("DELETE FROM line WHERE sandbox = ? AND (at_us, id) <= (?, ?)")
        .bind(sandbox)
        .bind(at_us)
        .bind(id)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction.commit().await?)
}

/// One step: the oldest lines of the team that has most, of about so many bytes; `false`: there are none. So a team that fills
/// the file pays for it, and not those that say little.
async fn delete_oldest(connection: &mut SqliteConnection, bytes: u64) -> Result<bool, Cause> {
    const MOST: &str = "SELECT team_id FROM sandbox GROUP BY team_id ORDER BY sum(bytes) DESC LIMIT 1";
    const OLDEST: &str = "SELECT id, bytes FROM line
        WHERE sandbox IN (SELECT id FROM sandbox WHERE team_id = ?) ORDER BY id LIMIT ?";
    const DELETE: &str = "DELETE FROM line WHERE id <= ? AND sandbox IN (SELECT id FROM sandbox WHERE team_id = ?)";
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let most: Option<Vec<u8>> = query_scalar(MOST).fetch_optional(&mut *transaction).await?;
    let Some(team) = most else { return Ok(false) };
    let lines: Vec<(i64, i64)> = query_as(OLDEST).bind(&team).bind(STEP_LINES).fetch_all(&mut *transaction).await?;
    let Some(last) = last_to_go(lines, bytes) else { return Ok(false) };
    query(DELETE).bind(last).bind(&team).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

/// One step of deleting what is older; `false`: it was the last one.
///
/// A line was never said after it arrived (`intake` sees to it), and ids grow with arrival. So what arrived too long ago
/// is a run of lowest ids that are all too old, and looking at those is enough: what a guest dated back is
/// invisible like the rest, and goes when it comes to be among them.
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

/// Gives free pages back to the file system, but for some.
async fn give_back(connection: &mut SqliteConnection) -> Result<(), Cause> {
    let mut before = i64::MAX;
    loop {
        let free: i64 = query_scalar("PRAGMA freelist_count").fetch_one(&mut *connection).await?;
        // A file that was made without the means to shrink keeps its pages, for reuse.
        if free <= FREE_PAGES_KEPT || free >= before {
            return Ok(());
        }
        before = free;
        // At most 256 pages move.
        raw_sql("PRAGMA incremental_vacuum(256)").execute(&mut *connection).await?;
    }
}

/// Moves all that the write-ahead log has into the file, and makes it empty. Waits for readers, but not for long: they may
/// keep it for a while.
async fn empty_write_ahead_log(connection: &mut SqliteConnection) -> Result<(), Cause> {
    raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn once_something_has_to_go_more_goes() {
        let mut excess = Excess::new(640);
        assert_eq!(excess.of(640), None);
        assert_eq!(excess.of(641), Some(11));
        assert_eq!(excess.of(635), Some(5));
        assert_eq!(excess.of(630), None);
    }

    proptest! {
        #[test]
        fn as_few_go_as_have_to_and_at_least_one(
            lines in prop::collection::vec(1i64..20, 0..20),
            bytes in 0u64..200,
        ) {
            let last = last_to_go(lines.iter().copied().enumerate(), bytes);
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
