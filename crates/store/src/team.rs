//! Teams and their API keys.

use std::time::Duration;

use hearth_types::{ApiKeyId, TeamId};
use jiff::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, ExprTrait as _};
use sea_orm::{ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, QueryFilter as _, SqlErr};

use crate::connection::Store;
use crate::entity::{api_key, team};
use crate::error::{Error, failed};
use crate::key::{KeyHash, KeyMask, KeySecret};
use crate::row::{Reading, UnknownWord, micros, millis, now_micros};

/// Longest slug: a namespace of template references.
const SLUG_CHARS_MAX: usize = 64;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    /// The team.
    pub id: TeamId,
    /// The namespace of its templates. Unique.
    pub slug: String,
    /// For people.
    pub name: String,
    /// What it may use.
    pub limits: Limits,
    /// Whether it may.
    pub standing: Standing,
}

/// What a team may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sandboxes at the same time.
    pub sandboxes_max: u32,
    /// Longest timeout of a sandbox. Kept in milliseconds.
    pub sandbox_length_max: Duration,
}

/// Whether a team may use what it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Active,
    /// It may read and delete only.
    Blocked {
        /// What it is told.
        reason: String,
    },
    /// It may not do anything.
    Banned,
}

/// A team to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTeam {
    /// The namespace of its templates: 1 to 64 characters of `[a-z0-9-_]`.
    pub slug: String,
    /// For people.
    pub name: String,
    /// What it may use.
    pub limits: Limits,
}

/// Why a team was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateTeamError {
    /// The slug could not be written in a template reference.
    #[error("a team's slug has 1 to {SLUG_CHARS_MAX} characters of a-z, 0-9, `-` and `_`")]
    SlugInvalid,
    /// Another team has the slug.
    #[error("there is a team `{slug}` already")]
    SlugTaken {
        /// The slug.
        slug: String,
    },
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

/// A team's credential, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The credential.
    pub id: ApiKeyId,
    /// Whose it is.
    pub team_id: TeamId,
    /// For people.
    pub name: String,
    /// What is shown of the secret.
    pub mask: KeyMask,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used, as far as that was noted.
    pub last_used_at: Option<Timestamp>,
}

/// Why a key was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateApiKeyError {
    /// There is no such team.
    #[error("there is no team {team_id}")]
    UnknownTeam {
        /// The team.
        team_id: TeamId,
    },
    /// The secret is in use, by this team or another one.
    #[error("this API key exists already")]
    Exists,
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// A team.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn team(&self, id: TeamId) -> Result<Option<Team>, Error> {
        let row = team::Entity::find_by_id(id.as_uuid()).one(&self.database).await;
        row.map_err(failed("reading team", id))?.map(Team::try_from).transpose()
    }

    /// The team with a slug.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn team_by_slug(&self, slug: &str) -> Result<Option<Team>, Error> {
        let row = team::Entity::find().filter(team::Column::Slug.eq(slug)).one(&self.database).await;
        row.map_err(failed("reading team", slug))?.map(Team::try_from).transpose()
    }

    /// Creates a team in good standing.
    ///
    /// # Errors
    /// [`CreateTeamError`].
    pub async fn create_team(&self, new: NewTeam) -> Result<Team, CreateTeamError> {
        let NewTeam { slug, name, limits } = new;
        let is_slug_char = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        if slug.is_empty() || slug.len() > SLUG_CHARS_MAX || !slug.bytes().all(is_slug_char) {
            return Err(CreateTeamError::SlugInvalid);
        }
        let id = TeamId::generate();
        let row = team::ActiveModel {
            id: Set(id.as_uuid()),
            slug: Set(slug.clone()),
            name: Set(name),
            sandboxes_max: Set(i64::from(limits.sandboxes_max)),
            sandbox_length_max_ms: Set(millis(limits.sandbox_length_max)),
            standing: Set(ACTIVE.to_owned()),
            standing_reason: Set(None),
            created_at_us: Set(now_micros()),
        };
        let write = self.begin("creating team", &slug).await?;
        let row = match row.insert(&write.transaction).await {
            Ok(row) => Team::try_from(row)?,
            Err(error) => match error.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(_)) => return Err(CreateTeamError::SlugTaken { slug }),
                _ => return Err(write.failed(error).into()),
            },
        };
        write.commit().await?;
        Ok(row)
    }

    /// Blocks, bans or reinstates a team. `false`: there is no such team.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn set_team_standing(&self, id: TeamId, standing: &Standing) -> Result<bool, Error> {
        let (standing, reason) = match standing {
            Standing::Active => (ACTIVE, None),
            Standing::Blocked { reason } => (BLOCKED, Some(reason.as_str())),
            Standing::Banned => (BANNED, None),
        };
        let write = self.begin("setting the standing of team", id).await?;
        let updated = team::Entity::update_many()
            .col_expr(team::Column::Standing, Expr::value(standing))
            .col_expr(team::Column::StandingReason, Expr::value(reason))
            .filter(team::Column::Id.eq(id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(updated.rows_affected > 0)
    }

    /// Creates a credential of a team. The secret is not kept.
    ///
    /// # Errors
    /// [`CreateApiKeyError`].
    pub async fn create_api_key(
        &self,
        team_id: TeamId,
        name: &str,
        secret: &KeySecret,
    ) -> Result<ApiKey, CreateApiKeyError> {
        let KeyMask { prefix, value_length, masked_prefix, masked_suffix } = secret.mask();
        let row = api_key::ActiveModel {
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
        };
        let write = self.begin("creating an API key of team", team_id).await?;
        let key = match row.insert(&write.transaction).await {
            Ok(row) => ApiKey::try_from(row)?,
            Err(error) => match error.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(_)) => return Err(CreateApiKeyError::Exists),
                Some(SqlErr::ForeignKeyConstraintViolation(_)) => {
                    return Err(CreateApiKeyError::UnknownTeam { team_id });
                }
                _ => return Err(write.failed(error).into()),
            },
        };
        write.commit().await?;
        Ok(key)
    }

    /// Who presents a key, whatever the team's standing is. Nothing is noted: see [`Store::touch_api_key`].
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn authenticate(&self, hash: &KeyHash) -> Result<Option<(Team, ApiKey)>, Error> {
        let query = api_key::Entity::find().filter(api_key::Column::Hash.eq(hash.as_str()));
        let row = query.find_also_related(team::Entity).one(&self.database).await;
        match row.map_err(failed("looking up", "an API key"))? {
            Some((key, Some(team))) => Ok(Some((Team::try_from(team)?, ApiKey::try_from(key)?))),
            // A key without a team cannot be: the table refers to it.
            Some((_, None)) | None => Ok(None),
        }
    }

    /// Notes that a key was used. Later uses win, whatever the order of the calls; an unknown key is nothing. This is a
    /// commit to the disk: do it every minute rather than with every request.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn touch_api_key(&self, id: ApiKeyId, at: Timestamp) -> Result<(), Error> {
        let at = micros(at);
        let write = self.begin("noting the use of API key", id).await?;
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
}

const ACTIVE: &str = "active";
const BLOCKED: &str = "blocked";
const BANNED: &str = "banned";

impl TryFrom<team::Model> for Team {
    type Error = Error;

    fn try_from(row: team::Model) -> Result<Self, Error> {
        let team::Model {
            id,
            slug,
            name,
            sandboxes_max,
            sandbox_length_max_ms,
            standing,
            standing_reason,
            created_at_us: _,
        } = row;
        let reading = Reading::new("team", id);
        let standing = match standing.as_str() {
            ACTIVE => Standing::Active,
            BLOCKED => Standing::Blocked { reason: standing_reason.unwrap_or_default() },
            BANNED => Standing::Banned,
            _ => return Err(reading.damaged("standing", UnknownWord(standing))),
        };
        let limits = Limits {
            sandboxes_max: reading.number("sandboxes_max", sandboxes_max)?,
            sandbox_length_max: reading.length("sandbox_length_max_ms", sandbox_length_max_ms)?,
        };
        Ok(Self { id: TeamId::from_uuid(id), slug, name, limits, standing })
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
        } = row;
        let reading = Reading::new("api_key", id);
        Ok(Self {
            id: ApiKeyId::from_uuid(id),
            team_id: TeamId::from_uuid(team_id),
            name,
            mask: KeyMask {
                prefix: mask_prefix,
                value_length: reading.number("mask_value_length", mask_value_length)?,
                masked_prefix: mask_value_prefix,
                masked_suffix: mask_value_suffix,
            },
            created_at: reading.time("created_at_us", created_at_us)?,
            last_used_at: last_used_at_us.map(|at| reading.time("last_used_at_us", at)).transpose()?,
        })
    }
}
