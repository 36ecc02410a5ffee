//! Idempotent requests: a repetition with the same key has no second effect.
//!
//! ```text
//!   begin: First ──▶ finish, with the reply ──▶ begin: Done      a day later: deleted
//!             ├────▶ release (the request had no effect) ──▶ begin: First
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

/// A request with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotentRequest {
    /// The team that sent it; keys of different teams are independent.
    pub team_id: TeamId,
    /// The idempotency key, chosen by the client.
    pub key: String,
    /// Hash of the request's contents.
    pub request: String,
}

/// Times of an idempotent request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotentTimes {
    /// The current time.
    pub now: Timestamp,
    /// Time by which the outcome is stored, unless the server dies.
    pub decided_by: Timestamp,
    /// Time after which the key may be used for another request.
    pub expires_at: Timestamp,
}

/// State of an idempotent request when it is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Idempotent {
    /// The key is new: the caller executes the request and reports its outcome.
    First,
    /// The request was executed before.
    Done {
        /// The stored reply.
        answer: String,
    },
    /// Another call is executing the request.
    Running,
    /// The server died while it executed the request; the outcome is unknown.
    Unknown,
    /// The key was used for a request with other contents.
    Mismatch,
}

impl Store {
    /// Reserves the key of a request, unless it is in use. Of parallel calls exactly one gets [`Idempotent::First`].
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn begin_idempotent(
        &self,
        request: &IdempotentRequest,
        times: IdempotentTimes,
    ) -> Result<Idempotent, Error> {
        let IdempotentTimes { now, decided_by, expires_at } = times;
        let write = self.begin("reserving an idempotency key of team", request.team_id).await?;
        let id = (request.team_id.as_uuid(), request.key.clone());
        let known = Entity::find_by_id(id.clone()).one(&write.transaction).await;
        if let Some(known) = known.map_err(|error| write.failed(error))? {
            if known.expires_at_us > micros(now) {
                return Ok(match known.answer {
                    _ if known.request != request.request => Idempotent::Mismatch,
                    Some(answer) => Idempotent::Done { answer },
                    None if known.decided_by_us > micros(now) => Idempotent::Running,
                    None => Idempotent::Unknown,
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
        Ok(Idempotent::First)
    }

    /// Stores the reply to an idempotent request.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn finish_idempotent(&self, request: &IdempotentRequest, answer: &str) -> Result<(), Error> {
        let write = self.begin("storing the reply to an idempotency key of team", request.team_id).await?;
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

    /// Releases the key: the request had no effect. A stored reply stays.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn release_idempotent(&self, request: &IdempotentRequest) -> Result<(), Error> {
        let write = self.begin("releasing an idempotency key of team", request.team_id).await?;
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

    /// Deletes expired idempotency keys. Returns their number.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn delete_expired_idempotent(&self, now: Timestamp) -> Result<u64, Error> {
        let write = self.begin("deleting", "expired idempotency keys").await?;
        let deleted = Entity::delete_many()
            .filter(Column::ExpiresAtUs.lte(micros(now)))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(deleted.rows_affected)
    }
}
