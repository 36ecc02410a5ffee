//! The benchmark: compares an instance with the lower bound of the same artifacts on the same machine.
//!
//! `cargo xtask bench` builds what it needs and runs it. The bound is a VM restored by the driver alone, without API,
//! store, edge or proxies: its first reply, its commands, its transfers. Bound and instance are measured in turns of the
//! same run, so that a machine that slows down affects both.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hearth_testkit::{Instance, PreparedDataDir};

mod bare;
mod density;
mod edge;
mod guest;
mod interpreter;
mod lists;
mod proxies;
mod report;
mod speed;
mod statistics;

use bare::BareDriver;
use report::Report;

/// The allocator of `hearth`, because parts of Hearth are measured in processes of this program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Template of the sections besides that of the code interpreter.
const BASE: &str = "base";

/// Number and size of the measurements in each section.
#[derive(Debug, Clone, Copy)]
struct Rounds {
    creates: usize,
    commands: usize,
    idle_sandboxes: usize,
    idle_seconds: u64,
    guest: guest::Workload,
    lists: lists::Workload,
    proxies: proxies::Workload,
}

const FULL: Rounds = Rounds {
    creates: 30,
    commands: 60,
    idle_sandboxes: 50,
    idle_seconds: 20,
    guest: guest::Workload { commands: 200, starts: 50, transfer_mib: 1024, events: 100_000 },
    lists: lists::Workload { sandboxes: 1000, seconds: 20, timers: 10_000, expiring: 500 },
    proxies: proxies::Workload { requests: 5000, load_turns: 25, stream_mib: 1024, sockets: 2000 },
};
const QUICK: Rounds = Rounds {
    creates: 5,
    commands: 10,
    idle_sandboxes: 5,
    idle_seconds: 3,
    guest: guest::Workload { commands: 20, starts: 5, transfer_mib: 64, events: 9_999 },
    lists: lists::Workload { sandboxes: 50, seconds: 2, timers: 200, expiring: 20 },
    proxies: proxies::Workload { requests: 500, load_turns: 1, stream_mib: 64, sockets: 100 },
};

/// Group of measurements. Sections run in the order of the variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Creates,
    Commands,
    Edge,
    Transfers,
    Density,
    Envd,
    Lists,
    Proxies,
    Interpreter,
}

impl Section {
    /// Returns true if the section measures a whole instance.
    fn needs_instance(self) -> bool {
        !matches!(self, Self::Envd | Self::Lists | Self::Proxies | Self::Interpreter)
    }
}

const SECTIONS: [(&str, Section); 9] = [
    ("creates", Section::Creates),
    ("commands", Section::Commands),
    ("edge", Section::Edge),
    ("transfers", Section::Transfers),
    ("density", Section::Density),
    ("envd", Section::Envd),
    ("lists", Section::Lists),
    ("proxies", Section::Proxies),
    ("interpreter", Section::Interpreter),
];

const USAGE: &str = "usage: hearth-bench [--quick] [--only SECTION]... [--transfer-mib N] [--json FILE] HEARTH_BINARY
sections: creates, commands, edge, transfers, density, envd, lists, proxies, interpreter
--transfer-mib: size of outputs and files in the section envd";

struct Options {
    rounds: Rounds,
    sections: Vec<Section>,
    json: Option<PathBuf>,
    binary: PathBuf,
}

fn options() -> Result<Options> {
    let mut arguments = std::env::args_os().skip(1);
    let (mut rounds, mut sections, mut transfer_mib, mut json, mut binary) = (FULL, Vec::new(), None, None, None);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--quick") => rounds = QUICK,
            Some("--only") => sections.push(section(&arguments.next().context(USAGE)?)?),
            Some("--transfer-mib") => {
                let number = arguments.next().context(USAGE)?;
                transfer_mib = Some(number.to_str().and_then(|text| text.parse().ok()).context(USAGE)?);
            }
            Some("--json") => json = Some(PathBuf::from(arguments.next().context(USAGE)?)),
            Some(option) if option.starts_with("--") => bail!("unknown option {option}\n{USAGE}"),
            _ => binary = Some(PathBuf::from(argument)),
        }
    }
    if sections.is_empty() {
        sections = SECTIONS.map(|(_, section)| section).to_vec();
    }
    // Applied last, because `--quick` may come after `--transfer-mib`.
    rounds.guest.transfer_mib = transfer_mib.unwrap_or(rounds.guest.transfer_mib);
    Ok(Options { rounds, sections, json, binary: binary.context(USAGE)? })
}

fn section(name: &OsStr) -> Result<Section> {
    let found = SECTIONS.iter().find(|(known, _)| *known == name);
    Ok(found.with_context(|| format!("no section {}\n{USAGE}", name.display()))?.1)
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if proxies::run_as_part(&arguments).await? {
        return Ok(());
    }
    let Options { rounds, sections, json, binary } = options()?;
    let prepared = PreparedDataDir::ensure(&binary)?;
    let mut report = Report::default();

    let bare = BareDriver::open(&prepared, BASE).await?;
    let measured = measure(&mut report, &bare, &prepared, &sections, rounds).await;
    bare.close().await;
    let measured = match measured {
        Ok(()) if sections.contains(&Section::Interpreter) => measure_interpreter(&mut report, &binary, rounds).await,
        measured => measured,
    };
    // Printed even if a later measurement failed.
    print!("{report}");
    measured?;
    if let Some(path) = json {
        std::fs::write(&path, report.to_json()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Measures the code interpreter, whose template takes minutes to prepare the first time.
async fn measure_interpreter(report: &mut Report, binary: &Path, rounds: Rounds) -> Result<()> {
    let prepared = PreparedDataDir::ensure_templates(binary, interpreter::PREPARED)?;
    interpreter::measure(report, &prepared, rounds).await
}

async fn measure(
    report: &mut Report,
    bare: &BareDriver,
    prepared: &PreparedDataDir,
    sections: &[Section],
    rounds: Rounds,
) -> Result<()> {
    if sections.iter().any(|section| section.needs_instance()) {
        let instance = Instance::start(prepared, &[]).await?;
        let measured = measure_instance(report, bare, &instance, sections, rounds).await;
        instance.terminate().await?;
        measured?;
    }
    if sections.contains(&Section::Envd) {
        guest::measure(report, bare, &guest_daemon(prepared.binary())?, rounds.guest).await?;
    }
    if sections.contains(&Section::Lists) {
        lists::measure(report, rounds.lists).await?;
    }
    if sections.contains(&Section::Proxies) {
        proxies::measure(report, rounds.proxies).await?;
    }
    Ok(())
}

/// Measures the sections that need an instance.
async fn measure_instance(
    report: &mut Report,
    bare: &BareDriver,
    instance: &Instance,
    sections: &[Section],
    rounds: Rounds,
) -> Result<()> {
    if sections.contains(&Section::Creates) {
        speed::creates(report, bare, instance, rounds).await?;
    }
    if sections.contains(&Section::Commands) {
        speed::commands(report, bare, instance, rounds).await?;
    }
    if sections.contains(&Section::Edge) {
        edge::requests(report, bare, instance, rounds).await?;
    }
    if sections.contains(&Section::Transfers) {
        speed::transfers(report, bare, instance).await?;
    }
    if sections.contains(&Section::Density) {
        density::idle(report, instance, rounds).await?;
    }
    Ok(())
}

/// Returns the path of the guest daemon that the binary was built with, in the same target folder.
fn guest_daemon(binary: &Path) -> Result<PathBuf> {
    let target = binary.ancestors().nth(2).context("the binary is not in a profile folder of a target folder")?;
    Ok(target.join("guest/envd"))
}
