//! Migrations of the tables.
//!
//! Migrations are only added. They are never changed once released, and never undone: to go back, restore a copy. Each
//! spells the names of tables and columns itself, because entities change with later migrations.
//!
//! All pending migrations run in one transaction that holds the database's only write lock. When several processes open
//! a database at the same time, one brings it up to date and the others find it done. A failed migration changes
//! nothing.

mod m0001_first_tables;
mod m0002_accounts;
mod m0003_ingress;
mod m0004_logins;
mod m0005_nodes;
mod m0006_counts;
mod m0007_login_keys;

use sea_orm::{DbErr, EntityTrait as _, QueryOrder as _};
use sea_orm_migration::{MigrationTrait, MigratorTrait, seaql_migrations};

use crate::connection::Store;
use crate::error::{Cause, Error};

struct Steps;

impl MigratorTrait for Steps {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_first_tables::Step),
            Box::new(m0002_accounts::Step),
            Box::new(m0003_ingress::Step),
            Box::new(m0004_logins::Step),
            Box::new(m0005_nodes::Step),
            Box::new(m0006_counts::Step),
            Box::new(m0007_login_keys::Step),
        ]
    }
}

/// Brings the tables up to date, unless a newer version did so before.
pub(crate) async fn run(store: &Store, url: &str) -> Result<(), Error> {
    let failed = |error: DbErr| Error::Migrate { url: url.to_owned(), source: Cause::from(error) };
    let write = store.begin("bringing up to date", "the tables").await?;
    Steps::install(&write.transaction).await.map_err(failed)?;
    let applied = seaql_migrations::Entity::find()
        .order_by_asc(seaql_migrations::Column::Version)
        .all(&write.transaction)
        .await
        .map_err(failed)?;
    let known = Steps::migrations();
    let newer = applied.into_iter().find(|row| known.iter().all(|step| step.name() != row.version));
    if let Some(newer) = newer {
        return Err(Error::Newer { url: url.to_owned(), migration: newer.version });
    }
    Steps::up(&write.transaction, None).await.map_err(failed)?;
    write.commit().await
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait as _, Database};

    use super::*;
    use crate::connection::Config;
    use crate::key::KeySecret;
    use crate::team::{Limits, Standing};

    #[tokio::test]
    async fn rows_of_the_first_version_survive() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::sqlite(&folder.path().join("hearth.db")).expect("the path is UTF-8");
        let database = Database::connect(&config.url).await.expect("an empty database");
        Steps::up(&database, Some(1)).await.expect("the first step");
        let secret = KeySecret::generate();
        let id = "'00112233445566778899aabbccddeeff'";
        for sql in [
            format!("INSERT INTO team VALUES (X{id}, 'first', 'First', 3, 60000, 'banned', NULL, 0)"),
            format!(
                "INSERT INTO api_key VALUES (X{id}, X{id}, 'laptop', '{}', 'e2b_', 40, 'ab', 'cdef', 0, NULL)",
                secret.hash().as_str()
            ),
        ] {
            database.execute_unprepared(&sql).await.expect(&sql);
        }
        database.close().await.expect("it closes");
        let store = Store::open(&config).await.expect("the steps after it");
        let (team, key) = store.authenticate(&secret.hash()).await.expect("a read").expect("the key");
        let limits =
            Limits { sandboxes_max: 3, sandbox_length_max: std::time::Duration::from_secs(60), ..Limits::STANDARD };
        assert_eq!((team.limits, team.standing), (limits, Standing::Banned { reason: String::new() }));
        assert_eq!((key.name.as_str(), key.created_by), ("laptop", None));
        store.close().await;
    }
}
