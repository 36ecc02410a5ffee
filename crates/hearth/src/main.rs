//! The one binary: configuration, roles wired together and drained, and the command line.
//!
//! - [`cli`], [`options`]: what can be said, and what is in force.
//! - [`domain`], [`tls`], [`front`]: names, the certificate they are served with, and which name leads where.
//! - [`up`] starts all roles on what [`setup`] made sure of; [`banner`] proves that it works.
//! - [`handover`] passes the listening sockets on when the daemon starts again, which [`restart`] asks for.
//! - [`accounts`] looks after teams, keys and users, whether a daemon runs or not.
//! - [`doctor`] looks at the host; [`endpoints`] tells SDKs where an instance is.
//!
//! Only this crate reads the environment or a configuration file; every room gets its `Config` by value.

#![forbid(unsafe_code)]

mod accounts;
mod banner;
mod cli;
mod doctor;
mod domain;
mod endpoints;
mod first_team;
mod front;
mod guest_programs;
mod handover;
mod layout;
mod options;
mod progress;
mod restart;
mod setup;
mod telemetry;
mod tls;
mod up;

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use cli::{By, Cli, Command, Form};
use endpoints::Endpoints;
use layout::Layout;
use options::{Options, Settings, Surroundings, variables};
use tls::trust::TrustStore;

/// A request through the edge allocates some thirty times, buffers and tables of headers among them, for which the system's
/// allocator takes a twelfth of the edge's time. This one takes half of that, and gives back what a burst took.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    // What depends on no configuration is printed even if that is wrong.
    match cli.command {
        Command::Completion { shell } => {
            Cli::complete(shell);
            return Ok(ExitCode::SUCCESS);
        }
        Command::Openapi { format } => {
            print_document(format)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let present: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    for warning in variables::warnings(&Cli::known_variables(), present.iter().map(String::as_str)) {
        eprintln!("hearth: {warning}");
    }
    let surroundings = Surroundings::here();
    let file = Options::from_file(cli.config.as_deref(), &surroundings)?;
    let settings = Settings::settle(cli.options, file, &surroundings)?;
    match cli.command {
        Command::Completion { .. } | Command::Openapi { .. } => {}
        Command::Config { json } => print_config(&settings, json)?,
        Command::Env { by, json } => print_env(&settings, by, json)?,
        Command::Tls { command } => on_authority(&settings, command)?,
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
            let runtime = runtime()?;
            let successor = runtime.block_on(up::run(settings, !no_first_sandbox))?;
            drop(runtime);
            if let Some(successor) = successor {
                return Err(successor.exec());
            }
        }
        Command::Restart => restart::run(&Layout::new(&settings.data_dir))?,
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

fn print_document(format: Form) -> Result<()> {
    let text = match format {
        Form::Yaml => hearth_api::openapi_yaml(),
        Form::Json => hearth_api::openapi_json(),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.trim_end().as_bytes()).and_then(|()| out.write_all(b"\n")).context("printing the document")
}

fn print_config(settings: &Settings, json: bool) -> Result<()> {
    let shown = settings.shown();
    if json {
        println!("{}", serde_json::to_string_pretty(&shown.options)?);
        if let Some(note) = shown.note() {
            eprintln!("hearth: {note}");
        }
    } else {
        print!("{shown}");
    }
    Ok(())
}

fn print_env(settings: &Settings, by: Option<By>, json: bool) -> Result<()> {
    let endpoints = Endpoints::of(&Layout::new(&settings.data_dir), settings)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&endpoints)?);
    } else {
        let by = match by {
            Some(by) => by,
            None => runtime()?.block_on(endpoints.best_way()),
        };
        println!("{}", endpoints.exports(by)?);
    }
    Ok(())
}

/// `hearth tls`. All of it is about the authority of the domain that is in force.
fn on_authority(settings: &Settings, command: cli::Tls) -> Result<()> {
    if settings.tls_files.is_some() {
        bail!("this instance shows the certificate of --tls-cert: there is no authority of ours to trust");
    }
    if let Some(acme) = &settings.acme {
        bail!("this instance shows certificates of {}: there is no authority of ours to trust", acme.directory);
    }
    // The port does not matter: an authority is for a host.
    let domain = settings.domain_at(Some(0)).context("a domain")?;
    let host = domain.host();
    if let cli::Tls::Untrust = command {
        match TrustStore::of_this_host()?.untrust(host)? {
            Some(path) => println!("Removed {}: this host trusts the authority for {host} no longer.", path.display()),
            None => println!("This host did not trust an authority for {host}."),
        }
        return Ok(());
    }
    let path = tls::TrustFiles::of(&Layout::new(&settings.data_dir), &domain).ca;
    let certificate = tls::authority::read_certificate(&path)?.with_context(|| {
        format!("there is no {} yet: start `hearth up` once, which makes it, or name the --data-dir", path.display())
    })?;
    match command {
        cli::Tls::Export { file: None } => print!("{certificate}"),
        cli::Tls::Export { file: Some(file) } => {
            fs::write(&file, certificate).with_context(|| format!("writing {}", file.display()))?;
        }
        cli::Tls::Trust | cli::Tls::Untrust => {
            let added = TrustStore::of_this_host()?.trust(host, &certificate)?;
            println!("Added {}: this host trusts certificates of it, which are for {host} only.", added.display());
            println!("Node.js and Python keep lists of their own: `hearth env` prints what makes them trust it.");
        }
    }
    Ok(())
}
