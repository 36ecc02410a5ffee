//! Every chore besides cargo. CI and the Makefile only call it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand};

mod codegen;

#[derive(Parser)]
#[command(name = "xtask", about = "Chores of the Hearth repository")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Generate Rust from proto/ into the crates that own it.
    Codegen {
        /// Only compare with what is committed.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    let root = root();
    match Args::parse().chore {
        Chore::Codegen { check } => codegen::run(&root, check),
    }
}

/// The repository's folder: the parent of this crate's.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
