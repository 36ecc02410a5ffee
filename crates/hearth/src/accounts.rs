//! `hearth team`, `hearth key`, `hearth user`: commands of operators to manage accounts.
//!
//! They change the database directly, so they work with or without a running daemon. The daemon reads permissions from
//! the database at each request, so a change takes effect immediately. Running sandboxes are not affected: kill those
//! of a team with `POST /admin/teams/ID/sandboxes/kill`.

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

/// Account command of the operator.
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

/// Executes the command and prints the result to the standard output.
pub(crate) async fn run(settings: &Settings, command: Command) -> Result<()> {
    let layout = Layout::new(&settings.data_dir);
    // A database elsewhere needs no data directory here, which may belong to another user.
    if settings.database_url.is_none() {
        layout.ensure()?;
    }
    let store = Store::open(&settings.store(&layout.database())?).await.context(
        "cannot open the database: run this as the user who runs Hearth, with the same --data-dir or --database-url",
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

/// Returns the team with this slug.
async fn find_team(store: &Store, slug: &str) -> Result<Team> {
    let found = store.team_by_slug(slug).await?;
    found.with_context(|| format!("there is no team `{slug}`: `hearth team list` prints all teams"))
}

fn print_json(out: &mut impl Write, value: &impl serde::Serialize) -> Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}

#[cfg(test)]
mod tests;
