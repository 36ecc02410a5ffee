//! A Postgres server that belongs to the suite.
//!
//! It runs as an unprivileged user in a temporary folder, listens on a socket in it, and is removed afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hearth_store::{Config, Store};
use sea_orm::{ConnectionTrait as _, Database, DatabaseConnection, DbBackend, Statement};
use tempfile::TempDir;

/// User id for the server when the tests run as root, which Postgres rejects. No file of the host belongs to it.
const NOBODY: u32 = 65534;
/// Longest start of a server.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two attempts to connect to a server that is starting.
const POLL: Duration = Duration::from_millis(50);

pub(crate) struct Server {
    folder: TempDir,
    process: Child,
    database: DatabaseConnection,
}

impl Server {
    /// Starts a server. Call it from the test's own thread: the server is killed when the thread that started it ends.
    pub(crate) async fn start() -> Self {
        let programs = programs();
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("a folder in it");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        if fs::metadata(folder.path()).expect("the folder").uid() == 0 {
            chown(&data, Some(NOBODY), Some(NOBODY)).expect("a folder of the unprivileged user");
        }
        let init = command(&programs.join("initdb"), &data)
            .args([
                "--pgdata=.",
                "--username=hearth",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            .output()
            .expect("initdb starts");
        assert!(
            init.status.success(),
            "{}{}",
            String::from_utf8_lossy(&init.stdout),
            String::from_utf8_lossy(&init.stderr)
        );
        let process = command(&programs.join("postgres"), &data)
            .args(["-D", ".", "-k", ".", "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).expect("a log"))
            .spawn()
            .expect("postgres starts");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let database = loop {
            match Database::connect(url(&data, "postgres")).await {
                Ok(database) => break database,
                Err(error) if tokio::time::Instant::now() > deadline => {
                    let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                    panic!("{error}: {log}")
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        };
        Self { folder, process, database }
    }

    /// Creates an empty database.
    pub(crate) async fn create(&self, name: &str) -> Config {
        self.database.execute_unprepared(&format!("CREATE DATABASE \"{name}\"")).await.expect(name);
        Config { url: url(&self.folder.path().join("data"), name) }
    }

    /// Creates an empty database whose tables are in this folder.
    pub(crate) async fn create_on(&self, name: &str, folder: &Path) -> Config {
        let tables = folder.join("tables");
        fs::create_dir(&tables).expect("a folder in it");
        let owner = fs::metadata(self.folder.path().join("data")).expect("the server's folder");
        chown(&tables, Some(owner.uid()), Some(owner.gid())).expect("a folder of the server");
        for sql in [
            format!("CREATE TABLESPACE \"{name}\" LOCATION '{}'", tables.display()),
            format!("CREATE DATABASE \"{name}\" TABLESPACE \"{name}\""),
        ] {
            self.database.execute_unprepared(&sql).await.expect(&sql);
        }
        Config { url: url(&self.folder.path().join("data"), name) }
    }

    /// Returns the ids of the processes that serve a store's connections to a database.
    pub(crate) async fn connections(&self, name: &str) -> BTreeSet<i32> {
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'hearth'");
        let rows = self.database.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
        rows.expect("a read").iter().map(|row| row.try_get("", "pid").expect("a number")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // With this signal the server cleans up after itself, including shared memory.
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.process.id()).expect("a process id")) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let _ = self.process.wait();
    }
}

/// Returns a command that runs as an unprivileged user if this is root. It is killed when the thread that starts it
/// ends.
fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if rustix::process::getuid().is_root() {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    command.args(["--pdeathsig=QUIT", "--"]).arg(program).current_dir(folder).env_remove("PGDATA");
    command
}

fn url(folder: &Path, database: &str) -> String {
    format!("postgres://hearth@localhost/{database}?host={}", folder.display())
}

/// Returns the folder of the newest version's programs. Debian has a folder for each version.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    let newest = newest.expect("Debian's package `postgresql` is installed (scripts/packages.sh test)");
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}

/// Two control roles would kill each other's sandboxes. Operators' commands can use the database beside one.
pub(crate) async fn one_control_role_claims_a_database(server: &Server) {
    let (config, other) = (server.create("claimed").await, server.create("other").await);
    let first = Store::open_exclusive(&config).await.expect("the database is unclaimed");
    let error = Store::open_exclusive(&config).await.map(drop).expect_err("claimed");
    assert!(matches!(error, hearth_store::Error::Claimed { .. }), "{error}");
    let command = Store::open(&config).await.expect("a database that another process claims");
    assert_eq!(command.teams().await.expect("a read"), []);
    command.close().await;
    Store::open_exclusive(&other).await.expect("another database").close().await;
    first.close().await;
    Store::open_exclusive(&config).await.expect("the claim was released").close().await;
}

#[tokio::test]
async fn an_unreachable_server_is_reported_immediately_without_its_password() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    // The port is closed from now on.
    drop(listener);
    for url in [
        format!("postgres://hearth:hunter2@localhost/hearth?host={}", folder.path().display()),
        format!("postgres://hearth:hunter2@{address}/hearth"),
    ] {
        let config = Config { url };
        let opening = tokio::time::timeout(Duration::from_secs(5), Store::open(&config));
        let error = opening.await.expect("no timeout").map(drop).expect_err("the port is closed");
        assert!(matches!(error, hearth_store::Error::Open { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(!cause.contains("pool"), "{cause}");
    }
}
