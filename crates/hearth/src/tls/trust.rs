//! Making this host trust an authority of ours, and no longer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use hearth_host::process::find_program;

/// Where Debian wants certificates that the host is to trust (update-ca-certificates(8)).
const FOLDER: &str = "/usr/local/share/ca-certificates";
const PROGRAM: &str = "update-ca-certificates";

/// The list of authorities a host trusts, as Debian keeps it.
#[derive(Debug)]
pub(crate) struct TrustStore {
    folder: PathBuf,
    program: PathBuf,
}

impl TrustStore {
    /// This host's.
    pub(crate) fn of_this_host() -> Result<Self> {
        if !hearth_host::requirement::is_root() {
            bail!("what this host trusts is root's to say: run this as root, with the same --data-dir");
        }
        let program = find_program(PROGRAM.as_ref()).context(
            "update-ca-certificates is not here: install the package ca-certificates, or, on a host that is no Debian, \
             add what `hearth tls export` writes in its own way",
        )?;
        Ok(Self { folder: PathBuf::from(FOLDER), program })
    }

    /// Adds an authority; does nothing to one that is there. Returns the file it put it in.
    pub(crate) fn trust(&self, host: &str, certificate_pem: &str) -> Result<PathBuf> {
        let path = self.path(host);
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            fs::write(&path, certificate_pem)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        // Also when the file was there: the run that wrote it may have been interrupted.
        self.update(&[])?;
        Ok(path)
    }

    /// Removes the authority of a domain; returns the file it was in, if it was there.
    pub(crate) fn untrust(&self, host: &str) -> Result<Option<PathBuf>> {
        let path = self.path(host);
        let was_there = match fs::remove_file(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
        };
        // Without it, links to files that are gone stay.
        self.update(&["--fresh"])?;
        Ok(was_there.then_some(path))
    }

    fn path(&self, host: &str) -> PathBuf {
        self.folder.join(format!("hearth-{host}.crt"))
    }

    fn update(&self, arguments: &[&str]) -> Result<()> {
        let program: &Path = &self.program;
        let output = Command::new(program).args(arguments).output();
        let output = output.with_context(|| format!("starting {}", program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} ended with {}: {}", program.display(), output.status, said.trim());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list whose program notes what it was asked, and ends with `status`.
    fn store(folder: &Path, status: u8) -> TrustStore {
        let program = folder.join("update");
        let script = format!("#!/bin/sh\necho \"run $*\" >>{}/runs\necho why >&2\nexit {status}\n", folder.display());
        fs::write(&program, script).expect("writes");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its own file");
        TrustStore { folder: folder.join("certificates"), program }
    }

    #[test]
    fn trust_comes_and_goes_as_often_as_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 0);
        assert_eq!(store.untrust("a.b").expect("nothing there"), None);
        for _ in 0..2 {
            let path = store.trust("a.b", "certificate").expect("it is added");
            assert_eq!(path, folder.path().join("certificates/hearth-a.b.crt"));
            assert_eq!(fs::read_to_string(&path).expect("there"), "certificate");
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o644);
        }
        assert!(store.untrust("a.b").expect("it is removed").is_some_and(|path| !path.exists()));
        let runs = fs::read_to_string(folder.path().join("runs")).expect("it ran");
        assert_eq!(runs, "run --fresh\nrun \nrun \nrun --fresh\n");
    }

    #[test]
    fn a_failure_of_the_program_is_told_with_its_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = store(folder.path(), 3).trust("a.b", "certificate").expect_err("it failed").to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }
}
