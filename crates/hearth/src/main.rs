//! The one binary: configuration, roles wired together and drained, and the command line.
//!
//! - [`cli`], [`options`]: what can be said, and what is in force.
//! - [`up`] starts all roles on what [`setup`] made sure of; [`banner`] proves that it works.
//! - [`accounts`] looks after teams, keys and users, whether a daemon runs or not.
//! - [`doctor`] looks at the host; [`endpoints`] tells SDKs where an instance is.
//!
//! Only this crate reads the environment or a configuration file; every room gets its `Config` by value.

#![forbid(unsafe_code)]

mod accounts;
mod banner;
mod cli;
mod doctor;
mod endpoints;
mod first_team;
mod guest_programs;
mod layout;
mod options;
mod progress;
mod setup;
mod telemetry;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Command};
use endpoints::Endpoints;
use layout::Layout;
use options::{Options, Settings, Surroundings};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hearth: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, each once.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn run(cli: Cli) -> Result<ExitCode> {
    if let Command::Completion { shell } = cli.command {
        Cli::complete(shell);
        return Ok(ExitCode::SUCCESS);
    }
    let present: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    options::unknown_variables(&Cli::known_variables(), present.iter().map(String::as_str))?;
    let surroundings = Surroundings::here();
    let file = Options::from_file(cli.config.as_deref(), &surroundings)?;
    let settings = Settings::settle(cli.options, file, &surroundings)?;
    match cli.command {
        Command::Completion { .. } => {}
        Command::Config { json } => print_config(&settings, json)?,
        Command::Env { json } => print_env(&settings, json)?,
        Command::Doctor { json } => {
            let can_run = runtime()?.block_on(doctor::run(&settings, json))?;
            return Ok(if can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Team(command) => runtime()?.block_on(accounts::run(&settings, command.into()))?,
        Command::Key(command) => runtime()?.block_on(accounts::run(&settings, command.into()))?,
        Command::User(command) => runtime()?.block_on(accounts::run(&settings, command.into()))?,
        Command::Setup { force } => {
            telemetry::init(&settings)?;
            runtime()?.block_on(until_interrupted(setup::run(&settings, force)))?;
        }
        Command::Up { no_first_sandbox } => {
            telemetry::init(&settings)?;
            runtime()?.block_on(up::run(settings, !no_first_sandbox))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Ctrl-C and SIGTERM end a command by dropping it, so that what it started ends with it.
async fn until_interrupted(command: impl Future<Output = Result<()>>) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = command => result,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; the next run goes on from here"),
        _ = terminate.recv() => anyhow::bail!("terminated; the next run goes on from here"),
    }
}

fn print_config(settings: &Settings, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(&settings.to_options())?);
    } else {
        print!("{settings}");
    }
    Ok(())
}

fn print_env(settings: &Settings, json: bool) -> Result<()> {
    let endpoints = Endpoints::of(&Layout::new(&settings.data_dir), settings)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&endpoints)?);
    } else {
        println!("{}", endpoints.exports());
    }
    Ok(())
}
