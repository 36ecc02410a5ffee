//! API keys of teams.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_key")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub team_id: Uuid,
    pub name: String,
    #[sea_orm(unique)]
    pub hash: String,
    pub mask_prefix: String,
    pub mask_value_length: i64,
    pub mask_value_prefix: String,
    pub mask_value_suffix: String,
    pub created_at_us: i64,
    pub last_used_at_us: Option<i64>,
    /// Null: an operator, or a user who was deleted.
    pub created_by: Option<Uuid>,
    /// Created for a client that logged in: new keys of this kind replace old ones.
    pub is_for_login: bool,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(belongs_to = "super::team::Entity", from = "Column::TeamId", to = "super::team::Column::Id")]
    Team,
    #[sea_orm(
        belongs_to = "super::user_account::Entity",
        from = "Column::CreatedBy",
        to = "super::user_account::Column::Id"
    )]
    Creator,
}

impl Related<super::team::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Team.def()
    }
}

impl Related<super::user_account::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Creator.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
