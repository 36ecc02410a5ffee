//! What operators want of nodes: whether they are to be given sandboxes. How a node is, only it knows.

use hearth_types::NodeId;
use jiff::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::OnConflict;
use sea_orm::{EntityTrait as _, QueryOrder as _};

use crate::connection::Store;
use crate::entity::node::{ActiveModel, Column, Entity, Model};
use crate::error::{Error, failed};
use crate::row::{Reading, UnknownWord, micros};

/// What a node is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeIntent {
    /// Take new sandboxes. What a node does that nobody said anything about.
    Ready,
    /// Keep those it has and take no new ones, because it is to go.
    Draining,
    /// Take none until it is needed.
    Standby,
}

impl NodeIntent {
    const ALL: [Self; 3] = [Self::Ready, Self::Draining, Self::Standby];

    /// Its word, here and for clients.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Standby => "standby",
        }
    }
}

/// What an operator wanted of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedNode {
    /// The node.
    pub node_id: NodeId,
    /// What it is to do.
    pub intent: NodeIntent,
    /// Since when.
    pub changed_at: Timestamp,
}

impl Store {
    /// Keeps what is wanted of a node, in the place of what was.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn want_node(&self, wanted: &WantedNode) -> Result<(), Error> {
        let WantedNode { node_id, intent, changed_at } = wanted;
        let write = self.begin("keeping what is wanted of node", node_id).await?;
        let row = ActiveModel {
            id: Set(node_id.as_str().to_owned()),
            intent: Set(intent.as_str().to_owned()),
            changed_at_us: Set(micros(*changed_at)),
        };
        let instead = OnConflict::column(Column::Id).update_columns([Column::Intent, Column::ChangedAtUs]).to_owned();
        let kept = Entity::insert(row).on_conflict(instead).exec_without_returning(&write.transaction).await;
        kept.map_err(|error| write.failed(error))?;
        write.commit().await
    }

    /// All that was ever wanted of nodes, by their names.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn wanted_nodes(&self) -> Result<Vec<WantedNode>, Error> {
        let rows = Entity::find().order_by_asc(Column::Id).all(&self.database).await;
        let rows = rows.map_err(failed("reading what is wanted of", "nodes"))?;
        rows.into_iter().map(WantedNode::try_from).collect()
    }
}

impl TryFrom<Model> for WantedNode {
    type Error = Error;

    fn try_from(row: Model) -> Result<Self, Error> {
        let Model { id, intent, changed_at_us } = row;
        let reading = Reading::new("node", &id);
        let known = NodeIntent::ALL.into_iter().find(|known| known.as_str() == intent);
        Ok(Self {
            node_id: reading.text("id", &id)?,
            intent: known.ok_or_else(|| reading.damaged("intent", UnknownWord(intent)))?,
            changed_at: reading.time("changed_at_us", changed_at_us)?,
        })
    }
}
