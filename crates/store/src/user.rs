//! Users and the teams they may act for.
//!
//! An identity provider authenticates users; its identifier for them is the subject of their tokens. The store only
//! knows the teams that they may act for. One of a user's teams is their default: the chosen one, or the first one
//! joined.

use hearth_types::{TeamId, UserId};
use jiff::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, SqlErr};

use crate::connection::Store;
use crate::entity::{api_key, login, team, team_member, user_account, user_password};
use crate::error::{Error, failed};
use crate::row::{RowReader, now_micros};
use crate::team::Team;

/// Maximum characters of an email address, <https://www.rfc-editor.org/errata/eid1690>.
const EMAIL_CHARS_MAX: usize = 254;
/// Maximum characters of a subject: the limit of OpenID Connect.
const SUBJECT_CHARS_MAX: usize = 255;

/// A person who may act for teams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    /// The identity provider's identifier for the user. Unique.
    pub subject: String,
    /// The user's email address. Unique.
    pub email: String,
    pub created_at: Timestamp,
}

/// A user to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// The user's email address.
    pub email: String,
    /// The identity provider's identifier for the user; `None`: the user's id in this store.
    pub subject: Option<String>,
}

/// A team of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub team: Team,
    /// `true` for the team that is used when a client names none. Exactly one of a user's teams is the default.
    pub is_default: bool,
}

/// Reason why a user was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateUserError {
    /// The text is not an email address.
    #[error("an address has the form name@host, and at most {EMAIL_CHARS_MAX} characters")]
    EmailInvalid,
    /// The subject is too short or too long.
    #[error("a subject has 1 to {SUBJECT_CHARS_MAX} characters")]
    SubjectInvalid,
    /// Another user has the address or the subject.
    #[error("there is a user with the address `{email}` or with its subject already")]
    Exists { email: String },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Reason why a user did not become a member of a team.
#[derive(Debug, thiserror::Error)]
pub enum JoinTeamError {
    /// The user or the team does not exist.
    #[error("there is no user {user_id} or no team {team_id}")]
    Unknown { user_id: UserId, team_id: TeamId },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Creates a user. They are not a member of any team yet.
    ///
    /// # Errors
    /// [`CreateUserError`].
    pub async fn create_user(&self, new: NewUser) -> Result<User, CreateUserError> {
        let NewUser { email, subject } = new;
        if !is_address(&email) {
            return Err(CreateUserError::EmailInvalid);
        }
        let id = UserId::generate();
        let subject = subject.unwrap_or_else(|| id.to_string());
        if subject.is_empty() || subject.contains('\0') || subject.chars().count() > SUBJECT_CHARS_MAX {
            return Err(CreateUserError::SubjectInvalid);
        }
        let row = user_account::ActiveModel {
            id: Set(id.as_uuid()),
            subject: Set(subject),
            email: Set(email.clone()),
            default_team_id: Set(None),
            created_at_us: Set(now_micros()),
        };
        let write = self.begin("creating user", &email).await?;
        let user = match row.insert(&write.transaction).await {
            Ok(row) => User::try_from(row)?,
            Err(error) => match error.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(_)) => return Err(CreateUserError::Exists { email }),
                _ => return Err(write.failed(error).into()),
            },
        };
        write.commit().await?;
        Ok(user)
    }

    /// Returns all users, oldest first.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn users(&self) -> Result<Vec<User>, Error> {
        let query = user_account::Entity::find()
            .order_by_asc(user_account::Column::CreatedAtUs)
            .order_by_asc(user_account::Column::Id);
        let rows = query.all(&self.database).await.map_err(failed("reading", "all users"))?;
        rows.into_iter().map(User::try_from).collect()
    }

    /// Returns the user with an identity provider's subject.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn user_by_subject(&self, subject: &str) -> Result<Option<User>, Error> {
        let query = user_account::Entity::find().filter(user_account::Column::Subject.eq(subject));
        let row = query.one(&self.database).await;
        row.map_err(failed("reading user", subject))?.map(User::try_from).transpose()
    }

    /// Returns the user with an email address.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn user_by_email(&self, email: &str) -> Result<Option<User>, Error> {
        let query = user_account::Entity::find().filter(user_account::Column::Email.eq(email));
        let row = query.one(&self.database).await;
        row.map_err(failed("reading user", email))?.map(User::try_from).transpose()
    }

    /// Returns the user with an id.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn user(&self, id: UserId) -> Result<Option<User>, Error> {
        let row = user_account::Entity::find_by_id(id.as_uuid()).one(&self.database).await;
        row.map_err(failed("reading user", id))?.map(User::try_from).transpose()
    }

    /// Deletes a user with their memberships, password and logins. Returns `false` if the user does not exist.
    ///
    /// API keys that they created stay valid.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn delete_user(&self, id: UserId) -> Result<bool, Error> {
        let write = self.begin("deleting user", id).await?;
        let failed = |error| write.failed(error);
        team_member::Entity::delete_many()
            .filter(team_member::Column::UserId.eq(id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(failed)?;
        login::Entity::delete_many()
            .filter(login::Column::UserId.eq(id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(failed)?;
        user_password::Entity::delete_by_id(id.as_uuid()).exec(&write.transaction).await.map_err(failed)?;
        api_key::Entity::update_many()
            .col_expr(api_key::Column::CreatedBy, Expr::value(None::<uuid::Uuid>))
            .filter(api_key::Column::CreatedBy.eq(id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(failed)?;
        let deleted =
            user_account::Entity::delete_by_id(id.as_uuid()).exec(&write.transaction).await.map_err(failed)?;
        write.commit().await?;
        Ok(deleted.rows_affected > 0)
    }

    /// Makes a user a member of a team. Idempotent.
    ///
    /// # Errors
    /// [`JoinTeamError`].
    pub async fn join_team(&self, user_id: UserId, team_id: TeamId) -> Result<(), JoinTeamError> {
        let write = self.begin("adding a member to team", team_id).await?;
        let known = team_member::Entity::find_by_id((team_id.as_uuid(), user_id.as_uuid())).one(&write.transaction);
        if known.await.map_err(|error| write.failed(error))?.is_some() {
            return Ok(());
        }
        let row = team_member::ActiveModel {
            team_id: Set(team_id.as_uuid()),
            user_id: Set(user_id.as_uuid()),
            created_at_us: Set(now_micros()),
        };
        if let Err(error) = row.insert(&write.transaction).await {
            return Err(match error.sql_err() {
                Some(SqlErr::ForeignKeyConstraintViolation(_)) => JoinTeamError::Unknown { user_id, team_id },
                _ => write.failed(error).into(),
            });
        }
        Ok(write.commit().await?)
    }

    /// Removes a user from a team. Returns `false` if they were not a member.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn leave_team(&self, user_id: UserId, team_id: TeamId) -> Result<bool, Error> {
        let write = self.begin("removing a member of team", team_id).await?;
        let deleted = team_member::Entity::delete_by_id((team_id.as_uuid(), user_id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(deleted.rows_affected > 0)
    }

    /// Makes a team the default of a user. Returns `false` if the user does not exist.
    ///
    /// The choice has an effect only while the user is a member of the team.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn set_default_team(&self, user_id: UserId, team_id: TeamId) -> Result<bool, Error> {
        let write = self.begin("choosing the default team of user", user_id).await?;
        let updated = user_account::Entity::update_many()
            .col_expr(user_account::Column::DefaultTeamId, Expr::value(team_id.as_uuid()))
            .filter(user_account::Column::Id.eq(user_id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        write.commit().await?;
        Ok(updated.rows_affected > 0)
    }

    /// Returns the teams that a user may act for, in the order in which they joined them.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn memberships(&self, user_id: UserId) -> Result<Vec<Membership>, Error> {
        let failed = |error| failed("reading the teams of user", user_id)(error);
        let user = user_account::Entity::find_by_id(user_id.as_uuid()).one(&self.database).await.map_err(failed)?;
        let rows = team_member::Entity::find()
            .filter(team_member::Column::UserId.eq(user_id.as_uuid()))
            .order_by_asc(team_member::Column::CreatedAtUs)
            .order_by_asc(team_member::Column::TeamId)
            .find_also_related(team::Entity)
            .all(&self.database)
            .await
            .map_err(failed)?;
        let teams = rows.into_iter().filter_map(|(_, team)| team).map(Team::try_from).collect::<Result<Vec<_>, _>>()?;
        let chosen = user.and_then(|user| user.default_team_id).map(TeamId::from_uuid);
        let chosen = teams.iter().position(|team| Some(team.id) == chosen).unwrap_or(0);
        let memberships = teams.into_iter().enumerate();
        Ok(memberships.map(|(index, team)| Membership { team, is_default: index == chosen }).collect())
    }

    /// Returns a team if a user is a member of it.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn membership(&self, user_id: UserId, team_id: TeamId) -> Result<Option<Team>, Error> {
        let row = team_member::Entity::find_by_id((team_id.as_uuid(), user_id.as_uuid()))
            .find_also_related(team::Entity)
            .one(&self.database)
            .await
            .map_err(failed("reading the membership of user", user_id))?;
        row.and_then(|(_, team)| team).map(Team::try_from).transpose()
    }
}

fn is_address(text: &str) -> bool {
    let has_parts = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    has_parts
        && text.chars().count() <= EMAIL_CHARS_MAX
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

impl TryFrom<user_account::Model> for User {
    type Error = Error;

    fn try_from(row: user_account::Model) -> Result<Self, Error> {
        let user_account::Model { id, subject, email, default_team_id: _, created_at_us } = row;
        let reader = RowReader::new("user_account", id);
        Ok(Self { id: UserId::from_uuid(id), subject, email, created_at: reader.time("created_at_us", created_at_us)? })
    }
}
