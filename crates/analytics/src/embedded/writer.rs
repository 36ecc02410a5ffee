//! The connection that writes.
//!
//! SQLite, when its file cannot grow, rolls back by itself, and the rollback that follows fails: the library then counts a
//! transaction that is gone, and refuses to begin another one on that connection for ever. So a connection is used again
//! only if everything that was done with it succeeded.

use std::ops::{Deref, DerefMut};

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::sqlite::{SqliteConnection, SqlitePool};
use sea_orm::sqlx::{self, Sqlite};

/// A pool of one connection.
#[derive(Debug)]
pub(super) struct Writer(SqlitePool);

impl Writer {
    pub(super) fn new(pool: SqlitePool) -> Self {
        Self(pool)
    }

    /// The connection, when nobody else has it.
    pub(super) async fn lend(&self) -> Result<Lent, sqlx::Error> {
        Ok(Lent { connection: self.0.acquire().await?, has_succeeded: false })
    }

    pub(super) async fn close(&self) {
        self.0.close().await;
    }

    #[cfg(test)]
    pub(super) fn pool(&self) -> &SqlitePool {
        &self.0
    }
}

/// The connection in use. Closed when it is dropped before [`Lent::succeed`]: after an error, or with a dropped call.
pub(super) struct Lent {
    connection: PoolConnection<Sqlite>,
    has_succeeded: bool,
}

impl Lent {
    /// Gives the connection back for others to use.
    pub(super) fn succeed(mut self) {
        self.has_succeeded = true;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.has_succeeded {
            self.connection.close_on_drop();
        }
    }
}

impl Deref for Lent {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}
