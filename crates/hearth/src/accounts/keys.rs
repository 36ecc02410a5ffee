//! `hearth key`: API keys of teams.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use hearth_store::{ApiKey, KeySecret, Store, User};
use hearth_types::ApiKeyId;
use serde::Serialize;

use super::{find_team, print_json, table};

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum KeyCommand {
    /// Create an API key of a team, and print it; it cannot be printed again
    Create {
        /// Slug of the team
        team: String,
        /// Name of the key, for people
        #[arg(long, default_value = "command line")]
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the API keys of a team, masked
    List {
        /// Slug of the team
        team: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke an API key of a team
    Revoke {
        /// Slug of the team
        team: String,
        /// ID of the key, from `hearth key list`
        id: ApiKeyId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// API key as `--json` prints it.
#[derive(Serialize)]
struct KeyOutput {
    id: String,
    name: String,
    masked: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    created_at: String,
    created_by: Option<String>,
    last_used_at: Option<String>,
}

impl KeyOutput {
    fn new(key: ApiKey, user: Option<User>, secret: Option<&KeySecret>) -> Self {
        let hidden = "…";
        Self {
            id: key.id.to_string(),
            name: key.name,
            masked: format!("{}{}{hidden}{}", key.mask.prefix, key.mask.masked_prefix, key.mask.masked_suffix),
            key: secret.map(|secret| secret.expose().to_owned()),
            created_at: key.created_at.to_string(),
            created_by: user.map(|user| user.email),
            last_used_at: key.last_used_at.map(|at| at.to_string()),
        }
    }
}

pub(super) async fn execute(store: &Store, command: KeyCommand, out: &mut impl Write) -> Result<()> {
    match command {
        KeyCommand::Create { team, name, json } => {
            let team = find_team(store, &team).await?;
            let secret = KeySecret::generate();
            let key = store.create_api_key(team.id, &name, &secret).await.context("creating the key")?;
            if json {
                return print_json(out, &KeyOutput::new(key, None, Some(&secret)));
            }
            // Nothing else on the line, so that a shell can assign the output to a variable.
            writeln!(out, "{}", secret.expose())?;
            Ok(())
        }
        KeyCommand::List { team, json } => {
            let team = find_team(store, &team).await?;
            let keys = store.api_keys(team.id).await?.into_iter();
            let keys: Vec<KeyOutput> = keys.map(|(key, user)| KeyOutput::new(key, user, None)).collect();
            if json { print_json(out, &keys) } else { print(out, &keys) }
        }
        KeyCommand::Revoke { team, id, json } => {
            let found = find_team(store, &team).await?;
            let revoked = store.delete_api_key(found.id, id).await?;
            ensure!(revoked, "the team `{team}` has no key {id}: `hearth key list {team}` prints its keys");
            if json { print_json(out, &serde_json::json!({"revoked": id.to_string()})) } else { Ok(()) }
        }
    }
}

fn print(out: &mut impl Write, keys: &[KeyOutput]) -> Result<()> {
    let rows: Vec<[String; 6]> = keys
        .iter()
        .map(|key| {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let (created_by, last_used) = (or_dash(&key.created_by), or_dash(&key.last_used_at));
            [key.id.clone(), key.name.clone(), key.masked.clone(), key.created_at.clone(), created_by, last_used]
        })
        .collect();
    table::write(out, ["ID", "NAME", "KEY", "CREATED", "BY", "LAST USED"], &rows)
}
