//! API keys of teams: authentication, and the view that owners have of their keys.

use hearth_types::{ApiKeyId, TeamId, UserId};
use jiff::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, ExprTrait as _, Func};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, SqlErr,
};
use uuid::Uuid;

use crate::connection::{Store, Write};
use crate::entity::{api_key, team, user_account};
use crate::error::{Error, failed};
use crate::key::{KeyHash, KeyMask, KeySecret};
use crate::row::{RowReader, micros, now_micros};
use crate::team::Team;
use crate::user::User;

/// Maximum number of API keys of a team, not counting those of logins: one for each of many programs and people.
const KEYS_MAX: u64 = 1000;
/// Maximum number of API keys for logins of one user to one team; equal to the number of logins that a user can have.
pub const LOGIN_KEYS_MAX: u64 = 32;

/// A team's API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: ApiKeyId,
    /// The team that the key authenticates.
    pub team_id: TeamId,
    /// Display name.
    pub name: String,
    /// The part of the secret that may be shown.
    pub mask: KeyMask,
    pub created_at: Timestamp,
    /// Last recorded use; `None`: never used, or its use was never recorded.
    pub last_used_at: Option<Timestamp>,
    /// The user who created it; `None`: an operator, or a user who was deleted.
    pub created_by: Option<UserId>,
}

/// Reason why a key was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateApiKeyError {
    /// The team does not exist.
    #[error("there is no team {team_id}")]
    UnknownTeam { team_id: TeamId },
    /// The secret is in use, by this or another team.
    #[error("this API key exists already")]
    Exists,
    /// The team has its maximum number of keys.
    #[error("the team has {max} API keys already")]
    TooMany { max: u64 },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Creates an API key of a team as an operator. Only the secret's hash and mask are stored.
    ///
    /// # Errors
    /// [`CreateApiKeyError`].
    pub async fn create_api_key(
        &self,
        team_id: TeamId,
        name: &str,
        secret: &KeySecret,
    ) -> Result<ApiKey, CreateApiKeyError> {
        self.create_api_key_by(None, team_id, name, secret).await
    }

    /// Creates an API key of a team, as a user or (`None`) as an operator. Only the secret's hash and mask are stored.
    ///
    /// # Errors
    /// [`CreateApiKeyError`].
    pub async fn create_api_key_by(
        &self,
        user_id: Option<UserId>,
        team_id: TeamId,
        name: &str,
        secret: &KeySecret,
    ) -> Result<ApiKey, CreateApiKeyError> {
        let write = self.begin("creating an API key of team", team_id).await?;
        // Inserted first, so that an existing key is reported as such also when the team has its maximum.
        let key = insert(&write, row(user_id, team_id, name, secret, false)).await?;
        let counted = api_key::Entity::find()
            .filter(api_key::Column::TeamId.eq(team_id.as_uuid()))
            .filter(api_key::Column::IsForLogin.eq(false))
            .count(&write.transaction)
            .await;
        if counted.map_err(|error| write.failed(error))? > KEYS_MAX {
            return Err(CreateApiKeyError::TooMany { max: KEYS_MAX });
        }
        write.commit().await?;
        Ok(key)
    }

    /// Creates an API key of a team for a client at which a user logged in.
    ///
    /// At most [`LOGIN_KEYS_MAX`] of those exist for a user and a team: the least recently used one is deleted to make
    /// room.
    ///
    /// # Errors
    /// [`CreateApiKeyError`]; never [`CreateApiKeyError::TooMany`].
    pub async fn create_login_key(
        &self,
        user_id: UserId,
        team_id: TeamId,
        name: &str,
        secret: &KeySecret,
    ) -> Result<ApiKey, CreateApiKeyError> {
        let write = self.begin("creating an API key for a login to team", team_id).await?;
        let last_use =
            Func::coalesce([Expr::col(api_key::Column::LastUsedAtUs), Expr::col(api_key::Column::CreatedAtUs)]);
        let rest: Vec<Uuid> = api_key::Entity::find()
            .select_only()
            .column(api_key::Column::Id)
            .filter(api_key::Column::TeamId.eq(team_id.as_uuid()))
            .filter(api_key::Column::CreatedBy.eq(user_id.as_uuid()))
            .filter(api_key::Column::IsForLogin.eq(true))
            .order_by_desc(Expr::from(last_use))
            .order_by_desc(api_key::Column::Id)
            .offset(LOGIN_KEYS_MAX - 1)
            .limit(LOGIN_KEYS_MAX)
            .into_tuple()
            .all(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        api_key::Entity::delete_many()
            .filter(api_key::Column::Id.is_in(rest))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        let key = insert(&write, row(Some(user_id), team_id, name, secret, true)).await?;
        write.commit().await?;
        Ok(key)
    }

    /// Returns the key with this hash and its team, whatever the team's standing.
    ///
    /// The use is not recorded: see [`Store::touch_api_key`].
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn authenticate(&self, hash: &KeyHash) -> Result<Option<(Team, ApiKey)>, Error> {
        let query = api_key::Entity::find().filter(api_key::Column::Hash.eq(hash.as_str()));
        let row = query.find_also_related(team::Entity).one(&self.database).await;
        match row.map_err(failed("looking up", "an API key"))? {
            Some((key, Some(team))) => Ok(Some((Team::try_from(team)?, ApiKey::try_from(key)?))),
            // A key without a team cannot exist: the foreign key forbids it.
            Some((_, None)) | None => Ok(None),
        }
    }

    /// Records that a key was used.
    ///
    /// The latest use wins, whatever the order of the calls; an unknown key is ignored. Each call is a commit to the
    /// disk: call it about once a minute rather than for every request.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn touch_api_key(&self, id: ApiKeyId, at: Timestamp) -> Result<(), Error> {
        let at = micros(at);
        let write = self.begin("recording the use of API key", id).await?;
        let is_later = api_key::Column::LastUsedAtUs.is_null().or(api_key::Column::LastUsedAtUs.lt(at));
        api_key::Entity::update_many()
            .col_expr(api_key::Column::LastUsedAtUs, Expr::value(at))
            .filter(api_key::Column::Id.eq(id.as_uuid()))
            .filter(is_later)
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await
    }

    /// Returns the keys of a team with their creators, oldest first.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn api_keys(&self, team_id: TeamId) -> Result<Vec<(ApiKey, Option<User>)>, Error> {
        let rows = api_key::Entity::find()
            .filter(api_key::Column::TeamId.eq(team_id.as_uuid()))
            .order_by_asc(api_key::Column::CreatedAtUs)
            .order_by_asc(api_key::Column::Id)
            .find_also_related(user_account::Entity)
            .all(&self.database)
            .await
            .map_err(failed("reading the API keys of team", team_id))?;
        let read = |(key, user): (api_key::Model, Option<user_account::Model>)| {
            Ok((ApiKey::try_from(key)?, user.map(User::try_from).transpose()?))
        };
        rows.into_iter().map(read).collect()
    }

    /// Renames a key of a team. Returns `false` if the team has no such key.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn rename_api_key(&self, team_id: TeamId, id: ApiKeyId, name: &str) -> Result<bool, Error> {
        let write = self.begin("renaming API key", id).await?;
        let updated = api_key::Entity::update_many()
            .col_expr(api_key::Column::Name, Expr::value(name))
            .filter(api_key::Column::Id.eq(id.as_uuid()))
            .filter(api_key::Column::TeamId.eq(team_id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(updated.rows_affected > 0)
    }

    /// Revokes a key of a team. Returns `false` if the team has no such key.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn delete_api_key(&self, team_id: TeamId, id: ApiKeyId) -> Result<bool, Error> {
        let write = self.begin("revoking API key", id).await?;
        let deleted = api_key::Entity::delete_many()
            .filter(api_key::Column::Id.eq(id.as_uuid()))
            .filter(api_key::Column::TeamId.eq(team_id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(deleted.rows_affected > 0)
    }
}

fn row(
    user_id: Option<UserId>,
    team_id: TeamId,
    name: &str,
    secret: &KeySecret,
    is_for_login: bool,
) -> api_key::ActiveModel {
    let KeyMask { prefix, value_length, masked_prefix, masked_suffix } = secret.mask();
    api_key::ActiveModel {
        id: Set(ApiKeyId::generate().as_uuid()),
        team_id: Set(team_id.as_uuid()),
        name: Set(name.to_owned()),
        hash: Set(secret.hash().as_str().to_owned()),
        mask_prefix: Set(prefix),
        mask_value_length: Set(i64::from(value_length)),
        mask_value_prefix: Set(masked_prefix),
        mask_value_suffix: Set(masked_suffix),
        created_at_us: Set(now_micros()),
        last_used_at_us: Set(None),
        created_by: Set(user_id.map(|user| user.as_uuid())),
        is_for_login: Set(is_for_login),
    }
}

async fn insert(write: &Write, row: api_key::ActiveModel) -> Result<ApiKey, CreateApiKeyError> {
    let team_id = row.team_id.clone().take();
    match row.insert(&write.transaction).await {
        Ok(row) => Ok(ApiKey::try_from(row)?),
        Err(error) => Err(match (error.sql_err(), team_id) {
            (Some(SqlErr::UniqueConstraintViolation(_)), _) => CreateApiKeyError::Exists,
            (Some(SqlErr::ForeignKeyConstraintViolation(_)), Some(team_id)) => {
                CreateApiKeyError::UnknownTeam { team_id: TeamId::from_uuid(team_id) }
            }
            _ => write.failed(error).into(),
        }),
    }
}

impl TryFrom<api_key::Model> for ApiKey {
    type Error = Error;

    fn try_from(row: api_key::Model) -> Result<Self, Error> {
        let api_key::Model {
            id,
            team_id,
            name,
            hash: _,
            mask_prefix,
            mask_value_length,
            mask_value_prefix,
            mask_value_suffix,
            created_at_us,
            last_used_at_us,
            created_by,
            is_for_login: _,
        } = row;
        let reader = RowReader::new("api_key", id);
        Ok(Self {
            id: ApiKeyId::from_uuid(id),
            team_id: TeamId::from_uuid(team_id),
            name,
            mask: KeyMask {
                prefix: mask_prefix,
                value_length: reader.number("mask_value_length", mask_value_length)?,
                masked_prefix: mask_value_prefix,
                masked_suffix: mask_value_suffix,
            },
            created_at: reader.time("created_at_us", created_at_us)?,
            last_used_at: last_used_at_us.map(|at| reader.time("last_used_at_us", at)).transpose()?,
            created_by: created_by.map(UserId::from_uuid),
        })
    }
}
