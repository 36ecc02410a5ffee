//! Passwords and logins of users.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::schema::{big_integer, pk_uuid, text, uuid};
use sea_orm_migration::sea_query::{ForeignKey, ForeignKeyCreateStatement, Index, Table};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &'static str {
        "m0004_logins"
    }
}

#[async_trait]
impl MigrationTrait for Step {
    async fn up(&self, tables: &SchemaManager) -> Result<(), DbErr> {
        let password = Table::create()
            .table("user_password")
            .col(pk_uuid("user_id"))
            .col(text("hash"))
            .col(big_integer("set_at_us"))
            .foreign_key(&mut of_user("user_password"))
            .to_owned();
        let login = Table::create()
            .table("login")
            .col(pk_uuid("id"))
            .col(uuid("user_id"))
            .col(text("token_hash"))
            .col(big_integer("created_at_us"))
            .col(big_integer("renewed_at_us"))
            .col(big_integer("expires_at_us"))
            .foreign_key(&mut of_user("login"))
            .to_owned();
        for table in [password, login] {
            tables.create_table(table).await?;
        }
        for (name, column) in [("login_user", "user_id"), ("login_expiry", "expires_at_us")] {
            tables.create_index(Index::create().name(name).table("login").col(column).to_owned()).await?;
        }
        Ok(())
    }
}

fn of_user(table: &'static str) -> ForeignKeyCreateStatement {
    ForeignKey::create().from(table, "user_id").to("user_account", "id").to_owned()
}
