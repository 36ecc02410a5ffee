//! Sandboxes that should exist, and the state they should be in.
//!
//! ```text
//!   insert ──▶ creating ──▶ running ──▶ killing ──▶ delete
//!                  └────────────────────▲
//! ```
//!
//! Which move is legal, the control role decides; the rows make sure that it decides on what is. Every change names the
//! execution that it is for and the state that it moves from. If either is not so any more, nothing changes and the
//! caller is told what is: a superseded execution cannot end its successor, a creation that finishes late cannot revive
//! what was killed, and an expiry cannot end a sandbox whose end was just moved.

mod form;
mod list;

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_types::{BuildId, ExecutionId, Ingress, NodeId, Resources, SandboxId, TeamId, TemplateId};
use jiff::Timestamp;
use sea_orm::ActiveValue::{Set, Unchanged};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, SqlErr,
};

pub use self::list::{ListedSandbox, Order, PAGE_MAX, SandboxCursor, SandboxPage, SandboxQuery};
use crate::connection::{Store, Write};
use crate::entity::sandbox::{self, Column};
use crate::entity::team;
use crate::error::{Error, failed};
use crate::row::{Reading, micros};

/// A sandbox that should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Its present run.
    pub execution_id: ExecutionId,
    /// Whose it is.
    pub team_id: TeamId,
    /// The template it was created from.
    pub template_id: TemplateId,
    /// The build it was created from.
    pub build_id: BuildId,
    /// The template's name when it was created.
    pub alias: Option<String>,
    /// Where it runs.
    pub node_id: NodeId,
    /// The state it should be in.
    pub state: SandboxState,
    /// What its creator noted about it.
    pub metadata: BTreeMap<String, String>,
    /// Environment of all commands in it.
    pub env_vars: BTreeMap<String, String>,
    /// Version of its guest daemon.
    pub envd_version: String,
    /// Whether its guest daemon demands a token.
    pub secured: bool,
    /// Whether the guest may reach addresses outside of the host; `None`: nobody said.
    pub allow_internet_access: Option<bool>,
    /// How visitors reach its ports.
    pub ingress: Ingress,
    /// How long it was to run when it was created. Kept in milliseconds.
    pub timeout: Duration,
    /// When this run began; while creating: when it was asked for.
    pub started_at: Timestamp,
    /// When it is to end.
    pub end_at: Timestamp,
    /// Its virtual hardware.
    pub resources: Resources,
}

/// The state a sandbox should be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SandboxState {
    /// A node is starting it.
    Creating,
    /// It is usable.
    Running,
    /// It is being ended; for clients it is gone.
    Killing,
}

impl SandboxState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Creating, Self::Running, Self::Killing];

    /// The states that use a node's resources, and so count against a team's limit: all of them, until one is paused.
    const CONCURRENT: [Self; 3] = Self::ALL;

    /// The word that is kept.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Killing => "killing",
        }
    }
}

/// A change of state: it happens only to a sandbox that still is in the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateMove {
    /// The state that the decision was made on.
    pub from: SandboxState,
    /// The state to be in.
    pub to: SandboxState,
}

/// What is known of a sandbox once it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// When it was usable.
    pub started_at: Timestamp,
    /// When it is to end.
    pub end_at: Timestamp,
    /// Version of its guest daemon, as it said itself.
    pub envd_version: String,
}

/// What came of an expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// The sandbox is now killing.
    Due,
    /// Its end was moved: nothing changed.
    NotDue {
        /// When it is to end.
        end_at: Timestamp,
    },
}

/// Why a sandbox was not inserted.
#[derive(Debug, thiserror::Error)]
pub enum InsertSandboxError {
    /// The team has as many as it may have.
    #[error("the team has its maximum of {max} concurrent sandboxes")]
    LimitReached {
        /// The team's limit.
        max: u32,
    },
    /// The id is taken.
    #[error("there is a sandbox {sandbox_id} already")]
    Exists {
        /// The sandbox.
        sandbox_id: SandboxId,
    },
    /// The team, the template or the build is not there (any more).
    #[error("sandbox {sandbox_id} refers to a team, a template or a build that does not exist")]
    Dangling {
        /// The sandbox.
        sandbox_id: SandboxId,
    },
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why a sandbox was not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateSandboxError {
    /// There is none.
    #[error("there is no sandbox {sandbox_id}")]
    NotFound {
        /// The sandbox.
        sandbox_id: SandboxId,
    },
    /// Another execution is the present one.
    #[error("sandbox {sandbox_id} is now execution {current}")]
    Superseded {
        /// The sandbox.
        sandbox_id: SandboxId,
        /// The present execution.
        current: ExecutionId,
    },
    /// It is in another state than the change is for.
    #[error("sandbox {sandbox_id} is {}", state.as_str())]
    WrongState {
        /// The sandbox.
        sandbox_id: SandboxId,
        /// The state it is in.
        state: SandboxState,
    },
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Inserts a sandbox, unless its team has as many as it may have. The limit is that of the team's row at this
    /// moment; of parallel calls exactly as many succeed as fit in it.
    ///
    /// # Errors
    /// [`InsertSandboxError`].
    pub async fn insert_sandbox(&self, sandbox: &Sandbox) -> Result<(), InsertSandboxError> {
        let dangling = || InsertSandboxError::Dangling { sandbox_id: sandbox.sandbox_id.clone() };
        let write = self.begin("inserting sandbox", &sandbox.sandbox_id).await?;
        // Its lock makes parallel counts of one team wait where transactions do not exclude each other.
        let team = team::Entity::find_by_id(sandbox.team_id.as_uuid())
            .lock_exclusive()
            .one(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?
            .ok_or_else(dangling)?;
        let count = sandbox::Entity::find()
            .filter(Column::TeamId.eq(team.id))
            .filter(list::is_in(&SandboxState::CONCURRENT))
            .count(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?;
        let max = Reading::new("team", team.id).number("sandboxes_max", team.sandboxes_max)?;
        if count >= u64::from(max) {
            return Err(InsertSandboxError::LimitReached { max });
        }
        let inserted = sandbox::Entity::insert(form::row(sandbox)).exec_without_returning(&write.transaction).await;
        if let Err(error) = inserted {
            return Err(match error.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(_)) => {
                    InsertSandboxError::Exists { sandbox_id: sandbox.sandbox_id.clone() }
                }
                Some(SqlErr::ForeignKeyConstraintViolation(_)) => dangling(),
                _ => write.failed(error).into(),
            });
        }
        Ok(write.commit().await?)
    }

    /// The creation succeeded: creating becomes running.
    ///
    /// # Errors
    /// [`UpdateSandboxError`]; [`UpdateSandboxError::WrongState`] if it was killed meanwhile.
    pub async fn update_sandbox_running(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
        started: Started,
    ) -> Result<(), UpdateSandboxError> {
        let Started { started_at, end_at, envd_version } = started;
        let (write, row) =
            self.begin_update("starting sandbox", sandbox_id, execution_id, Some(SandboxState::Creating)).await?;
        let change = sandbox::ActiveModel {
            state: Set(SandboxState::Running.as_str().to_owned()),
            started_at_us: Set(micros(started_at)),
            end_at_us: Set(micros(end_at)),
            envd_version: Set(envd_version),
            ..unchanged(row)
        };
        commit_update(write, change).await
    }

    /// Moves a sandbox from one state to another.
    ///
    /// # Errors
    /// [`UpdateSandboxError`].
    pub async fn set_sandbox_state(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
        StateMove { from, to }: StateMove,
    ) -> Result<(), UpdateSandboxError> {
        let (write, row) =
            self.begin_update("changing the state of sandbox", sandbox_id, execution_id, Some(from)).await?;
        let change = sandbox::ActiveModel { state: Set(to.as_str().to_owned()), ..unchanged(row) };
        commit_update(write, change).await
    }

    /// Sets the end of a running sandbox.
    ///
    /// # Errors
    /// [`UpdateSandboxError`].
    pub async fn set_sandbox_end(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
        end_at: Timestamp,
    ) -> Result<(), UpdateSandboxError> {
        let (write, row) = self
            .begin_update("setting the end of sandbox", sandbox_id, execution_id, Some(SandboxState::Running))
            .await?;
        let change = sandbox::ActiveModel { end_at_us: Set(micros(end_at)), ..unchanged(row) };
        commit_update(write, change).await
    }

    /// Moves the end of a running sandbox to `end_at`, unless it ends later anyway. Returns its end: what was there
    /// before, to the microsecond, if that is not moved.
    ///
    /// # Errors
    /// [`UpdateSandboxError`].
    pub async fn extend_sandbox_end(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
        end_at: Timestamp,
    ) -> Result<Timestamp, UpdateSandboxError> {
        let (write, row) =
            self.begin_update("extending sandbox", sandbox_id, execution_id, Some(SandboxState::Running)).await?;
        let end_at_us = row.end_at_us.max(micros(end_at));
        let end_at = Reading::new("sandbox", sandbox_id).time("end_at_us", end_at_us)?;
        if end_at_us != row.end_at_us {
            let change = sandbox::ActiveModel { end_at_us: Set(end_at_us), ..unchanged(row) };
            commit_update(write, change).await?;
        }
        Ok(end_at)
    }

    /// Moves a running sandbox to killing if its end has come at `now`.
    ///
    /// # Errors
    /// [`UpdateSandboxError`].
    pub async fn expire_sandbox(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
        now: Timestamp,
    ) -> Result<Expiry, UpdateSandboxError> {
        let (write, row) =
            self.begin_update("expiring sandbox", sandbox_id, execution_id, Some(SandboxState::Running)).await?;
        // Compared at the rows' precision: an end that lies within this microsecond has come.
        if row.end_at_us > micros(now) {
            let end_at = Reading::new("sandbox", sandbox_id).time("end_at_us", row.end_at_us)?;
            return Ok(Expiry::NotDue { end_at });
        }
        let change = sandbox::ActiveModel { state: Set(SandboxState::Killing.as_str().to_owned()), ..unchanged(row) };
        commit_update(write, change).await?;
        Ok(Expiry::Due)
    }

    /// Deletes a sandbox, whatever its state.
    ///
    /// # Errors
    /// [`UpdateSandboxError`] except [`UpdateSandboxError::WrongState`].
    pub async fn delete_sandbox(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
    ) -> Result<(), UpdateSandboxError> {
        let (write, row) = self.begin_update("deleting sandbox", sandbox_id, execution_id, None).await?;
        let deleted = sandbox::Entity::delete_by_id(row.id).exec(&write.transaction).await;
        deleted.map_err(|error| write.failed(error))?;
        Ok(write.commit().await?)
    }

    /// A sandbox, whoever's it is.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn sandbox(&self, sandbox_id: &SandboxId) -> Result<Option<Sandbox>, Error> {
        let row = sandbox::Entity::find_by_id(sandbox_id.as_str()).one(&self.database).await;
        row.map_err(failed("reading sandbox", sandbox_id))?.map(Sandbox::try_from).transpose()
    }

    /// All sandboxes of all teams, oldest first: for starting and for reconcilers, not for requests.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn sandboxes(&self) -> Result<Vec<Sandbox>, Error> {
        let rows = sandbox::Entity::find()
            .order_by_asc(Column::StartedAtUs)
            .order_by_asc(Column::Id)
            .all(&self.database)
            .await
            .map_err(failed("reading", "all sandboxes"))?;
        rows.into_iter().map(Sandbox::try_from).collect()
    }

    /// Begins a change of the sandbox if `execution_id` is its present execution and `from` its state.
    async fn begin_update(
        &self,
        action: &'static str,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
        from: Option<SandboxState>,
    ) -> Result<(Write, sandbox::Model), UpdateSandboxError> {
        let write = self.begin(action, sandbox_id).await?;
        let row = sandbox::Entity::find_by_id(sandbox_id.as_str())
            .lock_exclusive()
            .one(&write.transaction)
            .await
            .map_err(|error| write.failed(error))?
            .ok_or_else(|| UpdateSandboxError::NotFound { sandbox_id: sandbox_id.clone() })?;
        if row.execution_id != execution_id.as_uuid() {
            let current = ExecutionId::from_uuid(row.execution_id);
            return Err(UpdateSandboxError::Superseded { sandbox_id: sandbox_id.clone(), current });
        }
        let state = form::read_state(&Reading::new("sandbox", sandbox_id), &row.state)?;
        if from.is_some_and(|from| from != state) {
            return Err(UpdateSandboxError::WrongState { sandbox_id: sandbox_id.clone(), state });
        }
        Ok((write, row))
    }
}

/// A change of nothing yet, to the row that was read.
fn unchanged(row: sandbox::Model) -> sandbox::ActiveModel {
    sandbox::ActiveModel { id: Unchanged(row.id), ..Default::default() }
}

async fn commit_update(write: Write, change: sandbox::ActiveModel) -> Result<(), UpdateSandboxError> {
    change.update(&write.transaction).await.map_err(|error| write.failed(error))?;
    Ok(write.commit().await?)
}
