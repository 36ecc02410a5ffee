//! `hearth team`, `hearth key`, `hearth user`: what an operator does to accounts.
//!
//! They change the rows themselves, so they work whether a daemon runs or not; a daemon reads who may do what with each
//! request, so what they change holds at once. Sandboxes that run go on: end them with `POST /admin/teams/ID/sandboxes/kill`.

mod keys;
mod password;
mod table;
mod teams;
mod users;

use std::io::Write;

use anyhow::{Context, Result};
use hearth_store::{Store, Team};

pub(crate) use keys::KeyCommand;
pub(crate) use teams::TeamCommand;
pub(crate) use users::UserCommand;

use crate::layout::Layout;
use crate::options::Settings;

/// What an operator asked for.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Team(TeamCommand),
    Key(KeyCommand),
    User(UserCommand),
}

impl From<TeamCommand> for Command {
    fn from(command: TeamCommand) -> Self {
        Self::Team(command)
    }
}

impl From<KeyCommand> for Command {
    fn from(command: KeyCommand) -> Self {
        Self::Key(command)
    }
}

impl From<UserCommand> for Command {
    fn from(command: UserCommand) -> Self {
        Self::User(command)
    }
}

/// Does it, and prints what came of it.
pub(crate) async fn run(settings: &Settings, command: Command) -> Result<()> {
    let layout = Layout::new(&settings.data_dir);
    // Rows that are elsewhere need no folder here, which may be another user's.
    if settings.database_url.is_none() {
        layout.ensure()?;
    }
    let store = Store::open(&settings.store(&layout.database())?).await.context(
        "the rows cannot be reached: run this as the user who runs Hearth, with the same --data-dir or --database-url",
    )?;
    let outcome = execute(&store, command, &mut std::io::stdout()).await;
    store.close().await;
    outcome
}

async fn execute(store: &Store, command: Command, out: &mut impl Write) -> Result<()> {
    match command {
        Command::Team(command) => teams::execute(store, command, out).await,
        Command::Key(command) => keys::execute(store, command, out).await,
        Command::User(command) => users::execute(store, command, out).await,
    }
}

/// The team with a slug.
async fn find_team(store: &Store, slug: &str) -> Result<Team> {
    let found = store.team_by_slug(slug).await?;
    found.with_context(|| format!("there is no team `{slug}`: `hearth team list` shows all"))
}

fn print_json(out: &mut impl Write, value: &impl serde::Serialize) -> Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}

#[cfg(test)]
mod tests;
