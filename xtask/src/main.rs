//! Development tasks besides plain cargo commands. CI and the Makefile only call this program.

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
mod kernel_tests;
mod kernels;
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
#[command(name = "xtask", about = "Development tasks of the Hearth repository")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Generate Rust from proto/ into the crates that own it, and spec/openapi.yaml from the API's handlers.
    Codegen {
        /// Compare with the committed files instead of writing them.
        #[arg(long)]
        check: bool,
    },
    /// Write the acceptance checklists of the guest daemon and the code interpreter, with the tests of each line.
    Checklist {
        /// Compare with the committed files instead of writing them.
        #[arg(long)]
        check: bool,
    },
    /// Fuzz the parsers of the guest programs, starting from the inputs in fuzz/corpus.
    Fuzz(fuzz::Selection),
    /// Build the guest programs into target/guest.
    Guest,
    /// Install the language kernels that the code interpreter's tests start.
    Kernels,
    /// Check the workspace against the rules of ARCHITECTURE.md.
    Layers,
    /// Check the language of doc comments, names and user-facing texts.
    Prose,
    /// Install missing system packages of scripts/packages.txt.
    Packages {
        /// Sections of the list to install.
        #[arg(default_values = ["run", "build"])]
        sections: Vec<String>,
    },
    /// Run all static checks: format, layers, language, generated code, checklists, licences, lints.
    Check,
    /// Run all checks and all tests.
    Test,
    /// Run the tests of the language kernels on the host.
    KernelTests,
    /// Run the SDK journeys, Schemathesis, the hostile suite, client frameworks and the soak on private servers.
    SdkTests(sdk::Selection),
    /// Keep sandboxes busy for minutes on a private server, and check for crashes and wrong results.
    Soak(soak::Selection),
    /// Run the samples of README.md with the official SDKs, on a private server.
    Demo(demo::Selection),
    /// Run the benchmark; prints a table and JSON.
    Bench {
        /// Arguments for the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build everything, then execute `hearth up`.
    Up {
        /// Arguments for `hearth up`.
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
        Chore::Kernels => kernels::ensure(&root),
        Chore::Layers => layers::run(&root),
        Chore::Prose => prose::run(&root),
        Chore::Packages { sections } => phases::run(Command::new(root.join("scripts/packages.sh")).args(sections)),
        Chore::Check => check::check(&root, &phases).map(|()| phases.finish("check")),
        Chore::Test => check::test(&root, &phases).map(|()| phases.finish("test")),
        Chore::KernelTests => kernel_tests::test(&root),
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

/// Root folder of the repository: the parent of this crate's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
