//! Desired state of nodes, set by operators.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::schema::{big_integer, text};
use sea_orm_migration::sea_query::{Index, Table};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &'static str {
        "m0005_nodes"
    }
}

#[async_trait]
impl MigrationTrait for Step {
    async fn up(&self, tables: &SchemaManager) -> Result<(), DbErr> {
        let node = Table::create()
            .table("node")
            .col(text("id"))
            .col(text("intent"))
            .col(big_integer("changed_at_us"))
            .primary_key(Index::create().col("id"))
            .to_owned();
        tables.create_table(node).await
    }
}
