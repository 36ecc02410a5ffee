//! The command line.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::accounts::{KeyCommand, TeamCommand, UserCommand};
use crate::options::Options;

/// Computers for AI agents: a self-hosted, E2B-compatible sandbox platform.
#[derive(Debug, Parser)]
#[command(
    name = "hearth",
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILT_FROM_COMMIT"), ")"),
    propagate_version = true,
    after_help = "Start with `hearth up`, then paste what `hearth env` prints into the shell of your agent. \
                  `hearth doctor` tells what this host lacks.\n\n\
                  Every option can be set by its flag, by its variable or in the configuration file, \
                  /etc/hearth/hearth.toml as root and hearth/hearth.toml in the XDG configuration folder otherwise; \
                  the key in the file is the flag's name with underscores."
)]
pub(crate) struct Cli {
    /// The configuration file, in TOML
    #[arg(long, env = "HEARTH_CONFIG", global = true, value_name = "FILE", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Start everything in the foreground: API, edge and this host as a node
    Up {
        /// Do not create a first sandbox to show that all works
        #[arg(long)]
        no_first_sandbox: bool,
    },
    /// Have the running daemon start again, as the program that is on the disk now: it keeps its listening sockets, so that
    /// clients wait a moment and are not refused; sandboxes end
    Restart,
    /// Prepare the guest kernel and the `base` template; goes on where it was interrupted
    Setup {
        /// Throw away what is there and make it again
        #[arg(long)]
        force: bool,
    },
    /// Print the exports that let SDKs find this instance
    Env {
        /// How they find it [default: by names where these lead here, by addresses otherwise]
        #[arg(long, value_name = "HOW")]
        by: Option<By>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at everything this host needs; the exit status says whether sandboxes can run
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// The certificate authority of this instance, which clients of its names have to trust
    Tls {
        #[command(subcommand)]
        command: Tls,
    },
    /// Print the effective configuration without passwords, as a file that says the same
    Config {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Look after teams, their limits and their standing
    #[command(subcommand)]
    Team(TeamCommand),
    /// Look after API keys of teams
    #[command(subcommand)]
    Key(KeyCommand),
    /// Look after users, and which teams they may act for
    #[command(subcommand)]
    User(UserCommand),
    /// Print the OpenAPI document of the control plane, which an instance also serves at /openapi.yaml and /openapi.json
    Openapi {
        /// In which form
        #[arg(long, value_name = "FORM", default_value = "yaml")]
        format: Form,
    },
    /// Print a completion script for a shell: `hearth completion bash > /etc/bash_completion.d/hearth`
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// How SDKs find an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// Over TLS, by names below the domain: all that SDKs can do works
    Names,
    /// In clear, by two addresses: without signed URLs and hosts of ports
    Addresses,
}

/// A form of the OpenAPI document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people
    Yaml,
    /// For programs that do not read YAML
    Json,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Tls {
    /// Write the authority's certificate, for clients on other machines
    Export {
        /// Where to [default: the standard output]
        file: Option<PathBuf>,
    },
    /// Make this host trust the authority: adds it to /usr/local/share/ca-certificates and runs update-ca-certificates, as root
    Trust,
    /// Make this host trust the authority no longer
    Untrust,
}

impl Cli {
    /// The variables that mean something.
    pub(crate) fn known_variables() -> Vec<String> {
        let command = Self::command();
        let names = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
        names.collect()
    }

    /// Writes the completion script.
    pub(crate) fn complete(shell: Shell) {
        clap_complete::generate(shell, &mut Self::command(), "hearth", &mut std::io::stdout());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_option_has_a_variable_of_its_name() {
        let command = Cli::command();
        let options =
            command.get_arguments().filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"));
        for option in options {
            let name = option.get_long().expect("a long flag");
            let variable = option.get_env().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            assert_eq!(variable, format!("HEARTH_{}", name.to_uppercase().replace('-', "_")), "--{name}");
        }
    }
}
