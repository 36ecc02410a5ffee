//! `hearth user`.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use hearth_store::{NewUser, PasswordHash, Store, User};
use serde::Serialize;

use super::{find_team, password, print_json, table};

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user known
    Create {
        /// Their address
        email: String,
        /// What the identity provider calls them, the claim `sub` of their tokens [default: an ID that is made]
        #[arg(long, value_name = "TEXT")]
        subject: Option<String>,
        /// A team they may act for; may be repeated
        #[arg(long = "team", value_name = "TEAM")]
        teams: Vec<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all users and their teams
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a user act for a team
    Join {
        /// Their address
        email: String,
        /// The team
        team: String,
        /// Make it the team that is meant when none is named
        #[arg(long)]
        default: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a user no longer act for a team
    Leave {
        /// Their address
        email: String,
        /// The team
        team: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a user a password to log in with, and end their logins
    ///
    /// It is asked for, or read from the standard input where that is no terminal.
    Password {
        /// Their address
        email: String,
        /// Make one, and show it this once
        #[arg(long, conflicts_with = "remove")]
        generate: bool,
        /// Take their password away
        #[arg(long)]
        remove: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget a user; keys they made live on
    Delete {
        /// Their address
        email: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// A user, for programs.
#[derive(Serialize)]
struct Shown {
    id: String,
    email: String,
    subject: String,
    teams: Vec<String>,
    default_team: Option<String>,
    has_password: bool,
    /// One that was made just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
}

impl Shown {
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
            // A team that is not there is told before anything is made.
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
                users.push(Shown::of(store, user).await?);
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
                (false, false) => Some(password::ask(&email)?),
            };
            let hash = password.as_ref().map(PasswordHash::of).transpose()?;
            store.set_password(user.id, hash.as_ref()).await?;
            match password.filter(|_| generate) {
                None => show(store, user, json, out).await,
                Some(made) if json => {
                    let shown = Shown { password: Some(made.expose().to_owned()), ..Shown::of(store, user).await? };
                    print_json(out, &shown)
                }
                // Alone on its line, so that a shell can take it.
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
    found.with_context(|| format!("there is no user with the address `{email}`: `hearth user list` shows all"))
}

async fn show(store: &Store, user: User, json: bool, out: &mut impl Write) -> Result<()> {
    let shown = Shown::of(store, user).await?;
    if json { print_json(out, &shown) } else { print(out, &[shown]) }
}

fn print(out: &mut impl Write, users: &[Shown]) -> Result<()> {
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
