//! The fuzz targets: built with instrumentation, run side by side on what earlier runs found, told of when they find more.
//!
//! cargo-fuzz wants a nightly compiler for sanitizers. Rust without unsafe code needs coverage only, and that a stable compiler
//! can do: the flags are LLVM's. They need a target folder of their own, and a target that is named, so that build scripts
//! and macros do not get them.

use std::fs::{self, DirEntry, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::phases::{Phases, cargo, run, say};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where all of it is built, and where logs and found inputs are kept.
const BUILT: &str = "target/fuzz";
/// What is committed: a folder of inputs for each target.
const CORPUS: &str = "fuzz/corpus";
/// What LLVM puts into the code, for libFuzzer.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// How long targets run when nobody says.
const SECONDS: u32 = 60;
/// One input may take that long.
const INPUT_SECONDS_MAX: u32 = 10;
/// A target may need that much memory.
const MEMORY_MIB_MAX: u32 = 2048;
/// Longest input. The daemon's own limits are either larger than what a fuzzer tries, or tested by themselves.
const INPUT_BYTES_MAX: u32 = 4096;
/// What is committed is replayed by every test run, so it stays small: the bounds that `hearth-envd` asserts.
const SAVED_FILES_MAX: usize = 200;
const SAVED_BYTES_MAX: u64 = 300_000;
/// How inputs are called that people wrote. They stay, whatever fuzzers find.
const SEED_PREFIX: &str = "seed-";
/// Lines of a log that are shown when a target failed.
const SHOWN_LINES: usize = 40;

/// What is run for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// How long the targets run.
    #[arg(long, default_value_t = SECONDS)]
    seconds: u32,
    /// Only this one.
    #[arg(long)]
    target: Option<Target>,
    /// Keep the inputs that reach most, in fuzz/corpus.
    #[arg(long)]
    save: bool,
}

impl Default for Selection {
    fn default() -> Self {
        Self { seconds: SECONDS, target: None, save: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Frames,
    Multipart,
    Headers,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Multipart => "multipart",
            Self::Headers => "headers",
        }
    }
}

/// Builds the targets and runs them.
pub(crate) fn test(root: &Path, phases: &Phases, selection: &Selection) -> Result<()> {
    phases.run("fuzz targets", || build(root))?;
    let name = format!("fuzzing, {} s", selection.seconds);
    phases.run(&name, || fuzz(root, selection))
}

fn build(root: &Path) -> Result<()> {
    let lock = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"));
    let other = other_versions(&lock("Cargo.lock")?, &lock("fuzz/Cargo.lock")?);
    if !other.is_empty() {
        bail!(
            "fuzz/Cargo.lock has other versions than Cargo.lock: {}. Take those over with `cp Cargo.lock fuzz/ && \
             cargo update --workspace --manifest-path fuzz/Cargo.toml`",
            other.join(", ")
        );
    }
    let mut build = cargo();
    build.current_dir(root).args(["build", "--quiet", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    build.args(["--target-dir", BUILT, "--target", TARGET]);
    run(build.env("RUSTFLAGS", INSTRUMENTATION).env_remove("CARGO_ENCODED_RUSTFLAGS"))
}

/// Packages that both have, and of which the second has a version that the first does not have.
fn other_versions(ours: &str, theirs: &str) -> Vec<String> {
    let ours = packages(ours);
    let differs = |(name, version): &(&str, &str)| {
        let mut same_name = ours.iter().filter(|(ours, _)| ours == name).peekable();
        same_name.peek().is_some() && !same_name.any(|(_, ours)| ours == version)
    };
    packages(theirs).into_iter().filter(differs).map(|(name, version)| format!("{name} {version}")).collect()
}

/// Names and versions of a lock file, which cargo writes in one form only.
fn packages(lock: &str) -> Vec<(&str, &str)> {
    let value = |line: &'static str, package| -> Option<&str> {
        let package: &str = package;
        package.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(" = \"")?.strip_suffix('"'))
    };
    lock.split("[[package]]")
        .filter_map(|package| Some((value("name", package)?, value("version", package)?)))
        .collect()
}

/// A target at work. Dropping it ends it.
struct Running {
    target: Target,
    process: Child,
    corpus: PathBuf,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn fuzz(root: &Path, selection: &Selection) -> Result<()> {
    // What is committed stays as it is: fuzzers write into their corpus.
    let scratch = tempfile::tempdir().context("making a temporary folder")?;
    let targets = Target::value_variants().iter().filter(|target| selection.target.is_none_or(|only| only == **target));
    let mut all = Vec::new();
    for target in targets {
        all.push(start(root, scratch.path(), *target, selection.seconds)?);
    }
    let mut failed = Vec::new();
    for running in &mut all {
        let status = running.process.wait().with_context(|| format!("waiting for {}", running.target.name()))?;
        let log = fs::read(&running.log).with_context(|| format!("reading {}", running.log.display()))?;
        let log = String::from_utf8_lossy(&log);
        // Without a last line it did not do its work, whatever its status says.
        match summary(&log).filter(|_| status.success()) {
            Some(summary) => say(&format!("{}: {summary}", running.target.name())),
            None => {
                show_failure(running, &log);
                failed.push(running.target.name());
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} failed", failed.join(", "));
    }
    if selection.save {
        for running in &all {
            save(root, scratch.path(), running)?;
        }
    }
    Ok(())
}

fn program(root: &Path, target: Target) -> Command {
    let mut program = Command::new(root.join(BUILT).join(TARGET).join("debug").join(target.name()));
    program.arg(format!("-max_len={INPUT_BYTES_MAX}"));
    program.stdin(Stdio::null()).stdout(Stdio::null()).env("RUST_BACKTRACE", "0");
    program
}

fn start(root: &Path, scratch: &Path, target: Target, seconds: u32) -> Result<Running> {
    let name = target.name();
    let corpus = scratch.join(name);
    copy_files(&root.join(CORPUS).join(name), &corpus, |_| true)?;
    let artifacts = root.join(BUILT).join("artifacts").join(name);
    fs::create_dir_all(&artifacts).with_context(|| format!("making {}", artifacts.display()))?;
    let log = root.join(BUILT).join(format!("{name}.log"));
    let file = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut program = program(root, target);
    program.current_dir(scratch).stderr(file).arg(&corpus).args([
        format!("-max_total_time={seconds}"),
        format!("-timeout={INPUT_SECONDS_MAX}"),
        format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
        format!("-artifact_prefix={}/", artifacts.display()),
    ]);
    let process = program.spawn().with_context(|| format!("starting the target {name}"))?;
    Ok(Running { target, process, corpus, log })
}

/// How far a run came: what was reached by the inputs that it began with, and in the end.
fn summary(log: &str) -> Option<String> {
    let coverage = |line: &str| line.split_once("cov: ")?.1.split_whitespace().next()?.parse::<u64>().ok();
    let line = |word: &str| log.lines().find(|line| line.starts_with('#') && line.contains(word));
    let done = line("DONE")?;
    let (begun, reached) = (coverage(line("INITED")?)?, coverage(done)?);
    let runs = done.split_whitespace().next()?.trim_start_matches('#');
    Some(format!("{runs} inputs, coverage {begun} at first, {reached} in the end"))
}

fn show_failure(running: &Running, log: &str) {
    let lines: Vec<_> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        say(line);
    }
    say(&format!("{} failed; all that it said is in {}", running.target.name(), running.log.display()));
    let written = lines.iter().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()));
    let Some(path) = written else { return };
    match fs::read(path) {
        Ok(input) => {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            say(&format!("the input, {} bytes, is kept in {path}: {hex}", input.len()));
        }
        Err(error) => say(&format!("the input should be in {path}: {error}")),
    }
}

/// Puts those inputs into the committed corpus, beside the seeds, that reach most.
fn save(root: &Path, scratch: &Path, running: &Running) -> Result<()> {
    let name = running.target.name();
    let saved = root.join(CORPUS).join(name);
    let kept = scratch.join(format!("{name}-kept"));
    copy_files(&saved, &kept, |file| file.starts_with(SEED_PREFIX))?;
    let log = File::create(running.log.with_extension("merge.log"))
        .with_context(|| format!("writing the log of merging {name}"))?;
    let mut merge = program(root, running.target);
    // How often a line was passed does not count here, only that it was: many inputs differ by nothing else.
    merge
        .current_dir(scratch)
        .stderr(log)
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .arg(&kept)
        .arg(&running.corpus);
    run(&mut merge)?;

    let mut found = listed(&kept)?;
    // It writes those first that reach most of what is not reached yet.
    found.sort_by_key(|file| (!is_seed(&file.path), file.written));
    let (mut files, mut total) = (0, 0);
    found.retain(|file| {
        let fits = files < SAVED_FILES_MAX && total + file.bytes <= SAVED_BYTES_MAX;
        if fits {
            (files, total) = (files + 1, total + file.bytes);
        }
        fits
    });
    for Listed { path, .. } in listed(&saved)?.iter().filter(|file| !is_seed(&file.path)) {
        fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    }
    for Listed { path, .. } in &found {
        let to = saved.join(path.file_name().unwrap_or_default());
        fs::copy(path, &to).with_context(|| format!("writing {}", to.display()))?;
    }
    say(&format!("{name}: {files} inputs of {total} bytes are saved"));
    Ok(())
}

fn is_seed(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SEED_PREFIX))
}

/// A file of a corpus.
struct Listed {
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
}

fn listed(folder: &Path) -> Result<Vec<Listed>> {
    let look = |entry: DirEntry| {
        let found = entry.metadata()?;
        Ok(Listed { path: entry.path(), bytes: found.len(), written: found.modified()? })
    };
    let list = || fs::read_dir(folder)?.map(|entry| look(entry?)).collect::<io::Result<Vec<_>>>();
    list().with_context(|| format!("listing {}", folder.display()))
}

fn copy_files(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for Listed { path, .. } in listed(from)? {
        let name = path.file_name().unwrap_or_default();
        if wanted(&name.to_string_lossy()) {
            fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_tells_how_far_it_came() {
        let log = "INFO: seed corpus: files: 3 min: 1b max: 9b total: 12b rss: 30Mb\n\
                   #4\tINITED cov: 120 ft: 130 corp: 3/12b exec/s: 0 rss: 31Mb\n\
                   #900\tNEW    cov: 125 ft: 140 corp: 4/15b lim: 4 exec/s: 900 rss: 31Mb L: 3/9 MS: 1 ChangeBit-\n\
                   #1000\tDONE   cov: 125 ft: 140 corp: 4/15b lim: 9 exec/s: 500 rss: 31Mb\n";
        let expected = "1000 inputs, coverage 120 at first, 125 in the end";
        assert_eq!(summary(log).as_deref(), Some(expected));
        let cut = log.lines().take(3).collect::<Vec<_>>().join("\n");
        assert_eq!(summary(&cut), None, "it did not end by itself");
        assert_eq!(summary("#1000\tDONE   corp: 1/1b\n"), None, "nothing was measured");
    }

    #[test]
    fn versions_are_compared_by_package() {
        let lock = |packages: &[(&str, &str)]| {
            let packages = packages
                .iter()
                .map(|(name, version)| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n"));
            format!("version = 4\n\n{}", packages.collect::<Vec<_>>().join("\n"))
        };
        let ours = lock(&[("a", "1.0.0"), ("a", "2.0.0"), ("b", "1.0.0")]);
        assert_eq!(other_versions(&ours, &lock(&[("a", "2.0.0"), ("only-theirs", "1.0.0")])), Vec::<String>::new());
        assert_eq!(other_versions(&ours, &lock(&[("a", "1.0.0"), ("b", "1.0.1")])), ["b 1.0.1"]);
    }

    #[test]
    fn seeds_are_told_by_their_names() {
        assert!(is_seed(Path::new("/x/seed-list")) && !is_seed(Path::new("/seed-x/0a1b")));
    }
}
