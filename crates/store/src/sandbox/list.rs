//! Lists of a team's sandboxes: filters, order, pages.
//!
//! A page begins after a place in the order, not after a number of rows, so that sandboxes that come and go meanwhile
//! neither hide others nor show them twice.

use std::collections::BTreeMap;

use hearth_types::{SandboxId, TeamId, TemplateId};
use jiff::Timestamp;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, Order as SqlOrder, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _,
};

use super::{Sandbox, SandboxState};
use crate::connection::Store;
use crate::entity::sandbox::{self, Column};
use crate::error::{Error, failed};
use crate::row::micros;

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

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPage {
    /// The sandboxes.
    pub sandboxes: Vec<Sandbox>,
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
        let snapshot = self.snapshot().await.map_err(failed)?;
        let rows = sandbox::Entity::find()
            .filter(self.matching(query))
            .filter(is_in(&query.states))
            .filter(following(query))
            .order_by(Column::StartedAtUs, direction)
            .order_by_asc(Column::Id)
            // One more tells whether there is a next page.
            .limit(u64::from(limit) + 1)
            .all(&snapshot)
            .await
            .map_err(failed)?;
        let running_total = if query.states.contains(&SandboxState::Running) {
            let running = sandbox::Entity::find().filter(self.matching(query)).filter(is_in(&[SandboxState::Running]));
            Some(running.count(&snapshot).await.map_err(failed)?)
        } else {
            None
        };
        snapshot.commit().await.map_err(failed)?;
        let is_last = rows.len() <= limit as usize;
        let sandboxes = rows.into_iter().take(limit as usize).map(Sandbox::try_from).collect::<Result<Vec<_>, _>>()?;
        let next = sandboxes
            .last()
            .filter(|_| !is_last)
            .map(|last| SandboxCursor { started_at: last.started_at, sandbox_id: last.sandbox_id.clone() });
        Ok(SandboxPage { sandboxes, next, running_total })
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
