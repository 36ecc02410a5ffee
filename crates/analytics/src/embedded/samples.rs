//! Recording samples, reading windows of them, and merging them with age.

use std::collections::BTreeMap;

use hearth_types::{SandboxId, TeamId};
use jiff::Timestamp;
use sea_orm::sqlx::sqlite::{SqliteConnection, SqlitePool};
use sea_orm::sqlx::{Connection as _, query, query_as, query_scalar};

use super::read::first_microsecond;
use super::space::{STEP_LINES, Space};
use super::writer::Writer;
use crate::error::Cause;
use crate::sample::{
    Bucket, RESOLUTIONS, Resolution, SAMPLE_INTERVAL, Sample, SampleQuery, WeightedSample, bucket_index, buckets,
    downsample, step_of,
};

/// Time, weight, and the sample's values, in the order of its fields.
type Row = (i64, i64, i64, f64, i64, i64, i64, i64, i64);

/// Query for the columns of a [`Row`].
macro_rules! select {
    ($conditions:literal) => {
        concat!(
            "SELECT at_us, weight, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used
                FROM sample WHERE ",
            $conditions
        )
    };
}

pub(super) async fn record(
    writer: &Writer,
    space: &Space,
    team_id: TeamId,
    sandbox_id: &SandboxId,
    sample: &Sample,
) -> Result<(), Cause> {
    let mut connection = writer.acquire().await?;
    space.make_room_for_sample(&mut connection).await?;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    query("INSERT INTO sampled (team_id, sandbox_id) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(team_id.as_uuid())
        .bind(sandbox_id.as_str())
        .execute(&mut *transaction)
        .await?;
    let sandbox: i64 = query_scalar("SELECT id FROM sampled WHERE team_id = ? AND sandbox_id = ?")
        .bind(team_id.as_uuid())
        .bind(sandbox_id.as_str())
        .fetch_one(&mut *transaction)
        .await?;
    let Sample { at, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used } = *sample;
    // A second sample of the same microsecond is ignored.
    query(
        "INSERT INTO sample
            (sandbox, at_us, step_s, weight, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total,
                disk_used)
            VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(sandbox)
    .bind(at.as_microsecond())
    .bind(seconds(SAMPLE_INTERVAL.as_secs()))
    .bind(i64::from(cpu_count))
    .bind(cpu_used_pct)
    .bind(integer(mem_total))
    .bind(integer(mem_used))
    .bind(integer(mem_cache))
    .bind(integer(disk_total))
    .bind(integer(disk_used))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    connection.release();
    Ok(())
}

pub(super) async fn range(
    readers: &SqlitePool,
    team_id: TeamId,
    sandbox_id: &SandboxId,
    query: &SampleQuery,
    oldest: Timestamp,
) -> Result<Vec<Sample>, Cause> {
    let SampleQuery { from, until, step } = *query;
    // Bounded by what merging leaves of a sandbox that was sampled for the whole retention: some thousands.
    let rows: Vec<Row> = query_as(select!(
        "sandbox = (SELECT id FROM sampled WHERE team_id = ? AND sandbox_id = ?) AND at_us >= ? AND at_us < ?
            ORDER BY at_us"
    ))
    .bind(team_id.as_uuid())
    .bind(sandbox_id.as_str())
    .bind(first_microsecond(from.map_or(oldest, |from| from.max(oldest))))
    .bind(until.map_or(i64::MAX, first_microsecond))
    .fetch_all(readers)
    .await?;
    let samples = rows.into_iter().map(weighted).collect::<Result<Vec<_>, Cause>>()?;
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Ok(Vec::new()) };
    let length = last.sample.at.duration_since(first.sample.at).unsigned_abs();
    Ok(downsample(samples, step.unwrap_or_else(|| step_of(length))))
}

pub(super) async fn latest(
    readers: &SqlitePool,
    team_id: TeamId,
    sandbox_ids: &[SandboxId],
    oldest: Timestamp,
) -> Result<BTreeMap<SandboxId, Sample>, Cause> {
    let mut connection = readers.acquire().await?;
    let mut found = BTreeMap::new();
    for sandbox_id in sandbox_ids {
        let row: Option<Row> = query_as(select!(
            "sandbox = (SELECT id FROM sampled WHERE team_id = ? AND sandbox_id = ?) AND at_us >= ?
                ORDER BY at_us DESC LIMIT 1"
        ))
        .bind(team_id.as_uuid())
        .bind(sandbox_id.as_str())
        .bind(first_microsecond(oldest))
        .fetch_optional(&mut *connection)
        .await?;
        if let Some(row) = row {
            found.insert(sandbox_id.clone(), weighted(row)?.sample);
        }
    }
    Ok(found)
}

/// Deletes samples from before `oldest`.
pub(super) async fn delete_aged(connection: &mut SqliteConnection, oldest: Timestamp) -> Result<(), Cause> {
    for Resolution { step, .. } in RESOLUTIONS {
        loop {
            let deleted = query(
                "DELETE FROM sample WHERE (sandbox, at_us) IN
                    (SELECT sandbox, at_us FROM sample WHERE step_s = ? AND at_us < ? ORDER BY at_us LIMIT ?)",
            )
            .bind(seconds(step.as_secs()))
            .bind(oldest.as_microsecond())
            .bind(STEP_LINES)
            .execute(&mut *connection)
            .await?;
            if deleted.rows_affected() == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// Deletes some of the oldest samples of all sandboxes, which are the coarsest. Returns `false` if there are none.
pub(super) async fn delete_oldest(connection: &mut SqliteConnection) -> Result<bool, Cause> {
    let deleted = query(
        "DELETE FROM sample WHERE (sandbox, at_us) IN
            (SELECT sandbox, at_us FROM sample ORDER BY step_s DESC, at_us LIMIT ?)",
    )
    .bind(STEP_LINES)
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected() > 0)
}

/// Merges samples that have reached the age at which fewer are stored.
///
/// The connection is released after each step, so other writes wait for at most one step.
pub(super) async fn merge_aged(writer: &Writer, now: Timestamp) -> Result<(), Cause> {
    for pair in RESOLUTIONS.windows(2) {
        let [finer, coarser] = pair else { continue };
        // Only whole steps of the clock are merged: a sample that ages later must not start a second sample of the same
        // step.
        let age = now.checked_sub(finer.range_max).unwrap_or(Timestamp::MIN);
        let step = seconds(coarser.step.as_secs());
        let before_us = bucket_index(age, coarser.step).saturating_mul(step).saturating_mul(1_000_000);
        loop {
            let mut connection = writer.acquire().await?;
            let is_more = merge_some(&mut connection, finer, coarser, before_us).await?;
            connection.release();
            if !is_more {
                break;
            }
        }
    }
    Ok(())
}

/// Merges some samples of one sandbox. Returns `false` if there is nothing to merge.
async fn merge_some(
    connection: &mut SqliteConnection,
    finer: &Resolution,
    coarser: &Resolution,
    before_us: i64,
) -> Result<bool, Cause> {
    let (fine, coarse) = (seconds(finer.step.as_secs()), seconds(coarser.step.as_secs()));
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let sandbox: Option<i64> =
        query_scalar("SELECT sandbox FROM sample WHERE step_s = ? AND at_us < ? ORDER BY at_us LIMIT 1")
            .bind(fine)
            .bind(before_us)
            .fetch_optional(&mut *transaction)
            .await?;
    let Some(sandbox) = sandbox else { return Ok(false) };
    let rows: Vec<Row> = query_as(select!("sandbox = ? AND at_us < ? AND step_s = ? ORDER BY at_us LIMIT ?"))
        .bind(sandbox)
        .bind(before_us)
        .bind(fine)
        .bind(STEP_LINES)
        .fetch_all(&mut *transaction)
        .await?;
    let samples = rows.into_iter().map(weighted).collect::<Result<Vec<_>, Cause>>()?;
    for Bucket { merged: WeightedSample { sample, weight }, last } in buckets(&samples, coarser.step) {
        let first_us = sample.at.as_microsecond();
        query("DELETE FROM sample WHERE sandbox = ? AND at_us > ? AND at_us <= ? AND step_s = ?")
            .bind(sandbox)
            .bind(first_us)
            .bind(last.as_microsecond())
            .bind(fine)
            .execute(&mut *transaction)
            .await?;
        // The row of the bucket's first sample becomes the merged sample.
        query(
            "UPDATE sample SET step_s = ?, weight = ?, cpu_count = ?, cpu_used_pct = ?, mem_total = ?, mem_used = ?,
                mem_cache = ?, disk_total = ?, disk_used = ? WHERE sandbox = ? AND at_us = ?",
        )
        .bind(coarse)
        .bind(i64::from(weight))
        .bind(i64::from(sample.cpu_count))
        .bind(sample.cpu_used_pct)
        .bind(integer(sample.mem_total))
        .bind(integer(sample.mem_used))
        .bind(integer(sample.mem_cache))
        .bind(integer(sample.disk_total))
        .bind(integer(sample.disk_used))
        .bind(sandbox)
        .bind(first_us)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(true)
}

fn weighted(row: Row) -> Result<WeightedSample, Cause> {
    let (at_us, weight, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used) = row;
    let bytes = |column, value: i64| u64::try_from(value).map_err(|error| Cause::damaged(column, error));
    let sample = Sample {
        at: Timestamp::from_microsecond(at_us).map_err(|error| Cause::damaged("at_us", error))?,
        cpu_count: u32::try_from(cpu_count).map_err(|error| Cause::damaged("cpu_count", error))?,
        cpu_used_pct,
        mem_total: bytes("mem_total", mem_total)?,
        mem_used: bytes("mem_used", mem_used)?,
        mem_cache: bytes("mem_cache", mem_cache)?,
        disk_total: bytes("disk_total", disk_total)?,
        disk_used: bytes("disk_used", disk_used)?,
    };
    Ok(WeightedSample { sample, weight: u32::try_from(weight).map_err(|error| Cause::damaged("weight", error))? })
}

/// Converts a number that intake has bounded.
fn integer(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
