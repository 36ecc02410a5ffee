//! Lists of a team's sandboxes: filters, order, pages.
//!
//! A page begins after a place in the order, not after a number of rows, so that sandboxes that come and go meanwhile
//! neither hide others nor show them twice.

use std::collections::BTreeMap;

use hearth_types::{Resources, SandboxId, TeamId, TemplateId};
use jiff::Timestamp;
use sea_orm::sea_query::{Asterisk, Expr, ExprTrait as _, Func, Query, SelectStatement};
use sea_orm::{
    ColumnTrait as _, Condition, DbErr, EntityTrait as _, FromQueryResult, Order as SqlOrder, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, QueryTrait as _,
};
use serde::Deserialize;

use super::form::read_state;
use super::{Sandbox, SandboxState};
use crate::connection::Store;
use crate::entity::sandbox::{self, Column};
use crate::error::{Error, failed};
use crate::row::{Reading, micros};

/// Most sandboxes on a page: what the public interface allows.
pub const PAGE_MAX: u32 = 100;

/// Order of a list by start. Sandboxes that started at the same microsecond follow by id, ascending in either order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ascending.
    OldestFirst,
    /// Descending.
    NewestFirst,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxQuery {
    /// Whose.
    pub team_id: TeamId,
    /// In one of these states.
    pub states: Vec<SandboxState>,
    /// Created from this template, if one is given.
    pub template_id: Option<TemplateId>,
    /// Started at that time or later, to the microsecond.
    pub started_from: Option<Timestamp>,
    /// With all of these pairs in their metadata.
    pub metadata: BTreeMap<String, String>,
    /// In this order.
    pub order: Order,
    /// Only what follows this one.
    pub after: Option<SandboxCursor>,
    /// At most so many, and at most [`PAGE_MAX`].
    pub limit: u32,
}

/// A place in a list: that of the last sandbox before it. It stays valid when that sandbox is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxCursor {
    /// When that sandbox started.
    pub started_at: Timestamp,
    /// That sandbox.
    pub sandbox_id: SandboxId,
}

/// What a list has of a sandbox. Not its environment above all, which may be a megabyte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSandbox {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The template it was created from.
    pub template_id: TemplateId,
    /// First alias of that template when the sandbox was created.
    pub alias: Option<String>,
    /// What should become of it.
    pub state: SandboxState,
    /// What the client filters by.
    pub metadata: BTreeMap<String, String>,
    /// Version of the guest daemon.
    pub envd_version: String,
    /// When it was last started.
    pub started_at: Timestamp,
    /// When it expires.
    pub end_at: Timestamp,
    /// Its virtual hardware.
    pub resources: Resources,
}

/// The columns of it, in the order of [`LISTED`].
#[derive(Deserialize)]
struct ListedRow {
    id: String,
    template_id: String,
    alias: Option<String>,
    state: String,
    metadata: String,
    envd_version: String,
    started_at_us: i64,
    end_at_us: i64,
    vcpus: i64,
    memory_mib: i64,
    disk_mib: i64,
}

const LISTED: [Column; 11] = [
    Column::Id,
    Column::TemplateId,
    Column::Alias,
    Column::State,
    Column::Metadata,
    Column::EnvdVersion,
    Column::StartedAtUs,
    Column::EndAtUs,
    Column::Vcpus,
    Column::MemoryMib,
    Column::DiskMib,
];

/// What the database answers. The rows come as one value: a value for each column of each row costs several times the time of
/// everything else.
#[derive(FromQueryResult)]
struct Answer {
    /// An array of [`ListedRow`]s; `None`: there are none.
    rows: Option<String>,
    running_total: Option<i64>,
}

impl TryFrom<ListedRow> for ListedSandbox {
    type Error = Error;

    fn try_from(row: ListedRow) -> Result<Self, Error> {
        let reading = Reading::new("sandbox", &row.id);
        Ok(Self {
            sandbox_id: reading.text("id", &row.id)?,
            template_id: reading.text("template_id", &row.template_id)?,
            alias: row.alias,
            state: read_state(&reading, &row.state)?,
            metadata: reading.json("metadata", &row.metadata)?,
            envd_version: row.envd_version,
            started_at: reading.time("started_at_us", row.started_at_us)?,
            end_at: reading.time("end_at_us", row.end_at_us)?,
            resources: Resources {
                vcpus: reading.number("vcpus", row.vcpus)?,
                memory_mib: reading.number("memory_mib", row.memory_mib)?,
                disk_mib: reading.number("disk_mib", row.disk_mib)?,
            },
        })
    }
}

impl From<Sandbox> for ListedSandbox {
    fn from(sandbox: Sandbox) -> Self {
        Self {
            sandbox_id: sandbox.sandbox_id,
            template_id: sandbox.template_id,
            alias: sandbox.alias,
            state: sandbox.state,
            metadata: sandbox.metadata,
            envd_version: sandbox.envd_version,
            started_at: sandbox.started_at,
            end_at: sandbox.end_at,
            resources: sandbox.resources,
        }
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPage {
    /// The sandboxes.
    pub sandboxes: Vec<ListedSandbox>,
    /// Where the next page begins; `None`: this is the last one.
    pub next: Option<SandboxCursor>,
    /// How many running sandboxes all pages together have; `None`: running ones were not asked for.
    pub running_total: Option<u64>,
}

impl Store {
    /// A page of a team's sandboxes, and how many running ones there are on all pages, at one moment.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn list_sandboxes(&self, query: &SandboxQuery) -> Result<SandboxPage, Error> {
        let failed = |error| failed("listing sandboxes of team", query.team_id)(error);
        let limit = query.limit.clamp(1, PAGE_MAX);
        let direction = match query.order {
            Order::OldestFirst => SqlOrder::Asc,
            Order::NewestFirst => SqlOrder::Desc,
        };
        let page = sandbox::Entity::find()
            .select_only()
            .columns(LISTED)
            .filter(self.matching(query))
            .filter(is_in(&query.states))
            .filter(following(query))
            .order_by(Column::StartedAtUs, direction)
            .order_by_asc(Column::Id)
            // One more tells whether there is a next page.
            .limit(u64::from(limit) + 1)
            .into_query();
        let running_total = match query.states.contains(&SandboxState::Running) {
            true => {
                let running = sandbox::Entity::find().select_only().expr(Expr::col(Asterisk).count());
                subquery(running.filter(self.matching(query)).filter(is_in(&[SandboxState::Running])).into_query())
            }
            false => Expr::val(None::<i64>),
        };
        // One statement sees one moment.
        let mut statement = Query::select();
        statement.expr_as(subquery(self.as_one_value(page)), "rows").expr_as(running_total, "running_total");
        let answer = Answer::find_by_statement(self.database.get_database_backend().build(&statement));
        let answer = answer.one(&self.database).await.map_err(failed)?;
        let Answer { rows, running_total } = answer.unwrap_or(Answer { rows: None, running_total: None });
        let rows: Vec<ListedRow> = match rows {
            Some(rows) => serde_json::from_str(&rows).map_err(|error| failed(DbErr::Json(error.to_string())))?,
            None => Vec::new(),
        };
        let is_last = rows.len() <= limit as usize;
        let running_total = running_total.and_then(|total| u64::try_from(total).ok());
        let sandboxes =
            rows.into_iter().take(limit as usize).map(ListedSandbox::try_from).collect::<Result<Vec<_>, _>>()?;
        let next = sandboxes
            .last()
            .filter(|_| !is_last)
            .map(|last| SandboxCursor { started_at: last.started_at, sandbox_id: last.sandbox_id.clone() });
        Ok(SandboxPage { sandboxes, next, running_total })
    }

    /// What a page selects, in its order, as an array of arrays.
    fn as_one_value(&self, page: SelectStatement) -> SelectStatement {
        let (array, all) = match self.is_postgres() {
            true => ("json_build_array", "json_agg"),
            false => ("json_array", "json_group_array"),
        };
        let columns = LISTED.map(|column| match column {
            // It is JSON already, for one of the two.
            Column::Metadata => Expr::col(column).cast_as("text"),
            column => Expr::col(column),
        });
        let rows = Func::cust(all).arg(Func::cust(array).args(columns));
        Query::select().expr(Expr::expr(rows).cast_as("text")).from_subquery(page, "page").to_owned()
    }

    /// What a query filters by besides state and place.
    fn matching(&self, query: &SandboxQuery) -> Condition {
        let template = query.template_id.as_ref().map(|id| Column::TemplateId.eq(id.as_str()));
        let started = query.started_from.map(|from| Column::StartedAtUs.gte(micros(from)));
        // Through a table of the pairs, because a key in a path would have to be quoted, and cannot always be.
        let has_pair = if self.is_postgres() {
            r#"EXISTS (SELECT 1 FROM jsonb_each_text("sandbox"."metadata") AS pair WHERE pair.key = $1 AND pair.value = $2)"#
        } else {
            r#"EXISTS (SELECT 1 FROM json_each("sandbox"."metadata") AS pair WHERE pair.key = ? AND pair.value = ?)"#
        };
        let pairs = query.metadata.iter().map(|(key, value)| match key.contains('\0') || value.contains('\0') {
            // Nobody has it, and Postgres would not even listen.
            true => Expr::cust("1 = 0"),
            false => Expr::cust_with_values(has_pair, [key.as_str(), value]),
        });
        let condition = Condition::all().add(Column::TeamId.eq(query.team_id.as_uuid()));
        pairs.fold(condition.add_option(template).add_option(started), Condition::add)
    }
}

fn subquery(select: SelectStatement) -> Expr {
    Expr::SubQuery(None, Box::new(select.into()))
}

/// In one of the states.
pub(super) fn is_in(states: &[SandboxState]) -> Condition {
    Condition::all().add(Column::State.is_in(states.iter().map(|state| state.as_str())))
}

/// What comes after the query's place.
fn following(query: &SandboxQuery) -> Condition {
    let Some(SandboxCursor { started_at, sandbox_id }) = &query.after else { return Condition::all() };
    let started_at = micros(*started_at);
    let further = match query.order {
        Order::OldestFirst => Column::StartedAtUs.gt(started_at),
        Order::NewestFirst => Column::StartedAtUs.lt(started_at),
    };
    let level = Condition::all().add(Column::StartedAtUs.eq(started_at)).add(Column::Id.gt(sandbox_id.as_str()));
    Condition::any().add(further).add(level)
}
