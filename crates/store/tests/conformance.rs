//! Conformance suite for all backends of the store, each case on an empty database; and tests of SQLite files only.

#[path = "conformance/files.rs"]
mod files;
#[path = "conformance/full.rs"]
mod full;
#[path = "conformance/idempotency.rs"]
mod idempotency;
#[path = "conformance/lists.rs"]
mod lists;
#[path = "conformance/logins.rs"]
mod logins;
#[path = "conformance/nodes.rs"]
mod nodes;
#[path = "conformance/postgres.rs"]
mod postgres;
#[path = "conformance/sandboxes.rs"]
mod sandboxes;
#[path = "conformance/small_disk.rs"]
mod small_disk;
#[path = "conformance/teams.rs"]
mod teams;
#[path = "conformance/templates.rs"]
mod templates;
#[path = "conformance/users.rs"]
mod users;

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_store::{Alias, Build, Config, Limits, NewBuild, NewTeam, Sandbox, SandboxState, Store, Team};
use hearth_types::{BuildId, ExecutionId, Ingress, Resources, SandboxId, Tag, TemplateId, TemplateReference};
use jiff::Timestamp;
use sea_orm::{ConnectionTrait as _, Database};
use tempfile::TempDir;

/// A store with an empty database.
struct Fixture {
    store: Store,
    config: Config,
    /// Contains SQLite's file; unused for Postgres.
    folder: TempDir,
}

impl Fixture {
    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::sqlite(&folder.path().join("hearth.db")).expect("the path is UTF-8");
        let store = Store::open(&config).await.expect("an empty database");
        Self { store, config, folder }
    }

    async fn postgres(server: &postgres::Server, name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = server.create(name).await;
        let store = Store::open(&config).await.expect("an empty database");
        Self { store, config, folder }
    }

    /// Opens a second connection pool to the same database, as another process would.
    async fn open_again(&self) -> Store {
        Store::open(&self.config).await.expect("the database opens again")
    }

    /// Executes SQL directly, for states that no call of the store can cause.
    async fn tamper(&self, sql: &str) {
        let database = Database::connect(&self.config.url).await.expect("the database opens");
        database.execute_unprepared(sql).await.expect(sql);
        database.close().await.expect("the database closes");
    }

    async fn team(&self, slug: &str) -> Team {
        let limits = Limits::STANDARD;
        let team = NewTeam { slug: slug.to_owned(), name: format!("The team {slug}"), limits };
        self.store.create_team(team).await.expect("the slug is free")
    }

    async fn base(&self) -> Build {
        self.store.register_build(base()).await.expect("nothing is registered yet")
    }
}

/// A build as it is registered at the first start.
fn base() -> NewBuild {
    NewBuild {
        template_id: TemplateId::generate(),
        team_id: None,
        public: true,
        alias: Alias { namespace: None, name: "base".to_owned() },
        tag: Tag::default(),
        build_id: BuildId::generate(),
        resources: Resources { vcpus: 2, memory_mib: 1024, disk_mib: 10_240 },
        envd_version: "0.6.4".to_owned(),
        kernel_version: "6.12.48".to_owned(),
        created_at: at(1_000_000),
        finished_at: at(2_000_000),
    }
}

/// A sandbox in the state creating.
fn sandbox(team: &Team, build: &Build) -> Sandbox {
    Sandbox {
        sandbox_id: SandboxId::generate(),
        execution_id: ExecutionId::generate(),
        team_id: team.id,
        template_id: build.template_id.clone(),
        build_id: build.id,
        alias: Some("base".to_owned()),
        node_id: "node-1".parse().expect("valid"),
        state: SandboxState::Creating,
        metadata: BTreeMap::new(),
        env_vars: BTreeMap::new(),
        envd_version: build.envd_version.clone(),
        secured: true,
        allow_internet_access: None,
        ingress: Ingress::open(),
        timeout: Duration::from_secs(300),
        started_at: at(10_000_000),
        end_at: at(310_000_000),
        resources: build.resources,
    }
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(1_800_000_000_000_000 + micros).expect("a time")
}

fn reference(text: &str) -> TemplateReference {
    text.parse().expect(text)
}

fn texts<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

macro_rules! conformance {
    ($($module:ident::$case:ident,)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$module::$case(&super::Fixture::sqlite().await).await;
                }
            )*
        }

        /// Runs all cases in one test: every test is a separate process, and a server takes long to start.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn postgres() {
            let server = std::sync::Arc::new(postgres::Server::start().await);
            files::many_open(&server.create("empty").await).await;
            postgres::one_control_role_claims_a_database(&server).await;
            full::a_connection_whose_commit_failed_is_closed(&server).await;
            let mut failures = Vec::new();
            $(
                let shared = std::sync::Arc::clone(&server);
                let case = tokio::spawn(async move {
                    let fixture = Fixture::postgres(&shared, stringify!($case)).await;
                    $module::$case(&fixture).await;
                    fixture.store.close().await;
                });
                if let Err(error) = case.await {
                    failures.push(format!("{}: {error}", stringify!($case)));
                }
            )*
            assert!(failures.is_empty(), "{}", failures.join("\n"));
        }
    };
}

conformance! {
    teams::a_team_is_found_as_created,
    teams::slugs_are_unique_and_valid_in_references,
    teams::a_team_changes_its_standing,
    teams::a_key_authenticates_its_team,
    teams::a_secret_is_used_by_one_key_only,
    teams::the_latest_use_of_a_key_wins,
    teams::limits_are_stored,
    teams::a_team_changes_only_its_own_keys,
    users::a_user_is_found_as_created,
    users::exactly_one_team_is_the_default,
    users::keys_outlive_their_creator,
    users::keys_for_logins_replace_each_other,
    logins::a_password_is_set_changed_and_removed,
    logins::a_reused_refresh_token_deletes_its_login,
    logins::one_of_many_renewals_wins,
    logins::logins_expire_and_are_deleted,
    idempotency::a_key_identifies_one_request,
    idempotency::one_of_many_parallel_calls_is_first,
    nodes::the_last_write_wins,
    templates::references_resolve_to_a_registered_build,
    templates::registering_again_changes_nothing,
    templates::a_tag_resolves_to_its_newest_ready_build,
    templates::a_build_id_is_accepted_as_a_tag,
    templates::namespaces_are_searched_in_order,
    templates::private_templates_resolve_for_their_team_only,
    templates::an_alias_moves_between_templates_of_one_owner,
    templates::builds_of_other_owners_are_rejected,
    sandboxes::a_sandbox_is_read_as_written,
    sandboxes::dangling_references_are_rejected,
    sandboxes::parallel_inserts_reach_the_limit_exactly,
    sandboxes::deleting_the_row_frees_its_place_in_the_limit,
    sandboxes::a_sandbox_runs_and_is_deleted,
    sandboxes::a_late_creation_does_not_revive_a_killed_sandbox,
    sandboxes::stale_executions_change_nothing,
    sandboxes::changes_are_rejected_in_another_state,
    sandboxes::extending_never_shortens,
    sandboxes::expiry_and_extension_exclude_each_other,
    sandboxes::a_damaged_row_is_reported,
    sandboxes::dropped_calls_are_atomic,
    lists::all_sandboxes_of_all_teams_are_listed,
    lists::pages_agree_with_a_model,
    lists::a_cursor_outlives_its_sandbox,
    lists::metadata_is_compared_exactly,
    files::rows_survive_reopening,
    files::a_newer_database_is_rejected_unchanged,
    files::a_closed_store_fails,
}
