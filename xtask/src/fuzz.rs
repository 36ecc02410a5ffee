//! Fuzz targets: built with coverage instrumentation, and run in parallel on the committed corpus.
//!
//! cargo-fuzz needs a nightly compiler for sanitizers. Rust without unsafe code needs only coverage, which a stable
//! compiler provides with LLVM's flags. The builds have a separate target folder and an explicit target, so that build
//! scripts and macros are not instrumented.

use std::fs::{self, DirEntry, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::phases::{Phases, cargo, print_line, run};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Folder of builds, logs and inputs that caused failures.
const BUILT: &str = "target/fuzz";
/// Committed corpus: one folder of inputs per target.
const CORPUS: &str = "fuzz/corpus";
/// Compiler flags for LLVM's coverage instrumentation, which libFuzzer reads.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Default run time of the targets.
const SECONDS: u32 = 60;
/// Time limit for one input.
const INPUT_SECONDS_MAX: u32 = 10;
/// Memory limit of a target.
const MEMORY_MIB_MAX: u32 = 2048;
/// Maximum length of an input. The programs' own limits are larger than a fuzzer's inputs, or have tests of their own.
const INPUT_BYTES_MAX: u32 = 4096;
/// Maximum number of files in a committed corpus; the fuzzed crates assert it.
///
/// Every test run replays the corpus, so it must be small.
const SAVED_FILES_MAX: usize = 200;
/// Maximum size of a committed corpus; the fuzzed crates assert it.
const SAVED_BYTES_MAX: u64 = 300_000;
/// Prefix of inputs that people wrote. They are never removed.
const SEED_PREFIX: &str = "seed-";
/// Lines of the log that are printed when a target failed.
const LOG_LINES: usize = 40;

/// Targets to run, and the run time.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// Run time of the targets, in seconds.
    #[arg(long, default_value_t = SECONDS)]
    seconds: u32,
    /// Run only this target.
    #[arg(long)]
    target: Option<Target>,
    /// Save the inputs with the most coverage to fuzz/corpus.
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
    Bundles,
    Kernels,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Multipart => "multipart",
            Self::Headers => "headers",
            Self::Bundles => "bundles",
            Self::Kernels => "kernels",
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
            "fuzz/Cargo.lock differs from Cargo.lock in the versions of: {}. Update it with `cp Cargo.lock fuzz/ && \
             cargo update --workspace --manifest-path fuzz/Cargo.toml`",
            other.join(", ")
        );
    }
    let mut build = cargo();
    build.current_dir(root).args(["build", "--quiet", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    build.args(["--target-dir", BUILT, "--target", TARGET]);
    run(build.env("RUSTFLAGS", INSTRUMENTATION).env_remove("CARGO_ENCODED_RUSTFLAGS"))
}

/// Returns the packages of both lock files whose version in the second one does not exist in the first one.
fn other_versions(main: &str, fuzz: &str) -> Vec<String> {
    let main = packages(main);
    let differs = |(name, version): &(&str, &str)| {
        let mut same_name = main.iter().filter(|(main, _)| main == name).peekable();
        same_name.peek().is_some() && !same_name.any(|(_, main)| main == version)
    };
    packages(fuzz).into_iter().filter(differs).map(|(name, version)| format!("{name} {version}")).collect()
}

/// Parses names and versions of a lock file in the form that cargo writes.
fn packages(lock: &str) -> Vec<(&str, &str)> {
    let value = |line: &'static str, package| -> Option<&str> {
        let package: &str = package;
        package.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(" = \"")?.strip_suffix('"'))
    };
    lock.split("[[package]]")
        .filter_map(|package| Some((value("name", package)?, value("version", package)?)))
        .collect()
}

/// Running fuzz target. Dropping it kills the process.
struct RunningTarget {
    target: Target,
    process: Child,
    corpus: PathBuf,
    log: PathBuf,
}

impl Drop for RunningTarget {
    fn drop(&mut self) {
        // The process may have exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn fuzz(root: &Path, selection: &Selection) -> Result<()> {
    // Fuzzers write new inputs to their corpus, so they get a copy of the committed one.
    let scratch = tempfile::tempdir().context("creating a temporary folder")?;
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
        // A log without the final line means a failure, even with a successful exit status.
        match summary(&log).filter(|_| status.success()) {
            Some(summary) => print_line(&format!("{}: {summary}", running.target.name())),
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

fn start(root: &Path, scratch: &Path, target: Target, seconds: u32) -> Result<RunningTarget> {
    let name = target.name();
    let corpus = scratch.join(name);
    copy_files(&root.join(CORPUS).join(name), &corpus, |_| true)?;
    let artifacts = root.join(BUILT).join("artifacts").join(name);
    fs::create_dir_all(&artifacts).with_context(|| format!("creating {}", artifacts.display()))?;
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
    Ok(RunningTarget { target, process, corpus, log })
}

/// Returns a summary of the run: number of inputs, coverage of the initial corpus and final coverage.
fn summary(log: &str) -> Option<String> {
    let coverage = |line: &str| line.split_once("cov: ")?.1.split_whitespace().next()?.parse::<u64>().ok();
    let line = |word: &str| log.lines().find(|line| line.starts_with('#') && line.contains(word));
    let done = line("DONE")?;
    let (begun, reached) = (coverage(line("INITED")?)?, coverage(done)?);
    let runs = done.split_whitespace().next()?.trim_start_matches('#');
    Some(format!("{runs} inputs, coverage {begun} at the start, {reached} at the end"))
}

fn show_failure(running: &RunningTarget, log: &str) {
    let lines: Vec<_> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        print_line(line);
    }
    print_line(&format!("{} failed; full log in {}", running.target.name(), running.log.display()));
    let written = lines.iter().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()));
    let Some(path) = written else { return };
    match fs::read(path) {
        Ok(input) => {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            print_line(&format!("failing input, {} bytes, saved in {path}: {hex}", input.len()));
        }
        Err(error) => print_line(&format!("failing input {path} is not readable: {error}")),
    }
}

/// Replaces the committed corpus, except the seeds, by the inputs with the most coverage.
fn save(root: &Path, scratch: &Path, running: &RunningTarget) -> Result<()> {
    let name = running.target.name();
    let saved = root.join(CORPUS).join(name);
    let merged = scratch.join(format!("{name}-merged"));
    copy_files(&saved, &merged, |file| file.starts_with(SEED_PREFIX))?;
    let log = File::create(running.log.with_extension("merge.log"))
        .with_context(|| format!("writing the log of merging {name}"))?;
    let mut merge = program(root, running.target);
    // Ignore execution counts of lines: many inputs differ only in these.
    merge
        .current_dir(scratch)
        .stderr(log)
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .arg(&merged)
        .arg(&running.corpus);
    run(&mut merge)?;

    let mut found = list_files(&merged)?;
    // The merge writes inputs in the order of the coverage that they add.
    found.sort_by_key(|file| (!is_seed(&file.path), file.written));
    let (mut files, mut total) = (0, 0);
    found.retain(|file| {
        let fits = files < SAVED_FILES_MAX && total + file.bytes <= SAVED_BYTES_MAX;
        if fits {
            (files, total) = (files + 1, total + file.bytes);
        }
        fits
    });
    for CorpusFile { path, .. } in list_files(&saved)?.iter().filter(|file| !is_seed(&file.path)) {
        fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    }
    for CorpusFile { path, .. } in &found {
        let to = saved.join(path.file_name().unwrap_or_default());
        fs::copy(path, &to).with_context(|| format!("writing {}", to.display()))?;
    }
    print_line(&format!("{name}: saved {files} inputs, {total} bytes"));
    Ok(())
}

fn is_seed(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SEED_PREFIX))
}

/// File of a corpus.
struct CorpusFile {
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
}

fn list_files(folder: &Path) -> Result<Vec<CorpusFile>> {
    let read = |entry: DirEntry| {
        let found = entry.metadata()?;
        Ok(CorpusFile { path: entry.path(), bytes: found.len(), written: found.modified()? })
    };
    let list = || fs::read_dir(folder)?.map(|entry| read(entry?)).collect::<io::Result<Vec<_>>>();
    list().with_context(|| format!("listing {}", folder.display()))
}

fn copy_files(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for CorpusFile { path, .. } in list_files(from)? {
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
    fn a_summary_has_inputs_and_coverage() {
        let log = "INFO: seed corpus: files: 3 min: 1b max: 9b total: 12b rss: 30Mb\n\
                   #4\tINITED cov: 120 ft: 130 corp: 3/12b exec/s: 0 rss: 31Mb\n\
                   #900\tNEW    cov: 125 ft: 140 corp: 4/15b lim: 4 exec/s: 900 rss: 31Mb L: 3/9 MS: 1 ChangeBit-\n\
                   #1000\tDONE   cov: 125 ft: 140 corp: 4/15b lim: 9 exec/s: 500 rss: 31Mb\n";
        let expected = "1000 inputs, coverage 120 at the start, 125 at the end";
        assert_eq!(summary(log).as_deref(), Some(expected));
        let cut = log.lines().take(3).collect::<Vec<_>>().join("\n");
        assert_eq!(summary(&cut), None, "the run was cut short");
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
        let main = lock(&[("a", "1.0.0"), ("a", "2.0.0"), ("b", "1.0.0")]);
        assert_eq!(other_versions(&main, &lock(&[("a", "2.0.0"), ("only-theirs", "1.0.0")])), Vec::<String>::new());
        assert_eq!(other_versions(&main, &lock(&[("a", "1.0.0"), ("b", "1.0.1")])), ["b 1.0.1"]);
    }

    #[test]
    fn seeds_are_recognized_by_their_names() {
        assert!(is_seed(Path::new("/x/seed-list")) && !is_seed(Path::new("/seed-x/0a1b")));
    }
}
