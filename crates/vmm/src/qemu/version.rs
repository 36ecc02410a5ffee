//! Version check of the QEMU program.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::Stdio;

use crate::Error;

/// Oldest version with which this driver's `microvm` machine, monitor commands and options were tested.
const OLDEST: QemuVersion = QemuVersion { major: 7, minor: 2, micro: 0 };

/// A QEMU version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// Incremented with the first release of each year.
    pub major: u32,
    /// Incremented with each release of a year.
    pub minor: u32,
    /// Incremented with each bug-fix release.
    pub micro: u32,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Runs a QEMU program to get its version. Cancel safe.
///
/// # Errors
/// The program is missing, does not run, or is too old.
pub async fn version(program: &Path) -> Result<QemuVersion, Error> {
    let name = program.display().to_string();
    let output = tokio::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::ProgramMissing { program: name.clone() },
            _ => Error::File { action: "running", path: program.to_owned(), source },
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match parse(&text) {
        Some(version) if version >= OLDEST => Ok(version),
        _ => Err(Error::ProgramUnknown { program: name, output: text.lines().next().unwrap_or_default().to_owned() }),
    }
}

fn parse(text: &str) -> Option<QemuVersion> {
    let words = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let mut numbers = words.split_whitespace().next()?.split('.').map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok();
    Some(QemuVersion { major: next()?, minor: next()?, micro: next().unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_parsed() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022";
        assert_eq!(parse(debian), Some(QemuVersion { major: 7, minor: 2, micro: 22 }));
        assert_eq!(parse("QEMU emulator version 10.0.2"), Some(QemuVersion { major: 10, minor: 0, micro: 2 }));
        assert_eq!(parse("qemu-img version 7.2"), None);
        assert_eq!(parse(""), None);
    }

    #[tokio::test]
    async fn a_missing_program_is_reported_as_missing() {
        let error = version(Path::new("/nonexistent/qemu")).await.expect_err("missing");
        assert!(matches!(error, Error::ProgramMissing { .. }), "{error}");
        let error = version(Path::new("/bin/true")).await.expect_err("not QEMU");
        assert!(matches!(error, Error::ProgramUnknown { .. }), "{error}");
    }
}
