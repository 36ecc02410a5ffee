//! Which keys were made for a client that logged in, so that they can be replaced by later ones.

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
        // Nobody knows it of those that are there: they stay until somebody revokes them.
        let column = boolean("is_for_login").default(false).to_owned();
        tables.alter_table(Table::alter().table("api_key").add_column(column).to_owned()).await
    }
}
