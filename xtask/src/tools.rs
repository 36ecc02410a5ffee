//! Cargo extensions that the checks need, in pinned versions.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::phases::{cargo, output, print_line, run};

/// Cargo extension.
#[derive(Debug)]
pub(crate) struct Tool {
    /// Name of the package and of the program.
    package: &'static str,
    /// Oldest accepted version of an installed program.
    oldest: (u32, u32, u32),
    /// Version to install if there is none.
    pinned: &'static str,
    /// Compile it without optimization: it runs for seconds, and optimizing it takes minutes.
    quick: bool,
}

/// Checker of licences, sources and banned crates.
pub(crate) const DENY: Tool = Tool { package: "cargo-deny", oldest: (0, 20, 0), pinned: "0.20.2", quick: true };
/// Test runner.
pub(crate) const NEXTEST: Tool = Tool { package: "cargo-nextest", oldest: (0, 9, 100), pinned: "0.9.143", quick: true };

impl Tool {
    /// Returns the program: the machine's own if it is new enough, otherwise one in `target/tools`, compiled the first
    /// time.
    pub(crate) fn ensure(&self, root: &Path) -> Result<PathBuf> {
        let installed = PathBuf::from(self.package);
        let folder = root.join("target/tools");
        let own = folder.join("bin").join(self.package);
        for program in [&installed, &own] {
            if version(program).is_some_and(|version| version >= self.oldest) {
                return Ok(program.clone());
            }
        }
        print_line(&format!("installing {} {} (once, takes a minute or more)", self.package, self.pinned));
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--version", self.pinned, "--root"]).arg(&folder);
        if self.quick {
            install.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "0");
        }
        run(install.arg(self.package)).with_context(|| format!("installing {}", self.package))?;
        Ok(own)
    }

    /// Command for the tool as cargo would start it, with the name of the subcommand as first argument.
    pub(crate) fn command(&self, root: &Path) -> Result<Command> {
        let mut command = Command::new(self.ensure(root)?);
        command.arg(self.package.trim_start_matches("cargo-")).current_dir(root);
        Ok(command)
    }
}

/// Returns the version that `program --version` prints; `None` if the program does not run.
fn version(program: &Path) -> Option<(u32, u32, u32)> {
    parse_version(&output(Command::new(program).arg("--version")).ok()?)
}

/// Parses the first word of a text that is a version.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').splitn(3, '.').map(str::parse::<u32>);
        let version = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_from_the_output_of_programs() {
        assert_eq!(parse_version("cargo-deny 0.20.2\n"), Some((0, 20, 2)));
        assert_eq!(parse_version("v20.20.2"), Some((20, 20, 2)));
        assert_eq!(parse_version("cargo-nextest 0.9.143 (60fa45f63 2026-08-04)"), Some((0, 9, 143)));
        assert_eq!(parse_version("cargo-nextest unknown 1.2"), None);
    }
}
