//! The benchmark: an instance as users run it, next to the lower bound of the same artifacts on the same machine in the same
//! run. `cargo xtask bench` builds what it needs and calls it.
//!
//! The bound is a VM restored by the bare driver, without API, store, edge or proxies: its first answer, its commands, its
//! transfers. Bound and instance take turns, so that a machine that slows down slows both.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, Result};
use hearth_testkit::{Instance, Prepared};

mod bare;
mod density;
mod edge;
mod report;
mod speed;
mod statistics;

use bare::Bare;
use report::Report;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Rounds {
    creates: usize,
    commands: usize,
    idle_sandboxes: usize,
    idle_seconds: u64,
}

const FULL: Rounds = Rounds { creates: 30, commands: 60, idle_sandboxes: 50, idle_seconds: 20 };
const QUICK: Rounds = Rounds { creates: 5, commands: 10, idle_sandboxes: 5, idle_seconds: 3 };

const USAGE: &str = "usage: hearth-bench [--quick] [--json FILE] HEARTH_BINARY";

struct Options {
    rounds: Rounds,
    json: Option<PathBuf>,
    binary: PathBuf,
}

fn options() -> Result<Options> {
    let mut arguments = std::env::args_os().skip(1);
    let (mut rounds, mut json, mut binary) = (FULL, None, None);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--quick") => rounds = QUICK,
            Some("--json") => json = Some(PathBuf::from(arguments.next().context(USAGE)?)),
            _ => binary = Some(PathBuf::from(argument)),
        }
    }
    Ok(Options { rounds, json, binary: binary.context(USAGE)? })
}

#[tokio::main]
async fn main() -> Result<()> {
    let Options { rounds, json, binary } = options()?;
    let prepared = Prepared::ensure(&binary)?;
    let mut report = Report::default();

    let bare = Bare::open(&prepared).await?;
    let instance = Instance::start(&prepared, &[]).await?;
    let measured = async {
        speed::creates(&mut report, &bare, &instance, rounds).await?;
        speed::commands(&mut report, &bare, &instance, rounds).await?;
        edge::requests(&mut report, &bare, &instance, rounds).await?;
        speed::transfers(&mut report, &bare, &instance).await?;
        density::idle(&mut report, &instance, rounds).await
    }
    .await;
    bare.close().await;
    instance.terminate().await?;
    measured?;

    print!("{report}");
    if let Some(path) = json {
        std::fs::write(&path, report.to_json()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
