//! Teams, API keys, templates, aliases, builds, tags, sandboxes.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, big_pk_auto, boolean, boolean_null, json_binary, pk_uuid, text, text_null,
    text_uniq, uuid, uuid_null,
};
use sea_orm_migration::sea_query::{ForeignKey, ForeignKeyCreateStatement, Index, Table, TableCreateStatement};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &'static str {
        "m0001_first_tables"
    }
}

#[async_trait]
impl MigrationTrait for Step {
    async fn up(&self, tables: &SchemaManager) -> Result<(), DbErr> {
        for table in [team(), api_key(), template(), template_alias(), build(), tag_assignment(), sandbox()] {
            tables.create_table(table).await?;
        }
        let index = |name: &'static str, table: &'static str, columns: &[&'static str]| {
            let mut index = Index::create();
            index.name(name).table(table);
            for column in columns {
                index.col(*column);
            }
            index
        };
        // A template has at most one alias per namespace.
        let mut alias = index("template_alias_template", "template_alias", &["template_id", "namespace"]);
        tables.create_index(alias.unique().to_owned()).await?;
        // To find the newest assignment of a tag.
        tables.create_index(index("tag_assignment_tag", "tag_assignment", &["template_id", "tag", "sequence"])).await?;
        // For lists in either order, and for counts.
        tables.create_index(index("sandbox_team_start", "sandbox", &["team_id", "started_at_us", "id"])).await
    }
}

fn refers(table: &'static str, column: &'static str, to: &'static str) -> ForeignKeyCreateStatement {
    ForeignKey::create().from(table, column).to(to, "id").to_owned()
}

fn team() -> TableCreateStatement {
    Table::create()
        .table("team")
        .col(pk_uuid("id"))
        .col(text_uniq("slug"))
        .col(text("name"))
        .col(big_integer("sandboxes_max"))
        .col(big_integer("sandbox_length_max_ms"))
        .col(text("standing"))
        .col(text_null("standing_reason"))
        .col(big_integer("created_at_us"))
        .to_owned()
}

fn api_key() -> TableCreateStatement {
    Table::create()
        .table("api_key")
        .col(pk_uuid("id"))
        .col(uuid("team_id"))
        .col(text("name"))
        .col(text_uniq("hash"))
        .col(text("mask_prefix"))
        .col(big_integer("mask_value_length"))
        .col(text("mask_value_prefix"))
        .col(text("mask_value_suffix"))
        .col(big_integer("created_at_us"))
        .col(big_integer_null("last_used_at_us"))
        .foreign_key(&mut refers("api_key", "team_id", "team"))
        .to_owned()
}

fn template() -> TableCreateStatement {
    Table::create()
        .table("template")
        .col(text("id").primary_key())
        .col(uuid_null("team_id"))
        .col(boolean("public"))
        .col(big_integer("created_at_us"))
        .foreign_key(&mut refers("template", "team_id", "team"))
        .to_owned()
}

fn template_alias() -> TableCreateStatement {
    Table::create()
        .table("template_alias")
        .col(text("namespace"))
        .col(text("alias"))
        .col(text("template_id"))
        .col(big_integer("created_at_us"))
        .primary_key(Index::create().col("namespace").col("alias"))
        .foreign_key(&mut refers("template_alias", "template_id", "template"))
        .to_owned()
}

fn build() -> TableCreateStatement {
    Table::create()
        .table("build")
        .col(pk_uuid("id"))
        .col(text("template_id"))
        .col(text("status"))
        .col(big_integer("vcpus"))
        .col(big_integer("memory_mib"))
        .col(big_integer("disk_mib"))
        .col(text("envd_version"))
        .col(text("kernel_version"))
        .col(big_integer("created_at_us"))
        .col(big_integer_null("finished_at_us"))
        .foreign_key(&mut refers("build", "template_id", "template"))
        .to_owned()
}

fn tag_assignment() -> TableCreateStatement {
    Table::create()
        .table("tag_assignment")
        .col(big_pk_auto("sequence"))
        .col(text("template_id"))
        .col(text("tag"))
        .col(uuid("build_id"))
        .col(big_integer("assigned_at_us"))
        .foreign_key(&mut refers("tag_assignment", "template_id", "template"))
        .foreign_key(&mut refers("tag_assignment", "build_id", "build"))
        .to_owned()
}

fn sandbox() -> TableCreateStatement {
    Table::create()
        .table("sandbox")
        .col(text("id").primary_key())
        .col(uuid("execution_id"))
        .col(uuid("team_id"))
        .col(text("template_id"))
        .col(uuid("build_id"))
        .col(text_null("alias"))
        .col(text("node_id"))
        .col(text("state"))
        .col(json_binary("metadata"))
        .col(json_binary("env_vars"))
        .col(text("envd_version"))
        .col(boolean("secured"))
        .col(boolean_null("allow_internet_access"))
        .col(big_integer("timeout_ms"))
        .col(big_integer("started_at_us"))
        .col(big_integer("end_at_us"))
        .col(big_integer("vcpus"))
        .col(big_integer("memory_mib"))
        .col(big_integer("disk_mib"))
        .foreign_key(&mut refers("sandbox", "team_id", "team"))
        .foreign_key(&mut refers("sandbox", "template_id", "template"))
        .foreign_key(&mut refers("sandbox", "build_id", "build"))
        .to_owned()
}
