//! Index that counts a team's sandboxes in a state without reading their rows.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::sea_query::Index;
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &'static str {
        "m0006_counts"
    }
}

#[async_trait]
impl MigrationTrait for Step {
    async fn up(&self, tables: &SchemaManager) -> Result<(), DbErr> {
        let index = Index::create().name("sandbox_team_state").table("sandbox").col("team_id").col("state").to_owned();
        tables.create_index(index).await
    }
}
