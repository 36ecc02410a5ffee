//! Lists of a team's sandboxes: filters, order, pages.
//!
//! A page begins after a position in the order, not after a number of rows. Sandboxes that are created or deleted
//! between two pages therefore neither hide others nor repeat them.

use std::collections::BTreeMap;

use hearth_types::{Resources, SandboxId, TeamId, TemplateId};
use jiff::Timestamp;
use sea_orm::sea_query::{Asterisk, Expr, ExprTrait as _, Func, Query, SelectStatement};
use sea_orm::{
    ColumnTrait as _, Condition, DbErr, EntityTrait as _, FromQueryResult, Order as SqlOrder, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, QueryTrait as _,
};
use serde::Deserialize;

use super::convert::read_state;
use super::{Sandbox, SandboxState};
use crate::connection::Store;
use crate::entity::sandbox::{self, Column};
use crate::error::{Error, failed};
use crate::row::{RowReader, micros};

/// Maximum number of sandboxes on a page: the API's limit.
pub const PAGE_MAX: u32 = 100;

/// Order of a list by start time. Sandboxes that started in the same microsecond follow by id, ascending in either
/// order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ascending start time.
    OldestFirst,
    /// Descending start time.
    NewestFirst,
}

/// Filters, order and size of a page of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxQuery {
    /// The owner of the sandboxes.
    pub team_id: TeamId,
    /// Only sandboxes in one of these states.
    pub states: Vec<SandboxState>,
    /// Only sandboxes created from this template; `None`: from any.
    pub template_id: Option<TemplateId>,
    /// Only sandboxes that started at this time or later, in microseconds.
    pub started_from: Option<Timestamp>,
    /// Only sandboxes with all of these pairs in their metadata.
    pub metadata: BTreeMap<String, String>,
    pub order: Order,
    /// Only sandboxes after this position.
    pub after: Option<SandboxCursor>,
    /// Maximum number of sandboxes; values above [`PAGE_MAX`] mean [`PAGE_MAX`].
    pub limit: u32,
}

/// Position in a list: that of the last sandbox before it. It stays valid when that sandbox is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxCursor {
    /// Start time of that sandbox.
    pub started_at: Timestamp,
    /// Id of that sandbox.
    pub sandbox_id: SandboxId,
}

/// Properties of a sandbox in a list. Its environment, which may be a megabyte, is not among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSandbox {
    pub sandbox_id: SandboxId,
    /// The template it was created from.
    pub template_id: TemplateId,
    /// First alias of that template when the sandbox was created.
    pub alias: Option<String>,
    /// The desired state.
    pub state: SandboxState,
    /// Metadata set by its creator; lists are filtered by it.
    pub metadata: BTreeMap<String, String>,
    pub envd_version: String,
    /// Start of its current run.
    pub started_at: Timestamp,
    /// Time at which it expires.
    pub end_at: Timestamp,
    pub resources: Resources,
}

/// Columns of a [`ListedSandbox`], in the order of [`LISTED`].
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

/// The database's reply.
///
/// All rows are one JSON value: separate values for each column of each row take several times as long as everything
/// else.
#[derive(FromQueryResult)]
struct PageRow {
    /// A JSON array of [`ListedRow`]s; `None`: no sandbox matches.
    rows: Option<String>,
    running_total: Option<i64>,
}

impl TryFrom<ListedRow> for ListedSandbox {
    type Error = Error;

    fn try_from(row: ListedRow) -> Result<Self, Error> {
        let reader = RowReader::new("sandbox", &row.id);
        Ok(Self {
            sandbox_id: reader.text("id", &row.id)?,
            template_id: reader.text("template_id", &row.template_id)?,
            alias: row.alias,
            state: read_state(&reader, &row.state)?,
            metadata: reader.json("metadata", &row.metadata)?,
            envd_version: row.envd_version,
            started_at: reader.time("started_at_us", row.started_at_us)?,
            end_at: reader.time("end_at_us", row.end_at_us)?,
            resources: Resources {
                vcpus: reader.number("vcpus", row.vcpus)?,
                memory_mib: reader.number("memory_mib", row.memory_mib)?,
                disk_mib: reader.number("disk_mib", row.disk_mib)?,
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

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPage {
    pub sandboxes: Vec<ListedSandbox>,
    /// Start of the next page; `None`: this is the last one.
    pub next: Option<SandboxCursor>,
    /// Number of running sandboxes on all pages together; `None`: the query's states exclude running ones.
    pub running_total: Option<u64>,
}

impl Store {
    /// Returns a page of a team's sandboxes and the number of running ones on all pages, from one snapshot.
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
            // One more than the limit, to detect a next page.
            .limit(u64::from(limit) + 1)
            .into_query();
        let running_total = match query.states.contains(&SandboxState::Running) {
            true => {
                let running = sandbox::Entity::find().select_only().expr(Expr::col(Asterisk).count());
                subquery(running.filter(self.matching(query)).filter(is_in(&[SandboxState::Running])).into_query())
            }
            false => Expr::val(None::<i64>),
        };
        // A single statement reads from a single snapshot.
        let mut statement = Query::select();
        statement.expr_as(subquery(self.as_one_value(page)), "rows").expr_as(running_total, "running_total");
        let reply = PageRow::find_by_statement(self.database.get_database_backend().build(&statement));
        let reply = reply.one(&self.database).await.map_err(failed)?;
        let PageRow { rows, running_total } = reply.unwrap_or(PageRow { rows: None, running_total: None });
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

    /// Returns the page's rows, in its order, as one array of arrays.
    fn as_one_value(&self, page: SelectStatement) -> SelectStatement {
        let (array, all) = match self.is_postgres() {
            true => ("json_build_array", "json_agg"),
            false => ("json_array", "json_group_array"),
        };
        let columns = LISTED.map(|column| match column {
            // Metadata is JSON already in one of the two databases.
            Column::Metadata => Expr::col(column).cast_as("text"),
            column => Expr::col(column),
        });
        let rows = Func::cust(all).arg(Func::cust(array).args(columns));
        Query::select().expr(Expr::expr(rows).cast_as("text")).from_subquery(page, "page").to_owned()
    }

    /// Returns the query's filters other than state and position.
    fn matching(&self, query: &SandboxQuery) -> Condition {
        let template = query.template_id.as_ref().map(|id| Column::TemplateId.eq(id.as_str()));
        let started = query.started_from.map(|from| Column::StartedAtUs.gte(micros(from)));
        // Searches a table of the pairs, because a key in a JSON path would need quoting, which is not always possible.
        let has_pair = if self.is_postgres() {
            r#"EXISTS (SELECT 1 FROM jsonb_each_text("sandbox"."metadata") AS pair WHERE pair.key = $1 AND pair.value = $2)"#
        } else {
            r#"EXISTS (SELECT 1 FROM json_each("sandbox"."metadata") AS pair WHERE pair.key = ? AND pair.value = ?)"#
        };
        let pairs = query.metadata.iter().map(|(key, value)| match key.contains('\0') || value.contains('\0') {
            // No sandbox has such a pair, and Postgres rejects the parameter.
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

/// Matches sandboxes in one of the states.
pub(super) fn is_in(states: &[SandboxState]) -> Condition {
    Condition::all().add(Column::State.is_in(states.iter().map(|state| state.as_str())))
}

/// Matches sandboxes after the query's position.
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
