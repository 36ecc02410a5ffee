//! `hearth team`.

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
        /// The namespace of its templates: a-z, 0-9, `-` and `_`
        slug: String,
        /// What people call it [default: the slug]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        limits: LimitArgs,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all teams
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Change what a team may use, or show it
    Limits {
        /// The team
        slug: String,
        #[command(flatten)]
        limits: LimitArgs,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a team only read and delete
    Block {
        /// The team
        slug: String,
        /// What it is told
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a team do nothing
    Ban {
        /// The team
        slug: String,
        /// What it is told
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// End a block or a ban
    Reinstate {
        /// The team
        slug: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Limits that are given; the others stay.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LimitArgs {
    /// Sandboxes at the same time
    #[arg(long, value_name = "NUMBER")]
    sandboxes: Option<u32>,
    /// Longest life of a sandbox, in hours; of a new team 24
    #[arg(long, value_name = "NUMBER")]
    hours: Option<u32>,
    /// Virtual CPUs of one sandbox
    #[arg(long, value_name = "NUMBER")]
    vcpus: Option<u32>,
    /// Memory of one sandbox, in MiB
    #[arg(long, value_name = "NUMBER")]
    memory_mib: Option<u32>,
    /// Builds of templates at the same time
    #[arg(long, value_name = "NUMBER")]
    builds: Option<u32>,
}

impl LimitArgs {
    fn over(&self, limits: Limits) -> Result<Limits> {
        ensure!(self.hours != Some(0), "--hours 0 would let no sandbox live: use `hearth team block`");
        Ok(Limits {
            sandboxes_max: self.sandboxes.unwrap_or(limits.sandboxes_max),
            sandbox_length_max: self.hours.map_or(limits.sandbox_length_max, |hours| HOUR * hours),
            vcpus_max: self.vcpus.unwrap_or(limits.vcpus_max),
            memory_mib_max: self.memory_mib.unwrap_or(limits.memory_mib_max),
            builds_max: self.builds.unwrap_or(limits.builds_max),
        })
    }
}

/// A team, for programs.
#[derive(Serialize)]
struct Shown {
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

impl From<Team> for Shown {
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
                writeln!(out, "Created. `hearth key create {}` makes a key for it.", team.slug)?;
            }
            show(out, team, json)
        }
        TeamCommand::List { json } => {
            let teams: Vec<Shown> = store.teams().await?.into_iter().map(Shown::from).collect();
            if json { print_json(out, &teams) } else { print(out, &teams) }
        }
        TeamCommand::Limits { slug, limits, json } => {
            let team = find_team(store, &slug).await?;
            let wanted = limits.over(team.limits)?;
            if wanted != team.limits && !store.set_team_limits(team.id, wanted).await? {
                bail!("the team `{slug}` is gone");
            }
            show(out, Team { limits: wanted, ..team }, json)
        }
        TeamCommand::Block { slug, reason, json } => stand(store, &slug, Standing::Blocked { reason }, json, out).await,
        TeamCommand::Ban { slug, reason, json } => stand(store, &slug, Standing::Banned { reason }, json, out).await,
        TeamCommand::Reinstate { slug, json } => stand(store, &slug, Standing::Active, json, out).await,
    }
}

async fn stand(store: &Store, slug: &str, standing: Standing, json: bool, out: &mut impl Write) -> Result<()> {
    let team = find_team(store, slug).await?;
    if !store.set_team_standing(team.id, &standing).await? {
        bail!("the team `{slug}` is gone");
    }
    show(out, Team { standing, ..team }, json)
}

fn show(out: &mut impl Write, team: Team, json: bool) -> Result<()> {
    let shown = Shown::from(team);
    if json { print_json(out, &shown) } else { print(out, &[shown]) }
}

fn print(out: &mut impl Write, teams: &[Shown]) -> Result<()> {
    let rows: Vec<[String; 9]> = teams.iter().map(row).collect();
    let head = ["SLUG", "NAME", "STANDING", "SANDBOXES", "HOURS", "VCPUS", "MEMORY", "BUILDS", "ID"];
    table::write(out, head, &rows)
}

fn row(team: &Shown) -> [String; 9] {
    let standing = match team.reason.as_deref() {
        None | Some("") => team.standing.to_owned(),
        Some(reason) => format!("{}: {reason}", team.standing),
    };
    [
        team.slug.clone(),
        team.name.clone(),
        standing,
        team.sandboxes_max.to_string(),
        // Others may have set something between whole hours.
        format!("{}", Duration::from_secs(team.sandbox_seconds_max).as_secs_f64() / HOUR.as_secs_f64()),
        team.vcpus_max.to_string(),
        format!("{} MiB", team.memory_mib_max),
        team.builds_max.to_string(),
        team.id.clone(),
    ]
}
