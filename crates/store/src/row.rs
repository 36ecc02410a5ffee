//! Conversion between column values and domain values.
//!
//! In every table numbers are 64-bit integers, times are microseconds since 1970, and durations are milliseconds.
//! Writing truncates to those; reading rejects values that no version of Hearth writes.

use std::error::Error as StdError;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use crate::error::Error;

pub(crate) fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

pub(crate) fn now_micros() -> i64 {
    micros(Timestamp::now())
}

pub(crate) fn millis(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

/// Identity of a row that is being read, for error messages, with functions that convert its columns.
pub(crate) struct RowReader {
    table: &'static str,
    id: String,
}

impl RowReader {
    pub(crate) fn new(table: &'static str, id: impl Display) -> Self {
        Self { table, id: id.to_string() }
    }

    pub(crate) fn damaged(&self, column: &'static str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Damaged { table: self.table, id: self.id.clone(), column, source: source.into() }
    }

    pub(crate) fn text<T>(&self, column: &'static str, text: &str) -> Result<T, Error>
    where
        T: FromStr<Err: StdError + Send + Sync + 'static>,
    {
        text.parse().map_err(|error| self.damaged(column, error))
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, column: &'static str, text: &str) -> Result<T, Error> {
        serde_json::from_str(text).map_err(|error| self.damaged(column, error))
    }

    pub(crate) fn number(&self, column: &'static str, number: i64) -> Result<u32, Error> {
        u32::try_from(number).map_err(|error| self.damaged(column, error))
    }

    pub(crate) fn time(&self, column: &'static str, micros: i64) -> Result<Timestamp, Error> {
        Timestamp::from_microsecond(micros).map_err(|error| self.damaged(column, error))
    }

    pub(crate) fn length(&self, column: &'static str, millis: i64) -> Result<Duration, Error> {
        u64::try_from(millis).map(Duration::from_millis).map_err(|error| self.damaged(column, error))
    }
}

/// A column has a text that is none of its possible values.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a known value")]
pub(crate) struct UnknownValue(pub(crate) String);
