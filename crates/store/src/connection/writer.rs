//! The writing connection, and the queue for it.
//!
//! A transaction that fails half-way can leave a connection that must not be used again. When its file cannot grow,
//! SQLite rolls back by itself (<https://www.sqlite.org/lang_transaction.html>, "Response To Errors Within A
//! Transaction"); the rollback that follows then fails, and the library still counts a transaction that no longer
//! exists: it would send the next `BEGIN` as a savepoint. After a failed `COMMIT` it is unknown whether the transaction
//! took effect. Therefore a connection stays in use only if its last transaction ended cleanly:
//!
//! * it was begun and committed, and both were acknowledged; otherwise the next writer closes the connection first
//!   ([`State::is_in_doubt`]);
//! * or it was dropped and its rollback succeeded: the pool checks a SQLite connection that is returned to it
//!   ([`is_rolled_back`]); a Postgres connection answers the pool's ping with the error of a failed rollback, and is
//!   closed.

use std::sync::Arc;

use sea_orm::sqlx;
use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait as _,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::WRITER_LOCK;
use crate::error::{Cause, Error, failed};

/// The writing connection. Cheap to clone: clones share it.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    /// A pool of one connection.
    database: DatabaseConnection,
    state: Arc<Mutex<State>>,
}

/// State of the writing connection. Holding its lock is the right to write.
#[derive(Debug, Default)]
struct State {
    /// `true` after a `BEGIN` or `COMMIT` that was not acknowledged: it failed, or its call was dropped.
    is_in_doubt: bool,
}

impl Writer {
    pub(super) fn new(database: DatabaseConnection) -> Self {
        Self { database, state: Arc::default() }
    }

    pub(super) fn database(&self) -> &DatabaseConnection {
        &self.database
    }

    /// Begins a transaction, after those that were requested earlier. Cancel safe: a dropped call is rolled back.
    pub(super) async fn begin(&self, action: &'static str, subject: String) -> Result<Write, Error> {
        let mut state = Arc::clone(&self.state).lock_owned().await;
        if state.is_in_doubt {
            self.close_connection().await;
        }
        let options = TransactionOptions {
            // The write lock is taken before anything is read, so no decision depends on rows that another process
            // changes.
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        state.is_in_doubt = true;
        let begun = self.database.begin_with_options(options).await;
        // If no connection was acquired, no connection is in doubt.
        state.is_in_doubt = matches!(&begun, Err(error) if !is_unconnected(error));
        let transaction = begun.map_err(failed(action, &subject))?;
        let write = Write { transaction, state, action, subject };
        if self.database.get_database_backend() == DbBackend::Postgres {
            let lock = format!("SELECT pg_advisory_xact_lock({WRITER_LOCK})");
            write.transaction.execute_unprepared(&lock).await.map_err(|error| write.failed(error))?;
        }
        Ok(write)
    }

    /// Makes the pool close its connection; the next acquire opens another. Cancel safe. Call it only with the lock
    /// held.
    async fn close_connection(&self) {
        // An error means that there is no connection: it was closed already.
        match self.database.get_database_backend() {
            DbBackend::Postgres => {
                if let Ok(mut connection) = self.database.get_postgres_connection_pool().acquire().await {
                    connection.close_on_drop();
                }
            }
            _ => {
                if let Ok(mut connection) = self.database.get_sqlite_connection_pool().acquire().await {
                    connection.close_on_drop();
                }
            }
        }
        tracing::info!("database connection closed after a failed transaction");
    }
}

/// Returns `true` if the transaction could not begin because there was no connection.
fn is_unconnected(error: &DbErr) -> bool {
    matches!(error, DbErr::ConnectionAcquire(_) | DbErr::Conn(_))
}

/// Returns `true` if a SQLite connection that is returned to its pool has no open transaction.
///
/// The ping executes the queued rollback of a dropped transaction first.
pub(super) async fn is_rolled_back(connection: &mut sqlx::SqliteConnection) -> Result<bool, sqlx::Error> {
    use sqlx::Connection as _;

    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// A writing transaction. Dropping it rolls it back before the next one begins.
pub(crate) struct Write {
    // The field order matters: the rollback of a dropped transaction is queued before the lock is released.
    pub(crate) transaction: DatabaseTransaction,
    state: OwnedMutexGuard<State>,
    action: &'static str,
    subject: String,
}

impl Write {
    /// Commits the changes durably.
    pub(crate) async fn commit(self) -> Result<(), Error> {
        let Self { transaction, mut state, action, subject } = self;
        state.is_in_doubt = true;
        let committed = transaction.commit().await;
        committed.map_err(|error| Error::Commit { action, subject, source: Cause::from(error) })?;
        state.is_in_doubt = false;
        Ok(())
    }

    /// Returns the error for a failed query of this transaction.
    pub(crate) fn failed(&self, error: DbErr) -> Error {
        failed(self.action, &self.subject)(error)
    }
}
