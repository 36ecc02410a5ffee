//! `hearth team`: teams, their limits and their standing.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{Args, Subcommand};
use hearth_store::{Limits, NewTeam, Standing, Store, Team};
use serde::Serialize;

use super::{find_team, print_json, table};

const HOUR: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum TeamCommand {
    /// Create a team
    Create {
        /// Slug of the team, also the namespace of its templates: a-z, 0-9, `-` and `_`
        slug: String,
        /// Name of the team, for people [default: the slug]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        limits: LimitArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print all teams
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change the limits of a team; without options, print them
    Limits {
        /// Slug of the team
        slug: String,
        #[command(flatten)]
        limits: LimitArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Block a team: it can only read and delete
    Block {
        /// Slug of the team
        slug: String,
        /// Reason, shown to the team in error messages
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Ban a team: all its requests are rejected
    Ban {
        /// Slug of the team
        slug: String,
        /// Reason, shown to the team in error messages
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a blocked or banned team active again
    Reinstate {
        /// Slug of the team
        slug: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Limits to set; the others are not changed.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LimitArgs {
    /// Maximum number of concurrent sandboxes
    #[arg(long, value_name = "NUMBER")]
    sandboxes: Option<u32>,
    /// Maximum lifetime of a sandbox, in hours; 24 for a new team
    #[arg(long, value_name = "NUMBER")]
    hours: Option<u32>,
    /// Maximum number of virtual CPUs of one sandbox
    #[arg(long, value_name = "NUMBER")]
    vcpus: Option<u32>,
    /// Maximum memory of one sandbox, in MiB
    #[arg(long, value_name = "NUMBER")]
    memory_mib: Option<u32>,
    /// Maximum number of concurrent template builds
    #[arg(long, value_name = "NUMBER")]
    builds: Option<u32>,
}

impl LimitArgs {
    fn over(&self, limits: Limits) -> Result<Limits> {
        ensure!(self.hours != Some(0), "--hours 0 would allow no sandbox: use `hearth team block`");
        Ok(Limits {
            sandboxes_max: self.sandboxes.unwrap_or(limits.sandboxes_max),
            sandbox_length_max: self.hours.map_or(limits.sandbox_length_max, |hours| HOUR * hours),
            vcpus_max: self.vcpus.unwrap_or(limits.vcpus_max),
            memory_mib_max: self.memory_mib.unwrap_or(limits.memory_mib_max),
            builds_max: self.builds.unwrap_or(limits.builds_max),
        })
    }
}

/// Team as `--json` prints it.
#[derive(Serialize)]
struct TeamOutput {
    id: String,
    slug: String,
    name: String,
    standing: &'static str,
    reason: Option<String>,
    sandboxes_max: u32,
    sandbox_seconds_max: u64,
    vcpus_max: u32,
    memory_mib_max: u32,
    builds_max: u32,
}

impl From<Team> for TeamOutput {
    fn from(team: Team) -> Self {
        let Team { id, slug, name, limits, standing } = team;
        let Limits { sandboxes_max, sandbox_length_max, vcpus_max, memory_mib_max, builds_max } = limits;
        let (standing, reason) = match standing {
            Standing::Active => ("active", None),
            Standing::Blocked { reason } => ("blocked", Some(reason)),
            Standing::Banned { reason } => ("banned", Some(reason)),
        };
        Self {
            id: id.to_string(),
            slug,
            name,
            standing,
            reason,
            sandboxes_max,
            sandbox_seconds_max: sandbox_length_max.as_secs(),
            vcpus_max,
            memory_mib_max,
            builds_max,
        }
    }
}

pub(super) async fn execute(store: &Store, command: TeamCommand, out: &mut impl Write) -> Result<()> {
    match command {
        TeamCommand::Create { slug, name, limits, json } => {
            let limits = limits.over(Limits::STANDARD)?;
            let name = name.unwrap_or_else(|| slug.clone());
            let team = store.create_team(NewTeam { slug, name, limits }).await?;
            if !json {
                writeln!(out, "Created. `hearth key create {}` creates an API key for it.", team.slug)?;
            }
            show(out, team, json)
        }
        TeamCommand::List { json } => {
            let teams: Vec<TeamOutput> = store.teams().await?.into_iter().map(TeamOutput::from).collect();
            if json { print_json(out, &teams) } else { print(out, &teams) }
        }
        TeamCommand::Limits { slug, limits, json } => {
            let team = find_team(store, &slug).await?;
            let changed = limits.over(team.limits)?;
            if changed != team.limits && !store.set_team_limits(team.id, changed).await? {
                bail!("the team `{slug}` was deleted");
            }
            show(out, Team { limits: changed, ..team }, json)
        }
        TeamCommand::Block { slug, reason, json } => {
            set_standing(store, &slug, Standing::Blocked { reason }, json, out).await
        }
        TeamCommand::Ban { slug, reason, json } => {
            set_standing(store, &slug, Standing::Banned { reason }, json, out).await
        }
        TeamCommand::Reinstate { slug, json } => set_standing(store, &slug, Standing::Active, json, out).await,
    }
}

async fn set_standing(store: &Store, slug: &str, standing: Standing, json: bool, out: &mut impl Write) -> Result<()> {
    let team = find_team(store, slug).await?;
    if !store.set_team_standing(team.id, &standing).await? {
        bail!("the team `{slug}` was deleted");
    }
    show(out, Team { standing, ..team }, json)
}

fn show(out: &mut impl Write, team: Team, json: bool) -> Result<()> {
    let shown = TeamOutput::from(team);
    if json { print_json(out, &shown) } else { print(out, &[shown]) }
}

fn print(out: &mut impl Write, teams: &[TeamOutput]) -> Result<()> {
    let rows: Vec<[String; 9]> = teams.iter().map(row).collect();
    let head = ["SLUG", "NAME", "STANDING", "SANDBOXES", "HOURS", "VCPUS", "MEMORY", "BUILDS", "ID"];
    table::write(out, head, &rows)
}

fn row(team: &TeamOutput) -> [String; 9] {
    let standing = match team.reason.as_deref() {
        None | Some("") => team.standing.to_owned(),
        Some(reason) => format!("{}: {reason}", team.standing),
    };
    [
        team.slug.clone(),
        team.name.clone(),
        standing,
        team.sandboxes_max.to_string(),
        // The database may hold a limit with a fraction of an hour.
        format!("{}", Duration::from_secs(team.sandbox_seconds_max).as_secs_f64() / HOUR.as_secs_f64()),
        team.vcpus_max.to_string(),
        format!("{} MiB", team.memory_mib_max),
        team.builds_max.to_string(),
        team.id.clone(),
    ]
}
