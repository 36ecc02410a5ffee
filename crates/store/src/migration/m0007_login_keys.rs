//! Mark of API keys that were created for a client that logged in, so that later ones can replace them.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::schema::boolean;
use sea_orm_migration::sea_query::Table;
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &'static str {
        "m0007_login_keys"
    }
}

#[async_trait]
impl MigrationTrait for Step {
    async fn up(&self, tables: &SchemaManager) -> Result<(), DbErr> {
        // Existing keys are not marked, because their origin is unknown: they stay valid until they are revoked.
        let column = boolean("is_for_login").default(false).to_owned();
        tables.alter_table(Table::alter().table("api_key").add_column(column).to_owned()).await
    }
}
