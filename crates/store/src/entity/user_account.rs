//! Users who may act for teams.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "user_account")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// The identity provider's identifier for the user: the claim `sub` of their tokens.
    #[sea_orm(unique)]
    pub subject: String,
    #[sea_orm(unique)]
    pub email: String,
    /// The chosen team; has an effect only while the user is a member of it.
    pub default_team_id: Option<Uuid>,
    pub created_at_us: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
