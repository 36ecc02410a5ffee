//! The records that are set, so that each is removed again, whatever comes between: a failure, a signal, a crash.
//!
//! A record is written down before it is set, and struck out once it was removed. The hook may be asked to remove one that is not
//! there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::hook::{Change, Hook, Record};
use super::kept;

/// What stands in the file, and whom to call.
pub(super) struct Journal {
    path: PathBuf,
    hook: Hook,
    records: Vec<Record>,
}

impl Journal {
    /// With what an earlier process left.
    pub(super) fn open(path: &Path, hook: Hook) -> Self {
        Self { path: path.to_owned(), hook, records: kept::read(path).unwrap_or_default() }
    }

    /// Sets a record. After a failure it may be there or not, and is still removed later. Cancelled, the same.
    pub(super) async fn set(&mut self, record: &Record) -> Result<()> {
        self.records.push(record.clone());
        self.write()?;
        self.hook.call(Change::Set, record).await
    }

    /// Removes all. Those that could not be removed stay written down.
    ///
    /// # Errors
    /// The first failure; the others were tried all the same.
    pub(super) async fn clear(&mut self) -> Result<()> {
        let mut failure = None;
        for record in self.records.clone() {
            match self.hook.call(Change::Remove, &record).await {
                Ok(()) => {
                    self.records.retain(|other| *other != record);
                    self.write()?;
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            Some(error) => Err(anyhow!(error).context("removing a record that is needed no longer")),
            None => Ok(()),
        }
    }

    fn write(&self) -> Result<()> {
        let written = match self.records.is_empty() {
            true => kept::remove(&self.path),
            false => kept::write(&self.path, &self.records),
        };
        written.context("noting which records are set")
    }
}
