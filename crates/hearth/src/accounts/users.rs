//! `hearth user`: users, their passwords and their team memberships.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use hearth_store::{NewUser, PasswordHash, Store, User};
use serde::Serialize;

use super::{find_team, password, print_json, table};

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum UserCommand {
    /// Create a user
    Create {
        /// E-mail address of the user
        email: String,
        /// Subject of the user at the identity provider, the claim `sub` of their tokens [default: a generated ID]
        #[arg(long, value_name = "TEXT")]
        subject: Option<String>,
        /// Slug of a team to join; repeat it for more teams
        #[arg(long = "team", value_name = "TEAM")]
        teams: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print all users and their teams
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a user to a team
    Join {
        /// E-mail address of the user
        email: String,
        /// Slug of the team
        team: String,
        /// Make it the user's default team, for requests that name no team
        #[arg(long)]
        default: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a user from a team
    Leave {
        /// E-mail address of the user
        email: String,
        /// Slug of the team
        team: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set the login password of a user, and revoke their logins
    ///
    /// The password is read from the terminal, or from the first line of the standard input if that is not a terminal.
    Password {
        /// E-mail address of the user
        email: String,
        /// Generate a password, and print it; it cannot be printed again
        #[arg(long, conflicts_with = "remove")]
        generate: bool,
        /// Remove the user's password
        #[arg(long)]
        remove: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a user; API keys that they created stay valid
    Delete {
        /// E-mail address of the user
        email: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// User as `--json` prints it.
#[derive(Serialize)]
struct UserOutput {
    id: String,
    email: String,
    subject: String,
    teams: Vec<String>,
    default_team: Option<String>,
    has_password: bool,
    /// Set only in the reply to `--generate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
}

impl UserOutput {
    async fn of(store: &Store, user: User) -> Result<Self> {
        let memberships = store.memberships(user.id).await?;
        let default = memberships.iter().find(|membership| membership.is_default);
        Ok(Self {
            has_password: store.has_password(user.id).await?,
            password: None,
            id: user.id.to_string(),
            email: user.email,
            subject: user.subject,
            default_team: default.map(|membership| membership.team.slug.clone()),
            teams: memberships.into_iter().map(|membership| membership.team.slug).collect(),
        })
    }
}

pub(super) async fn execute(store: &Store, command: UserCommand, out: &mut impl Write) -> Result<()> {
    match command {
        UserCommand::Create { email, subject, teams, json } => {
            // Find all teams first: a missing team is an error before the user is created.
            let mut found = Vec::new();
            for slug in &teams {
                found.push(find_team(store, slug).await?);
            }
            let user = store.create_user(NewUser { email, subject }).await?;
            for team in found {
                store.join_team(user.id, team.id).await?;
            }
            show(store, user, json, out).await
        }
        UserCommand::List { json } => {
            let mut users = Vec::new();
            for user in store.users().await? {
                users.push(UserOutput::of(store, user).await?);
            }
            if json { print_json(out, &users) } else { print(out, &users) }
        }
        UserCommand::Join { email, team, default, json } => {
            let (user, team) = (find(store, &email).await?, find_team(store, &team).await?);
            store.join_team(user.id, team.id).await?;
            if default {
                store.set_default_team(user.id, team.id).await?;
            }
            show(store, user, json, out).await
        }
        UserCommand::Leave { email, team, json } => {
            let (user, found) = (find(store, &email).await?, find_team(store, &team).await?);
            let left = store.leave_team(user.id, found.id).await?;
            ensure!(left, "{email} is not a member of the team `{team}`");
            show(store, user, json, out).await
        }
        UserCommand::Password { email, generate, remove, json } => {
            let user = find(store, &email).await?;
            let password = match (generate, remove) {
                (true, _) => Some(password::generate()?),
                (false, true) => None,
                (false, false) => Some(password::prompt(&email)?),
            };
            let hash = password.as_ref().map(PasswordHash::of).transpose()?;
            store.set_password(user.id, hash.as_ref()).await?;
            match password.filter(|_| generate) {
                None => show(store, user, json, out).await,
                Some(made) if json => {
                    let shown =
                        UserOutput { password: Some(made.expose().to_owned()), ..UserOutput::of(store, user).await? };
                    print_json(out, &shown)
                }
                // Nothing else on the line, so that a shell can assign the output to a variable.
                Some(made) => Ok(writeln!(out, "{}", made.expose())?),
            }
        }
        UserCommand::Delete { email, json } => {
            let user = find(store, &email).await?;
            store.delete_user(user.id).await?;
            if json { print_json(out, &serde_json::json!({"deleted": user.id.to_string()})) } else { Ok(()) }
        }
    }
}

async fn find(store: &Store, email: &str) -> Result<User> {
    let found = store.user_by_email(email).await?;
    found.with_context(|| format!("there is no user with the address `{email}`: `hearth user list` prints all users"))
}

async fn show(store: &Store, user: User, json: bool, out: &mut impl Write) -> Result<()> {
    let shown = UserOutput::of(store, user).await?;
    if json { print_json(out, &shown) } else { print(out, &[shown]) }
}

fn print(out: &mut impl Write, users: &[UserOutput]) -> Result<()> {
    let rows: Vec<[String; 5]> = users
        .iter()
        .map(|user| {
            let is_default = |team: &String| Some(team) == user.default_team.as_ref();
            let teams = user.teams.iter().map(|team| if is_default(team) { format!("{team}*") } else { team.clone() });
            let teams = teams.collect::<Vec<_>>().join(" ");
            let password = if user.has_password { "yes" } else { "no" }.to_owned();
            [user.email.clone(), teams, password, user.subject.clone(), user.id.clone()]
        })
        .collect();
    table::write(out, ["EMAIL", "TEAMS (* DEFAULT)", "PASSWORD", "SUBJECT", "ID"], &rows)
}
