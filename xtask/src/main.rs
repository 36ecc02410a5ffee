//! Every chore besides cargo. CI and the Makefile only call it.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use phases::Phases;

mod check;
mod checklist;
mod codegen;
mod demo;
mod files;
mod frameworks;
mod fuzz;
mod guest;
mod instance;
mod layers;
mod leftovers;
mod phases;
mod prose;
mod python;
mod schema;
mod sdk;
mod soak;
mod tools;
mod up;

#[derive(Parser)]
#[command(name = "xtask", about = "Chores of the Hearth repository")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Generate Rust from proto/ into the crates that own it, and spec/openapi.yaml from the API's handlers.
    Codegen {
        /// Only compare with what is committed.
        #[arg(long)]
        check: bool,
    },
    /// Write which tests prove the guest daemon's acceptance checklist, into docs/envd-checklist.md.
    Checklist {
        /// Only compare with what is committed.
        #[arg(long)]
        check: bool,
    },
    /// Fuzz the guest daemon's doors, from the inputs in fuzz/corpus.
    Fuzz(fuzz::Selection),
    /// Build the programs that go into a guest, into target/guest.
    Guest,
    /// Check the workspace against the rules of ARCHITECTURE.md.
    Layers,
    /// Check the language of doc comments, names and user-facing texts.
    Prose,
    /// Install missing system packages of scripts/packages.txt.
    Packages {
        /// Sections of the list.
        #[arg(default_values = ["run", "build"])]
        sections: Vec<String>,
    },
    /// Everything that is checked without running anything of ours.
    Check,
    /// All checks and all tests.
    Test,
    /// The journeys with the official SDKs, Schemathesis, hostile neighbours and client frameworks, on private servers.
    SdkTests(sdk::Selection),
    /// Busy sandboxes for a long time, on a private server: programs that die, and results that are wrong.
    Soak(soak::Selection),
    /// The samples of README.md with the official SDKs, on a private server.
    Demo(demo::Selection),
    /// Measure, as a table and as JSON.
    Bench {
        /// Given to the benchmark as they are.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build everything, then become `hearth up`.
    Up {
        /// Given to `hearth up` as they are.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    let root = root();
    let phases = Phases::start();
    match chore {
        Chore::Codegen { check } => codegen::run(&root, check),
        Chore::Checklist { check } => checklist::run(&root, check),
        Chore::Fuzz(selection) => fuzz::test(&root, &phases, &selection).map(|()| phases.finish("fuzz")),
        Chore::Guest => guest::run(&root),
        Chore::Layers => layers::run(&root),
        Chore::Prose => prose::run(&root),
        Chore::Packages { sections } => phases::run(Command::new(root.join("scripts/packages.sh")).args(sections)),
        Chore::Check => check::check(&root, &phases).map(|()| phases.finish("check")),
        Chore::Test => check::test(&root, &phases).map(|()| phases.finish("test")),
        Chore::SdkTests(selection) => {
            if !selection.running {
                check::build_all(&root, &phases, selection.build())?;
            }
            sdk::test(&root, &phases, selection.build(), &selection).map(|()| phases.finish("journeys"))
        }
        Chore::Soak(selection) => {
            check::build_all(&root, &phases, selection.build())?;
            soak::test(&root, &phases, &selection).map(|()| phases.finish("soak"))
        }
        Chore::Demo(selection) => {
            check::build_all(&root, &phases, selection.build())?;
            demo::run(&root, &phases, &selection).map(|()| phases.finish("demo"))
        }
        Chore::Bench { arguments } => {
            check::build_all(&root, &phases, check::Build::Dist)?;
            phases.run("benchmark", || check::bench(&root, &arguments))
        }
        Chore::Up { arguments } => {
            check::build_all(&root, &phases, check::Build::Release)?;
            up::run(&root, &arguments)
        }
    }
}

/// The repository's folder: the parent of this crate's.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
