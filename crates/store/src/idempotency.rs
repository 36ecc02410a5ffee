//! Requests that name themselves, so that a repetition does nothing twice.
//!
//! ```text
//!   begin: First ──▶ finish, with the answer ──▶ begin: Done      a day later: forgotten
//!             ├────▶ forget (nothing came of it) ──▶ begin: First
//!             └────▶ neither, because the server died ──▶ begin: Running, later Unknown
//! ```

use hearth_types::TeamId;
use jiff::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, QueryFilter as _};

use crate::connection::Store;
use crate::entity::idempotency::{ActiveModel, Column, Entity};
use crate::error::Error;
use crate::row::micros;

/// A request that names itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedRequest {
    /// Whose.
    pub team_id: TeamId,
    /// Its name.
    pub key: String,
    /// A hash of what is asked.
    pub request: String,
}

/// The times of a named request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedTimes {
    /// The time.
    pub now: Timestamp,
    /// When its outcome is known at the latest, unless the server dies.
    pub decided_by: Timestamp,
    /// When it is forgotten.
    pub expires_at: Timestamp,
}

/// What is known of a named request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Nothing: the caller does it, and says what came of it.
    First,
    /// It was done.
    Done {
        /// The answer that was kept.
        answer: String,
    },
    /// Somebody is doing it.
    Running,
    /// Whoever did it died before the outcome was known.
    Unknown,
    /// Something else was asked under this name.
    Mismatch,
}

impl Store {
    /// Takes the name for a request, unless it is taken. Of parallel calls one is the first.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn begin_named(&self, request: &NamedRequest, times: NamedTimes) -> Result<Named, Error> {
        let NamedTimes { now, decided_by, expires_at } = times;
        let write = self.begin("taking an idempotency key of team", request.team_id).await?;
        let id = (request.team_id.as_uuid(), request.key.clone());
        let known = Entity::find_by_id(id.clone()).one(&write.transaction).await;
        if let Some(known) = known.map_err(|error| write.failed(error))? {
            if known.expires_at_us > micros(now) {
                return Ok(match known.answer {
                    _ if known.request != request.request => Named::Mismatch,
                    Some(answer) => Named::Done { answer },
                    None if known.decided_by_us > micros(now) => Named::Running,
                    None => Named::Unknown,
                });
            }
            Entity::delete_by_id(id).exec(&write.transaction).await.map_err(|error| write.failed(error))?;
        }
        let row = ActiveModel {
            team_id: Set(request.team_id.as_uuid()),
            key: Set(request.key.clone()),
            request: Set(request.request.clone()),
            answer: Set(None),
            decided_by_us: Set(micros(decided_by)),
            expires_at_us: Set(micros(expires_at)),
        };
        row.insert(&write.transaction).await.map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(Named::First)
    }

    /// Keeps the answer to a named request.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn finish_named(&self, request: &NamedRequest, answer: &str) -> Result<(), Error> {
        let write = self.begin("keeping the answer to an idempotency key of team", request.team_id).await?;
        Entity::update_many()
            .col_expr(Column::Answer, Expr::value(answer))
            .filter(Column::TeamId.eq(request.team_id.as_uuid()))
            .filter(Column::Key.eq(request.key.as_str()))
            .filter(Column::Request.eq(request.request.as_str()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await
    }

    /// Gives the name back: nothing came of the request. What was answered stays.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn forget_named(&self, request: &NamedRequest) -> Result<(), Error> {
        let write = self.begin("giving back an idempotency key of team", request.team_id).await?;
        Entity::delete_many()
            .filter(Column::TeamId.eq(request.team_id.as_uuid()))
            .filter(Column::Key.eq(request.key.as_str()))
            .filter(Column::Request.eq(request.request.as_str()))
            .filter(Column::Answer.is_null())
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await
    }

    /// Forgets what expired. Returns how many requests that were.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn forget_expired_named(&self, now: Timestamp) -> Result<u64, Error> {
        let write = self.begin("forgetting", "expired idempotency keys").await?;
        let deleted = Entity::delete_many()
            .filter(Column::ExpiresAtUs.lte(micros(now)))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(deleted.rows_affected)
    }
}
