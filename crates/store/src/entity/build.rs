//! Results of building templates.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "build")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub template_id: String,
    pub status: String,
    pub vcpus: i64,
    pub memory_mib: i64,
    pub disk_mib: i64,
    pub envd_version: String,
    pub kernel_version: String,
    pub created_at_us: i64,
    pub finished_at_us: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
