//! Desired state of nodes, set by operators. The observed state of a node is only known to the node itself.

use hearth_types::NodeId;
use jiff::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::OnConflict;
use sea_orm::{EntityTrait as _, QueryOrder as _};

use crate::connection::Store;
use crate::entity::node::{ActiveModel, Column, Entity, Model};
use crate::error::{Error, failed};
use crate::row::{RowReader, UnknownValue, micros};

/// Desired state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeIntent {
    /// Accepts new sandboxes. The default for a node without a stored state.
    Ready,
    /// Runs its sandboxes on and accepts no new ones, because it will be removed.
    Draining,
    /// Accepts no sandboxes until it is needed.
    Standby,
}

impl NodeIntent {
    const ALL: [Self; 3] = [Self::Ready, Self::Draining, Self::Standby];

    /// Returns the value that is stored and shown to clients.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Standby => "standby",
        }
    }
}

/// A node's desired state, as set by an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredNode {
    pub node_id: NodeId,
    pub intent: NodeIntent,
    /// Time at which the operator set it.
    pub changed_at: Timestamp,
}

impl Store {
    /// Stores the desired state of a node, replacing the previous one.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn set_desired_node(&self, desired: &DesiredNode) -> Result<(), Error> {
        let DesiredNode { node_id, intent, changed_at } = desired;
        let write = self.begin("storing the desired state of node", node_id).await?;
        let row = ActiveModel {
            id: Set(node_id.as_str().to_owned()),
            intent: Set(intent.as_str().to_owned()),
            changed_at_us: Set(micros(*changed_at)),
        };
        let replacing = OnConflict::column(Column::Id).update_columns([Column::Intent, Column::ChangedAtUs]).to_owned();
        let stored = Entity::insert(row).on_conflict(replacing).exec_without_returning(&write.transaction).await;
        stored.map_err(|error| write.failed(error))?;
        write.commit().await
    }

    /// Returns all stored desired states, ordered by node id.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn desired_nodes(&self) -> Result<Vec<DesiredNode>, Error> {
        let rows = Entity::find().order_by_asc(Column::Id).all(&self.database).await;
        let rows = rows.map_err(failed("reading the desired states of", "nodes"))?;
        rows.into_iter().map(DesiredNode::try_from).collect()
    }
}

impl TryFrom<Model> for DesiredNode {
    type Error = Error;

    fn try_from(row: Model) -> Result<Self, Error> {
        let Model { id, intent, changed_at_us } = row;
        let reader = RowReader::new("node", &id);
        let known = NodeIntent::ALL.into_iter().find(|known| known.as_str() == intent);
        Ok(Self {
            node_id: reader.text("id", &id)?,
            intent: known.ok_or_else(|| reader.damaged("intent", UnknownValue(intent)))?,
            changed_at: reader.time("changed_at_us", changed_at_us)?,
        })
    }
}
