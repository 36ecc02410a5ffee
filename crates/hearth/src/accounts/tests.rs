//! Tests of the commands as an operator types them, while another process has the database open.

use clap::Parser as _;
use hearth_store::{Config, KeySecret, Standing};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::cli::{Cli, Command as Typed};

struct Operator {
    _folder: TempDir,
    store: Store,
    /// Connection of another process, such as the daemon.
    other: Store,
}

impl Operator {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::sqlite(&folder.path().join("hearth.db")).expect("UTF-8");
        let (store, other) = (Store::open(&config).await.expect("opens"), Store::open(&config).await.expect("opens"));
        Self { _folder: folder, store, other }
    }

    async fn try_type(&self, line: &str) -> Result<String> {
        // As in a URL, `%20` stands for a space within an argument.
        let words = line.split_whitespace().map(|word| word.replace("%20", " "));
        let command = match Cli::try_parse_from(std::iter::once("hearth".to_owned()).chain(words))?.command {
            Typed::Team(command) => command.into(),
            Typed::Key(command) => command.into(),
            Typed::User(command) => command.into(),
            other => anyhow::bail!("{other:?}"),
        };
        let mut out = Vec::new();
        execute(&self.store, command, &mut out).await?;
        Ok(String::from_utf8(out)?)
    }

    async fn types(&self, line: &str) -> String {
        self.try_type(line).await.unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.types(&format!("{line} --json")).await).expect("JSON")
    }

    async fn rejects(&self, line: &str, message: &str) {
        let error = format!("{:#}", self.try_type(line).await.expect_err(line));
        assert!(error.contains(message), "{line}: {error}");
    }
}

#[tokio::test]
async fn team_commands_change_the_database() {
    let operator = Operator::start().await;
    let made = operator.json("team create alpha --name The%20A --sandboxes 7 --hours 3").await;
    assert_eq!((&made["slug"], &made["name"], &made["standing"]), (&"alpha".into(), &"The A".into(), &"active".into()));
    assert_eq!((&made["sandboxes_max"], &made["sandbox_seconds_max"]), (&7.into(), &10_800.into()));
    assert!(operator.types("team create beta").await.contains("hearth key create beta"));
    operator.rejects("team create alpha", "a team `alpha` already").await;
    operator.rejects("team create A", "a-z, 0-9").await;
    let changed = operator.json("team limits alpha --vcpus 16 --memory-mib 4096 --builds 2").await;
    assert_eq!((&changed["sandboxes_max"], &changed["vcpus_max"]), (&7.into(), &16.into()));
    let team = operator.other.team_by_slug("alpha").await.expect("reads").expect("it exists");
    assert_eq!((team.limits.vcpus_max, team.limits.memory_mib_max, team.limits.builds_max), (16, 4096, 2));
    operator.rejects("team limits alpha --hours 0", "hearth team block").await;
    operator.rejects("team limits gamma", "no team `gamma`").await;
    for (line, standing) in [
        ("team block alpha --reason unpaid%20bill", Standing::Blocked { reason: "unpaid bill".to_owned() }),
        ("team ban alpha", Standing::Banned { reason: String::new() }),
        ("team reinstate alpha", Standing::Active),
    ] {
        operator.types(line).await;
        let team = operator.other.team_by_slug("alpha").await.expect("reads").expect("it exists");
        assert_eq!(team.standing, standing, "{line}");
    }
    operator.rejects("team block alpha", "--reason").await;
    let list = operator.types("team list").await;
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.starts_with("SLUG"), "{list}");
}

#[tokio::test]
async fn key_commands_change_the_database() {
    let operator = Operator::start().await;
    operator.types("team create alpha").await;
    operator.types("team create beta").await;
    let typed = operator.types("key create alpha --name laptop").await;
    let secret: KeySecret = typed.trim_end().parse().expect("a key alone on its line");
    let (team, key) = operator.other.authenticate(&secret.hash()).await.expect("reads").expect("valid");
    assert_eq!((team.slug.as_str(), key.name.as_str()), ("alpha", "laptop"));
    let list = operator.json("key list alpha").await;
    assert_eq!((&list[0]["name"], &list[0]["last_used_at"]), (&"laptop".into(), &Value::Null));
    assert!(!list.to_string().contains(secret.expose()), "`key list` must not print keys");
    assert!(operator.types("key list alpha").await.contains("laptop"));
    operator.rejects(&format!("key revoke beta {}", key.id), "has no key").await;
    operator.rejects("key revoke alpha x", "UUID").await;
    operator.types(&format!("key revoke alpha {}", key.id)).await;
    assert!(operator.other.authenticate(&secret.hash()).await.expect("reads").is_none());
    let made = operator.json("key create beta").await;
    assert!(made["key"].as_str().expect("a key").parse::<KeySecret>().is_ok());
}

#[tokio::test]
async fn user_commands_change_the_database() {
    let operator = Operator::start().await;
    operator.rejects("user create ada@example.com --team alpha", "no team `alpha`").await;
    operator.types("team create alpha").await;
    operator.types("team create beta").await;
    let ada = operator.json("user create ada@example.com --subject auth0|1 --team alpha --team beta").await;
    assert_eq!((&ada["subject"], &ada["default_team"]), (&"auth0|1".into(), &"alpha".into()));
    operator.rejects("user create ada@example.com", "already").await;
    let ada = operator.json("user join ada@example.com beta --default").await;
    assert_eq!((&ada["teams"], &ada["default_team"]), (&serde_json::json!(["alpha", "beta"]), &"beta".into()));
    assert!(operator.types("user list").await.contains("alpha beta*"));
    operator.types("user leave ada@example.com beta").await;
    operator.rejects("user leave ada@example.com beta", "not a member").await;
    operator.rejects("user join bob@example.com beta", "no user").await;
    operator.types("user delete ada@example.com").await;
    assert_eq!(operator.json("user list").await, serde_json::json!([]));
}

#[tokio::test]
async fn password_commands_change_the_database() {
    let operator = Operator::start().await;
    operator.types("user create ada@example.com").await;
    assert_eq!(operator.json("user list").await[0]["has_password"], false);
    let password = operator.types("user password ada@example.com --generate").await;
    let is_theirs = async |password: &str| {
        let found = operator.other.password_by_email("ada@example.com").await.expect("reads");
        found.is_some_and(|(_, hash)| hash.verify(&hearth_types::Secret::new(password)))
    };
    assert!(is_theirs(password.trim_end()).await, "the password is not alone on its line");
    let made = operator.json("user password ada@example.com --generate").await;
    assert!(is_theirs(made["password"].as_str().expect("a password")).await);
    assert!(!is_theirs(password.trim_end()).await);
    let list = operator.json("user list").await;
    assert_eq!(
        (&list[0]["has_password"], &list[0]["password"]),
        (&true.into(), &Value::Null),
        "`user list` must not print passwords"
    );
    assert_eq!(operator.json("user password ada@example.com --remove").await["has_password"], false);
    assert!(operator.other.password_by_email("ada@example.com").await.expect("reads").is_none());
    operator.rejects("user password bob@example.com --generate", "no user").await;
    operator.rejects("user password ada@example.com --generate --remove", "cannot be used with").await;
}
