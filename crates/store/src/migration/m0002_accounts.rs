//! Users and memberships, further limits of teams, creators of API keys, idempotent requests.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::schema::{big_integer, pk_uuid, text, text_null, text_uniq, uuid, uuid_null};
use sea_orm_migration::sea_query::{ForeignKey, ForeignKeyCreateStatement, Index, Table, TableCreateStatement};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &'static str {
        "m0002_accounts"
    }
}

#[async_trait]
impl MigrationTrait for Step {
    async fn up(&self, tables: &SchemaManager) -> Result<(), DbErr> {
        // Existing teams get the values of E2B's contract. SQLite adds one column per statement.
        for (column, value) in [("vcpus_max", 8), ("memory_mib_max", 8192), ("builds_max", 20)] {
            let mut column = big_integer(column);
            column.default(value);
            tables.alter_table(Table::alter().table("team").add_column(column).to_owned()).await?;
        }
        // No foreign key to the users' table: SQLite cannot add one to an existing table.
        tables.alter_table(Table::alter().table("api_key").add_column(uuid_null("created_by")).to_owned()).await?;
        for table in [user_account(), team_member(), idempotency()] {
            tables.create_table(table).await?;
        }
        let index = |name: &'static str, table: &'static str, column: &'static str| {
            Index::create().name(name).table(table).col(column).to_owned()
        };
        tables.create_index(index("api_key_team", "api_key", "team_id")).await?;
        tables.create_index(index("team_member_user", "team_member", "user_id")).await?;
        tables.create_index(index("idempotency_expiry", "idempotency", "expires_at_us")).await
    }
}

fn refers(table: &'static str, column: &'static str, to: &'static str) -> ForeignKeyCreateStatement {
    ForeignKey::create().from(table, column).to(to, "id").to_owned()
}

fn user_account() -> TableCreateStatement {
    Table::create()
        .table("user_account")
        .col(pk_uuid("id"))
        .col(text_uniq("subject"))
        .col(text_uniq("email"))
        .col(uuid_null("default_team_id"))
        .col(big_integer("created_at_us"))
        .foreign_key(&mut refers("user_account", "default_team_id", "team"))
        .to_owned()
}

fn team_member() -> TableCreateStatement {
    Table::create()
        .table("team_member")
        .col(uuid("team_id"))
        .col(uuid("user_id"))
        .col(big_integer("created_at_us"))
        .primary_key(Index::create().col("team_id").col("user_id"))
        .foreign_key(&mut refers("team_member", "team_id", "team"))
        .foreign_key(&mut refers("team_member", "user_id", "user_account"))
        .to_owned()
}

fn idempotency() -> TableCreateStatement {
    Table::create()
        .table("idempotency")
        .col(uuid("team_id"))
        .col(text("key"))
        .col(text("request"))
        .col(text_null("answer"))
        .col(big_integer("decided_by_us"))
        .col(big_integer("expires_at_us"))
        .primary_key(Index::create().col("team_id").col("key"))
        .foreign_key(&mut refers("idempotency", "team_id", "team"))
        .to_owned()
}
