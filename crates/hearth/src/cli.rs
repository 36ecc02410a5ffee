//! The command line.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::accounts::{KeyCommand, TeamCommand, UserCommand};
use crate::options::{Options, template_names as names};

/// Computers for AI agents: a self-hosted, E2B-compatible sandbox platform.
#[derive(Debug, Parser)]
#[command(
    name = "hearth",
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILT_FROM_COMMIT"), ")"),
    propagate_version = true,
    after_help = "Start with `hearth up`, then paste the output of `hearth env` into the shell of your agent. \
                  `hearth doctor` lists what is missing on this host.\n\n\
                  Every option can be set by its flag, by its environment variable or in the configuration file: \
                  /etc/hearth/hearth.toml as root, otherwise hearth/hearth.toml in the XDG configuration folder. \
                  The key in the file is the flag's name with underscores."
)]
pub(crate) struct Cli {
    /// Configuration file, in TOML
    #[arg(long, env = "HEARTH_CONFIG", global = true, value_name = "FILE", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Start all roles in the foreground: API, edge, and this host as a node
    Up {
        /// Skip the first sandbox, which is created and killed as proof that the instance works
        #[arg(long)]
        no_first_sandbox: bool,
        /// Make missing templates from a file of `hearth bundle`, without network
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
    },
    /// Restart the daemon in place with the binary on disk; listeners stay open
    ///
    /// Clients that connect in the meantime wait and are not refused. Running sandboxes are killed.
    Restart,
    /// Prepare the guest kernel and the selected templates; an interrupted setup continues where it stopped
    Setup {
        /// Template to prepare, besides `base`, instead of those of --templates; can be repeated
        #[arg(long = "template", value_name = "NAME", value_parser = names(), conflicts_with = "templates")]
        only: Vec<String>,
        /// Delete the existing kernel and all templates first
        #[arg(long)]
        force: bool,
        /// Make the templates from a file of `hearth bundle`, without network
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
    },
    /// Write the inputs of the selected templates to a file, for machines without access to a Debian mirror
    ///
    /// `hearth setup --bundle` and `hearth up --bundle` of the same version make the templates from it. The file has
    /// the kernel and the root filesystems, not the snapshots, which depend on the machine.
    Bundle {
        /// File to write; compressed tar (zstd)
        file: PathBuf,
    },
    /// Print the shell exports that point SDKs to this instance
    Env {
        /// Way to address the instance [default: names if they resolve here, otherwise addresses]
        #[arg(long, value_name = "HOW")]
        by: Option<Addressing>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every requirement of this host; exit with status 0 if sandboxes can run, 1 if not
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Manage trust in this instance's certificate authority, which clients of its domain need
    Tls {
        #[command(subcommand)]
        command: TlsCommand,
    },
    /// Print the effective configuration, without passwords, as a configuration file
    Config {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Manage teams, their limits and their standing
    #[command(subcommand)]
    Team(TeamCommand),
    /// Manage API keys of teams
    #[command(subcommand)]
    Key(KeyCommand),
    /// Manage users, their passwords and their team memberships
    #[command(subcommand)]
    User(UserCommand),
    /// Print the OpenAPI document of the REST API, which an instance also serves at /openapi.yaml and /openapi.json
    Openapi {
        /// Format of the document
        #[arg(long, value_name = "FORM", default_value = "yaml")]
        format: DocumentFormat,
    },
    /// Print a completion script for a shell, e.g. `hearth completion bash > /etc/bash_completion.d/hearth`
    Completion {
        /// Shell that runs the script
        shell: Shell,
    },
}

/// Way in which SDKs address an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Addressing {
    /// TLS, by host names below the domain: all features of the SDKs work
    Names,
    /// Plain HTTP, by two addresses: no signed URLs and no host names for ports
    Addresses,
}

/// Format of the OpenAPI document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DocumentFormat {
    /// YAML, easier to read
    Yaml,
    /// JSON, for programs that do not read YAML
    Json,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum TlsCommand {
    /// Write the authority's certificate as PEM, for clients on other machines
    Export {
        /// File to write [default: standard output]
        file: Option<PathBuf>,
    },
    /// Make this host trust the authority (as root)
    ///
    /// Writes its certificate to /usr/local/share/ca-certificates, and runs update-ca-certificates.
    Trust,
    /// Remove the authority from the certificates that this host trusts (as root)
    Untrust,
}

impl Cli {
    /// Returns the names of all environment variables that set an option.
    pub(crate) fn known_variables() -> Vec<String> {
        let command = Self::command();
        let names = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
        names.collect()
    }

    /// Writes the completion script to the standard output.
    pub(crate) fn complete(shell: Shell) {
        clap_complete::generate(shell, &mut Self::command(), "hearth", &mut std::io::stdout());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_accepts_the_definition() {
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
