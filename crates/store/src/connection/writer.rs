//! The connection that writes, and the turn to use it.
//!
//! A transaction that fails half-way can leave a connection that nobody may use again. SQLite, when its file cannot grow,
//! rolls back by itself (<https://www.sqlite.org/lang_transaction.html>, "Response To Errors Within A Transaction"); the
//! rollback that follows then fails, and the library goes on counting a transaction that is gone: it would answer the next
//! `BEGIN` with a savepoint. After a failed `COMMIT` neither side says what is true. So a connection stays in use only if
//! its last transaction ended well:
//!
//! * begun and committed, both acknowledged; otherwise the next writer closes it first ([`Turn::is_in_doubt`]);
//! * or dropped, and its rollback succeeded: the pool looks when it takes a SQLite connection back ([`is_rolled_back`]);
//!   a Postgres connection answers the pool's ping with the error of a rollback that failed, and is closed for it.

use std::sync::Arc;

use sea_orm::sqlx;
use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait as _,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::WRITER_LOCK;
use crate::error::{Cause, Error, failed};

/// The connection that writes. Cheap to clone: clones share it.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    /// A pool of one connection.
    database: DatabaseConnection,
    turn: Arc<Mutex<Turn>>,
}

/// The right to write, of one caller at a time.
#[derive(Debug, Default)]
struct Turn {
    /// Whether a `BEGIN` or a `COMMIT` was sent and not acknowledged: it failed, or its call was dropped.
    is_in_doubt: bool,
}

impl Writer {
    pub(super) fn new(database: DatabaseConnection) -> Self {
        Self { database, turn: Arc::default() }
    }

    pub(super) fn database(&self) -> &DatabaseConnection {
        &self.database
    }

    /// Begins a transaction when it is its turn. Cancel safe: what a dropped call began is undone.
    pub(super) async fn begin(&self, action: &'static str, subject: String) -> Result<Write, Error> {
        let mut turn = Arc::clone(&self.turn).lock_owned().await;
        if turn.is_in_doubt {
            self.close_connection().await;
        }
        let options = TransactionOptions {
            // The lock is taken before anything is read, so that no decision rests on what another process changes.
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        turn.is_in_doubt = true;
        let begun = self.database.begin_with_options(options).await;
        // Without a connection there is none to doubt.
        turn.is_in_doubt = matches!(&begun, Err(error) if !is_unconnected(error));
        let transaction = begun.map_err(failed(action, &subject))?;
        let write = Write { transaction, turn, action, subject };
        if self.database.get_database_backend() == DbBackend::Postgres {
            let lock = format!("SELECT pg_advisory_xact_lock({WRITER_LOCK})");
            write.transaction.execute_unprepared(&lock).await.map_err(|error| write.failed(error))?;
        }
        Ok(write)
    }

    /// Has the pool close its connection; the next acquire opens another. Cancel safe. Only in its turn.
    async fn close_connection(&self) {
        // No connection: it was closed already.
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
        tracing::info!("the database connection whose last transaction failed is opened again");
    }
}

/// Whether there was no connection to begin on.
fn is_unconnected(error: &DbErr) -> bool {
    matches!(error, DbErr::ConnectionAcquire(_) | DbErr::Conn(_))
}

/// Whether a SQLite connection that comes back to its pool has no transaction left. Executes the rollback of a dropped
/// transaction first, which is queued.
pub(super) async fn is_rolled_back(connection: &mut sqlx::SqliteConnection) -> Result<bool, sqlx::Error> {
    use sqlx::Connection as _;

    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// A transaction that has its turn to write. Dropping it undoes it, before the next one begins.
pub(crate) struct Write {
    // In this order: the undoing of a dropped transaction is queued before the turn ends.
    pub(crate) transaction: DatabaseTransaction,
    turn: OwnedMutexGuard<Turn>,
    action: &'static str,
    subject: String,
}

impl Write {
    /// Makes the changes durable.
    pub(crate) async fn commit(self) -> Result<(), Error> {
        let Self { transaction, mut turn, action, subject } = self;
        turn.is_in_doubt = true;
        let committed = transaction.commit().await;
        committed.map_err(|error| Error::Commit { action, subject, source: Cause::from(error) })?;
        turn.is_in_doubt = false;
        Ok(())
    }

    /// What a query of this transaction failed to do.
    pub(crate) fn failed(&self, error: DbErr) -> Error {
        failed(self.action, &self.subject)(error)
    }
}
