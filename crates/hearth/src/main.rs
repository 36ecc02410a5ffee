//! The `hearth` binary: configuration, start and shutdown of all roles, and the command line.
//!
//! - [`cli`], [`options`]: the command line, and the effective configuration.
//! - [`domain`], [`tls`], [`domain_server`]: the domain, its certificate, and the port that routes requests by host
//!   name.
//! - [`setup`] prepares the host and the base template; [`up`] starts all roles on it; [`banner`] creates a first
//!   sandbox as proof that the instance works. [`templates`] prepares the other templates meanwhile; [`bundle`] carries
//!   their inputs to machines without network.
//! - [`handover`] passes the listening sockets on when the daemon restarts in place; [`restart`] requests that.
//! - [`accounts`] manages teams, keys and users, with or without a running daemon.
//! - [`doctor`] checks the host; [`endpoints`] publishes the addresses that SDKs connect to.
//!
//! Only this crate reads the environment or a configuration file; every other crate gets its `Config` by value.

#![forbid(unsafe_code)]

mod accounts;
mod banner;
mod bundle;
mod cli;
mod doctor;
mod domain;
mod domain_server;
mod endpoints;
mod first_team;
mod guest_programs;
mod handover;
mod layout;
mod options;
mod progress;
mod restart;
mod setup;
mod telemetry;
mod templates;
mod tls;
mod up;

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use cli::{Addressing, Cli, Command, DocumentFormat};
use endpoints::Endpoints;
use layout::Layout;
use options::{Environment, Options, Selection, Settings, variables};
use tls::trust::TrustStore;

/// Allocator of the process: jemalloc.
///
/// A request through the edge makes about thirty allocations (buffers, header tables). The system's allocator takes a
/// twelfth of the edge's time for them; jemalloc takes half of that, and returns the memory of a burst to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hearth: {}", error_chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Formats the error and its causes on one line.
fn error_chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn run(cli: Cli) -> Result<ExitCode> {
    // These commands need no configuration: they work even when it is invalid.
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
    let environment = Environment::current();
    let file = Options::from_file(cli.config.as_deref(), &environment)?;
    let settings = Settings::from_options(cli.options, file, &environment)?;
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
        Command::Setup { only, force, bundle } => {
            telemetry::init(&settings)?;
            let templates = if only.is_empty() { settings.templates.clone() } else { Selection::only(&only)? };
            let setup = setup::Setup { templates, force, bundle: bundle.as_deref() };
            runtime()?.block_on(until_interrupted(setup::run(&settings, setup)))?;
        }
        Command::Bundle { file } => {
            telemetry::init(&settings)?;
            runtime()?.block_on(until_interrupted(bundle::write(&settings, &file)))?;
        }
        Command::Up { no_first_sandbox, bundle } => {
            telemetry::init(&settings)?;
            let runtime = runtime()?;
            let successor = runtime.block_on(up::run(settings, bundle.as_deref(), !no_first_sandbox))?;
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

/// Runs a command until it ends, or drops it at Ctrl-C or SIGTERM, which also kills its child processes.
async fn until_interrupted(command: impl Future<Output = Result<()>>) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = command => result,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; the next run continues from here"),
        _ = terminate.recv() => anyhow::bail!("terminated; the next run continues from here"),
    }
}

fn print_document(format: DocumentFormat) -> Result<()> {
    let text = match format {
        DocumentFormat::Yaml => hearth_api::openapi_yaml(),
        DocumentFormat::Json => hearth_api::openapi_json(),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.trim_end().as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .context("printing the OpenAPI document")
}

fn print_config(settings: &Settings, json: bool) -> Result<()> {
    let redacted = settings.redacted();
    if json {
        println!("{}", serde_json::to_string_pretty(&redacted.options)?);
        if let Some(note) = redacted.note() {
            eprintln!("hearth: {note}");
        }
    } else {
        print!("{redacted}");
    }
    Ok(())
}

fn print_env(settings: &Settings, by: Option<Addressing>, json: bool) -> Result<()> {
    let endpoints = Endpoints::load(&Layout::new(&settings.data_dir), settings)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&endpoints)?);
    } else {
        let by = match by {
            Some(by) => by,
            None => runtime()?.block_on(endpoints.preferred_addressing()),
        };
        println!("{}", endpoints.exports(by)?);
    }
    Ok(())
}

/// Runs `hearth tls`: exports, trusts or untrusts the certificate authority of the configured domain.
fn on_authority(settings: &Settings, command: cli::TlsCommand) -> Result<()> {
    if settings.tls_files.is_some() {
        bail!("this instance uses the certificate of --tls-cert: it has no certificate authority of its own");
    }
    if let Some(acme) = &settings.acme {
        bail!("this instance uses certificates from {}: it has no certificate authority of its own", acme.directory);
    }
    // The port does not matter: an authority is for a host name.
    let domain = settings.domain_at(Some(0)).context("a domain")?;
    let host = domain.host();
    if let cli::TlsCommand::Untrust = command {
        match TrustStore::of_this_host()?.untrust(host)? {
            Some(path) => println!("Removed {}: this host no longer trusts the authority for {host}.", path.display()),
            None => println!("Nothing to remove: this host does not trust an authority for {host}."),
        }
        return Ok(());
    }
    let path = tls::TrustFiles::of(&Layout::new(&settings.data_dir), &domain).ca;
    let certificate = tls::authority::read_certificate(&path)?.with_context(|| {
        format!("{} does not exist: start `hearth up` once, which creates it, or pass --data-dir", path.display())
    })?;
    match command {
        cli::TlsCommand::Export { file: None } => print!("{certificate}"),
        cli::TlsCommand::Export { file: Some(file) } => {
            fs::write(&file, certificate).with_context(|| format!("writing {}", file.display()))?;
        }
        cli::TlsCommand::Trust | cli::TlsCommand::Untrust => {
            let added = TrustStore::of_this_host()?.trust(host, &certificate)?;
            println!("Added {}: this host now trusts the authority, which is valid for {host} only.", added.display());
            println!(
                "Node.js and Python use their own lists of authorities: `hearth env` prints the variables for them."
            );
        }
    }
    Ok(())
}
