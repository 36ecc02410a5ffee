//! Pointers from a template's tag to a build. The newest one whose build is ready is what the tag means.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "tag_assignment")]
pub struct Model {
    /// Order of assignment: two of them may fall into one microsecond.
    #[sea_orm(primary_key)]
    pub sequence: i64,
    pub template_id: String,
    pub tag: String,
    pub build_id: Uuid,
    pub assigned_at_us: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(belongs_to = "super::build::Entity", from = "Column::BuildId", to = "super::build::Column::Id")]
    Build,
}

impl ActiveModelBehavior for ActiveModel {}
