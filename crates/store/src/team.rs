//! Teams: their limits and their standing.

use std::time::Duration;

use hearth_types::TeamId;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, SqlErr};

use crate::connection::Store;
use crate::entity::team;
use crate::error::{Error, failed};
use crate::row::{RowReader, UnknownValue, millis, now_micros};

/// Maximum characters of a slug, which is a namespace of template references.
const SLUG_CHARS_MAX: usize = 64;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    pub id: TeamId,
    /// The namespace of its templates. Unique.
    pub slug: String,
    /// Display name.
    pub name: String,
    pub limits: Limits,
    pub standing: Standing,
}

/// Limits of a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of concurrent sandboxes.
    pub sandboxes_max: u32,
    /// Longest timeout of a sandbox. Stored in milliseconds.
    pub sandbox_length_max: Duration,
    /// Maximum number of virtual CPUs of a template, and so of a sandbox.
    pub vcpus_max: u32,
    /// Maximum memory of a template, and so of a sandbox.
    pub memory_mib_max: u32,
    /// Maximum number of concurrent builds of templates.
    pub builds_max: u32,
}

impl Limits {
    /// Limits of a team for which an operator sets none.
    ///
    /// They are the values of E2B's contract, except that a sandbox may run for a day instead of an hour: clients with
    /// long runs request that, and E2B's larger plans allow it.
    pub const STANDARD: Self = Self {
        sandboxes_max: 20,
        sandbox_length_max: Duration::from_secs(24 * 60 * 60),
        vcpus_max: 8,
        memory_mib_max: 8192,
        builds_max: 20,
    };
}

/// Team standing: active, blocked or banned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// No restrictions besides the limits.
    Active,
    /// The team may only read and delete.
    Blocked {
        /// Text shown to the team.
        reason: String,
    },
    /// The team may not do anything.
    Banned {
        /// Text shown to the team.
        reason: String,
    },
}

/// A team to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTeam {
    /// The namespace of its templates: 1 to 64 characters of `[a-z0-9-_]`.
    pub slug: String,
    /// Display name.
    pub name: String,
    pub limits: Limits,
}

/// Reason why a team was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateTeamError {
    /// The slug could not be written in a template reference.
    #[error("a team's slug has 1 to {SLUG_CHARS_MAX} characters of a-z, 0-9, `-` and `_`")]
    SlugInvalid,
    /// Another team has the slug.
    #[error("there is a team `{slug}` already")]
    SlugTaken { slug: String },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Returns a team.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn team(&self, id: TeamId) -> Result<Option<Team>, Error> {
        let row = team::Entity::find_by_id(id.as_uuid()).one(&self.database).await;
        row.map_err(failed("reading team", id))?.map(Team::try_from).transpose()
    }

    /// Returns the team with a slug.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn team_by_slug(&self, slug: &str) -> Result<Option<Team>, Error> {
        let row = team::Entity::find().filter(team::Column::Slug.eq(slug)).one(&self.database).await;
        row.map_err(failed("reading team", slug))?.map(Team::try_from).transpose()
    }

    /// Returns all teams, oldest first.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn teams(&self) -> Result<Vec<Team>, Error> {
        let query = team::Entity::find().order_by_asc(team::Column::CreatedAtUs).order_by_asc(team::Column::Id);
        let rows = query.all(&self.database).await.map_err(failed("reading", "all teams"))?;
        rows.into_iter().map(Team::try_from).collect()
    }

    /// Creates a team with active standing.
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
            vcpus_max: Set(i64::from(limits.vcpus_max)),
            memory_mib_max: Set(i64::from(limits.memory_mib_max)),
            builds_max: Set(i64::from(limits.builds_max)),
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

    /// Sets the limits of a team. Current usage above them continues. Returns `false` if the team does not exist.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn set_team_limits(&self, id: TeamId, limits: Limits) -> Result<bool, Error> {
        let Limits { sandboxes_max, sandbox_length_max, vcpus_max, memory_mib_max, builds_max } = limits;
        let write = self.begin("setting the limits of team", id).await?;
        let updated = team::Entity::update_many()
            .col_expr(team::Column::SandboxesMax, Expr::value(i64::from(sandboxes_max)))
            .col_expr(team::Column::SandboxLengthMaxMs, Expr::value(millis(sandbox_length_max)))
            .col_expr(team::Column::VcpusMax, Expr::value(i64::from(vcpus_max)))
            .col_expr(team::Column::MemoryMibMax, Expr::value(i64::from(memory_mib_max)))
            .col_expr(team::Column::BuildsMax, Expr::value(i64::from(builds_max)))
            .filter(team::Column::Id.eq(id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(updated.rows_affected > 0)
    }

    /// Blocks, bans or reinstates a team. Returns `false` if the team does not exist.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn set_team_standing(&self, id: TeamId, standing: &Standing) -> Result<bool, Error> {
        let (standing, reason) = match standing {
            Standing::Active => (ACTIVE, None),
            Standing::Blocked { reason } => (BLOCKED, Some(reason.as_str())),
            Standing::Banned { reason } => (BANNED, Some(reason.as_str())),
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
            vcpus_max,
            memory_mib_max,
            builds_max,
            standing,
            standing_reason,
            created_at_us: _,
        } = row;
        let reader = RowReader::new("team", id);
        let standing = match standing.as_str() {
            ACTIVE => Standing::Active,
            BLOCKED => Standing::Blocked { reason: standing_reason.unwrap_or_default() },
            BANNED => Standing::Banned { reason: standing_reason.unwrap_or_default() },
            _ => return Err(reader.damaged("standing", UnknownValue(standing))),
        };
        let limits = Limits {
            sandboxes_max: reader.number("sandboxes_max", sandboxes_max)?,
            sandbox_length_max: reader.length("sandbox_length_max_ms", sandbox_length_max_ms)?,
            vcpus_max: reader.number("vcpus_max", vcpus_max)?,
            memory_mib_max: reader.number("memory_mib_max", memory_mib_max)?,
            builds_max: reader.number("builds_max", builds_max)?,
        };
        Ok(Self { id: TeamId::from_uuid(id), slug, name, limits, standing })
    }
}
