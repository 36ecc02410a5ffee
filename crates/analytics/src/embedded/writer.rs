//! The writing connection.
//!
//! When its file cannot grow, SQLite rolls back by itself, and the rollback that follows fails: the library then still
//! counts a transaction that no longer exists, and never begins another one on that connection. A connection is
//! therefore reused only if all operations on it succeeded.

use std::ops::{Deref, DerefMut};

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::sqlite::{SqliteConnection, SqlitePool};
use sea_orm::sqlx::{self, Sqlite};

/// Pool of the one writing connection.
#[derive(Debug)]
pub(super) struct Writer(SqlitePool);

impl Writer {
    pub(super) fn new(pool: SqlitePool) -> Self {
        Self(pool)
    }

    /// Waits for the connection.
    pub(super) async fn acquire(&self) -> Result<WriteConnection, sqlx::Error> {
        Ok(WriteConnection { connection: self.0.acquire().await?, has_succeeded: false })
    }

    pub(super) async fn close(&self) {
        self.0.close().await;
    }

    #[cfg(test)]
    pub(super) fn pool(&self) -> &SqlitePool {
        &self.0
    }
}

/// The connection while it is in use.
///
/// It is closed if it is dropped before [`WriteConnection::release`]: after an error, or with a dropped call.
pub(super) struct WriteConnection {
    connection: PoolConnection<Sqlite>,
    has_succeeded: bool,
}

impl WriteConnection {
    /// Returns the connection to the pool. Call it only if all operations on it succeeded.
    pub(super) fn release(mut self) {
        self.has_succeeded = true;
    }
}

impl Drop for WriteConnection {
    fn drop(&mut self) {
        if !self.has_succeeded {
            self.connection.close_on_drop();
        }
    }
}

impl Deref for WriteConnection {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for WriteConnection {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}
