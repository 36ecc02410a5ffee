//! Desired state of sandboxes.
//!
//! ```text
//!   insert ──▶ creating ──▶ running ──▶ killing ──▶ delete
//!                  └────────────────────▲
//! ```
//!
//! The control role decides which transition is legal; the rows ensure that it decides on the current state. Every
//! change names its execution and the state that it starts from. If either differs from the row, nothing changes and
//! the error reports the current value: a superseded execution cannot kill its successor, a creation that finishes late
//! cannot revive a killed sandbox, and an expiry cannot kill a sandbox whose end time was just moved.

mod convert;
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
use crate::row::{RowReader, micros};

/// A sandbox that should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    pub sandbox_id: SandboxId,
    /// Its current run.
    pub execution_id: ExecutionId,
    /// The sandbox's owner.
    pub team_id: TeamId,
    /// The template it was created from.
    pub template_id: TemplateId,
    /// The build it was created from.
    pub build_id: BuildId,
    /// The template's first alias when the sandbox was created.
    pub alias: Option<String>,
    /// The node that runs it.
    pub node_id: NodeId,
    /// The desired state.
    pub state: SandboxState,
    /// Metadata set by its creator.
    pub metadata: BTreeMap<String, String>,
    /// Environment of all commands in the sandbox.
    pub env_vars: BTreeMap<String, String>,
    pub envd_version: String,
    /// `true` if its guest daemon requires a token.
    pub secured: bool,
    /// Access of the guest to addresses outside of the host; `None`: the creator did not choose.
    pub allow_internet_access: Option<bool>,
    /// Rules for visitors of its ports.
    pub ingress: Ingress,
    /// The requested timeout. Stored in milliseconds.
    pub timeout: Duration,
    /// Start of this run; while creating: the time of the request.
    pub started_at: Timestamp,
    /// Time at which it expires.
    pub end_at: Timestamp,
    pub resources: Resources,
}

/// Desired state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SandboxState {
    /// A node is starting it.
    Creating,
    /// Clients can use it.
    Running,
    /// It is being killed; clients see it as deleted.
    Killing,
}

impl SandboxState {
    pub const ALL: [Self; 3] = [Self::Creating, Self::Running, Self::Killing];

    /// The states that use a node's resources and count against a team's limit: all, because none is a paused state.
    const CONCURRENT: [Self; 3] = Self::ALL;

    /// Returns the value that is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Killing => "killing",
        }
    }
}

/// A change of state. It applies only to a sandbox that is still in `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateMove {
    /// The state on which the decision is based.
    pub from: SandboxState,
    pub to: SandboxState,
}

/// Properties of a sandbox that are only known once it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedSandbox {
    /// Time at which it became usable.
    pub started_at: Timestamp,
    /// Time at which it expires.
    pub end_at: Timestamp,
    /// Version of its guest daemon, as reported by it.
    pub envd_version: String,
}

/// Outcome of an expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// The sandbox's state is now [`SandboxState::Killing`].
    Due,
    /// Its end time was moved: nothing changed.
    NotDue {
        /// The new end time.
        end_at: Timestamp,
    },
}

/// Reason why a sandbox was not inserted.
#[derive(Debug, thiserror::Error)]
pub enum InsertSandboxError {
    /// The team has its maximum number of concurrent sandboxes.
    #[error("the team has its maximum of {max} concurrent sandboxes")]
    LimitReached { max: u32 },
    /// The id is in use.
    #[error("there is a sandbox {sandbox_id} already")]
    Exists { sandbox_id: SandboxId },
    /// The team, the template or the build does not exist, or no longer.
    #[error("sandbox {sandbox_id} refers to a team, a template or a build that does not exist")]
    Dangling { sandbox_id: SandboxId },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Reason why a sandbox was not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateSandboxError {
    /// The sandbox does not exist.
    #[error("there is no sandbox {sandbox_id}")]
    NotFound { sandbox_id: SandboxId },
    /// Another execution is the current one.
    #[error("sandbox {sandbox_id} is now execution {current}")]
    Superseded {
        sandbox_id: SandboxId,
        /// The current execution.
        current: ExecutionId,
    },
    /// The sandbox is in another state than the change starts from.
    #[error("sandbox {sandbox_id} is {}", state.as_str())]
    WrongState {
        sandbox_id: SandboxId,
        /// The current state.
        state: SandboxState,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Inserts a sandbox, unless its team has its maximum number of concurrent sandboxes.
    ///
    /// The limit is read from the team's row in the same transaction; parallel calls never exceed it.
    ///
    /// # Errors
    /// [`InsertSandboxError`].
    pub async fn insert_sandbox(&self, sandbox: &Sandbox) -> Result<(), InsertSandboxError> {
        let dangling = || InsertSandboxError::Dangling { sandbox_id: sandbox.sandbox_id.clone() };
        let write = self.begin("inserting sandbox", &sandbox.sandbox_id).await?;
        // The row lock serializes the counts of one team where transactions do not exclude each other.
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
        let max = RowReader::new("team", team.id).number("sandboxes_max", team.sandboxes_max)?;
        if count >= u64::from(max) {
            return Err(InsertSandboxError::LimitReached { max });
        }
        let inserted = sandbox::Entity::insert(convert::row(sandbox)).exec_without_returning(&write.transaction).await;
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

    /// Records a successful creation: the state changes from creating to running.
    ///
    /// # Errors
    /// [`UpdateSandboxError`]; [`UpdateSandboxError::WrongState`] if the sandbox was killed meanwhile.
    pub async fn update_sandbox_running(
        &self,
        sandbox_id: &SandboxId,
        execution_id: ExecutionId,
        started: StartedSandbox,
    ) -> Result<(), UpdateSandboxError> {
        let StartedSandbox { started_at, end_at, envd_version } = started;
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

    /// Sets the end time of a running sandbox.
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
            .begin_update("setting the end time of sandbox", sandbox_id, execution_id, Some(SandboxState::Running))
            .await?;
        let change = sandbox::ActiveModel { end_at_us: Set(micros(end_at)), ..unchanged(row) };
        commit_update(write, change).await
    }

    /// Moves the end time of a running sandbox to `end_at`, unless it is later already.
    ///
    /// Returns the resulting end time: the stored one, in microseconds, if it was not moved.
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
        let end_at = RowReader::new("sandbox", sandbox_id).time("end_at_us", end_at_us)?;
        if end_at_us != row.end_at_us {
            let change = sandbox::ActiveModel { end_at_us: Set(end_at_us), ..unchanged(row) };
            commit_update(write, change).await?;
        }
        Ok(end_at)
    }

    /// Changes a running sandbox to killing if its end time is not after `now`.
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
        // Compared at the rows' precision: an end time within the current microsecond is due.
        if row.end_at_us > micros(now) {
            let end_at = RowReader::new("sandbox", sandbox_id).time("end_at_us", row.end_at_us)?;
            return Ok(Expiry::NotDue { end_at });
        }
        let change = sandbox::ActiveModel { state: Set(SandboxState::Killing.as_str().to_owned()), ..unchanged(row) };
        commit_update(write, change).await?;
        Ok(Expiry::Due)
    }

    /// Deletes a sandbox in any state.
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

    /// Returns a sandbox of any team.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn sandbox(&self, sandbox_id: &SandboxId) -> Result<Option<Sandbox>, Error> {
        let row = sandbox::Entity::find_by_id(sandbox_id.as_str()).one(&self.database).await;
        row.map_err(failed("reading sandbox", sandbox_id))?.map(Sandbox::try_from).transpose()
    }

    /// Returns all sandboxes of all teams, oldest first: for the start and for reconcilers, not for requests.
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

    /// Begins a change of the sandbox if `execution_id` is its current execution and `from` its state.
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
        let state = convert::read_state(&RowReader::new("sandbox", sandbox_id), &row.state)?;
        if from.is_some_and(|from| from != state) {
            return Err(UpdateSandboxError::WrongState { sandbox_id: sandbox_id.clone(), state });
        }
        Ok((write, row))
    }
}

/// Returns a change of the row that changes no column yet.
fn unchanged(row: sandbox::Model) -> sandbox::ActiveModel {
    sandbox::ActiveModel { id: Unchanged(row.id), ..Default::default() }
}

async fn commit_update(write: Write, change: sandbox::ActiveModel) -> Result<(), UpdateSandboxError> {
    change.update(&write.transaction).await.map_err(|error| write.failed(error))?;
    Ok(write.commit().await?)
}
