//! Assignments of a template's tags to builds. A tag refers to the newest assigned build that is ready.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "tag_assignment")]
pub struct Model {
    /// Order of assignment: two assignments may have the same microsecond.
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
