//! Rules for visitors of a sandbox's ports.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::schema::json_binary_null;
use sea_orm_migration::sea_query::Table;
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &'static str {
        "m0003_ingress"
    }
}

#[async_trait]
impl MigrationTrait for Step {
    async fn up(&self, tables: &SchemaManager) -> Result<(), DbErr> {
        // The ports of existing sandboxes are open to all visitors, which is the meaning of null.
        tables.alter_table(Table::alter().table("sandbox").add_column(json_binary_null("ingress")).to_owned()).await
    }
}
