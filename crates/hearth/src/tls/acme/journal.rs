//! Journal of the DNS records that are set, so that each is removed again after a failure, a signal or a crash.
//!
//! A record is added to the journal before it is set, and deleted from it once it was removed. Therefore the hook may
//! be called to remove a record that does not exist.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::hook::{Change, Hook, Record};
use super::state_file;

/// Records in the journal file, and the hook that removes them.
pub(super) struct Journal {
    path: PathBuf,
    hook: Hook,
    records: Vec<Record>,
}

impl Journal {
    /// Reads the records that an earlier process left.
    pub(super) fn open(path: &Path, hook: Hook) -> Self {
        Self { path: path.to_owned(), hook, records: state_file::read(path).unwrap_or_default() }
    }

    /// Sets a record. After a failure or a cancellation it may or may not be set, and is still removed later.
    pub(super) async fn set(&mut self, record: &Record) -> Result<()> {
        self.records.push(record.clone());
        self.write()?;
        self.hook.call(Change::Set, record).await
    }

    /// Removes all records. Those that could not be removed stay in the journal.
    ///
    /// # Errors
    /// Returns the first failure; all other records were tried as well.
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
            Some(error) => Err(anyhow!(error).context("removing a DNS record")),
            None => Ok(()),
        }
    }

    fn write(&self) -> Result<()> {
        let written = match self.records.is_empty() {
            true => state_file::remove(&self.path),
            false => state_file::write(&self.path, &self.records),
        };
        written.context("writing the journal of DNS records")
    }
}
