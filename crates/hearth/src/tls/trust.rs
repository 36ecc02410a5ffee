//! Adds the instance's own authority to the certificates that this host trusts, and removes it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use hearth_host::process::find_program;

/// Folder for additional trusted certificates on Debian (update-ca-certificates(8)).
const FOLDER: &str = "/usr/local/share/ca-certificates";
const PROGRAM: &str = "update-ca-certificates";

/// Trusted certificates of a Debian host.
#[derive(Debug)]
pub(crate) struct TrustStore {
    folder: PathBuf,
    program: PathBuf,
}

impl TrustStore {
    /// Opens this host's.
    ///
    /// # Errors
    /// This process is not root's, or `update-ca-certificates` is not installed.
    pub(crate) fn of_this_host() -> Result<Self> {
        if !hearth_host::requirement::is_root() {
            bail!("only root can change what this host trusts: run this as root, with the same --data-dir");
        }
        let program = find_program(PROGRAM.as_ref()).context(
            "update-ca-certificates is missing: install the package ca-certificates, or, on a host that is not Debian, \
             add the output of `hearth tls export` with that host's own tool",
        )?;
        Ok(Self { folder: PathBuf::from(FOLDER), program })
    }

    /// Adds an authority, or rewrites an existing one. Returns the path of its file.
    pub(crate) fn trust(&self, host: &str, certificate_pem: &str) -> Result<PathBuf> {
        let path = self.path(host);
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            fs::write(&path, certificate_pem)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        // Also if the file existed: the command that wrote it may have been interrupted before the update.
        self.update(&[])?;
        Ok(path)
    }

    /// Removes the authority of a domain. Returns the path of its file if it existed.
    pub(crate) fn untrust(&self, host: &str) -> Result<Option<PathBuf>> {
        let path = self.path(host);
        let existed = match fs::remove_file(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
        };
        // `--fresh` removes links to deleted files.
        self.update(&["--fresh"])?;
        Ok(existed.then_some(path))
    }

    fn path(&self, host: &str) -> PathBuf {
        self.folder.join(format!("hearth-{host}.crt"))
    }

    fn update(&self, arguments: &[&str]) -> Result<()> {
        let program: &Path = &self.program;
        let output = Command::new(program).args(arguments).output();
        let output = output.with_context(|| format!("starting {}", program.display()))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("{} failed: {}: {}", program.display(), output.status, message.trim());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a store whose update program records its arguments and exits with `status`.
    fn store(folder: &Path, status: u8) -> TrustStore {
        let program = folder.join("update");
        let script = format!("#!/bin/sh\necho \"run $*\" >>{}/runs\necho why >&2\nexit {status}\n", folder.display());
        fs::write(&program, script).expect("writes");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("own file");
        TrustStore { folder: folder.join("certificates"), program }
    }

    #[test]
    fn trust_and_untrust_can_be_repeated() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 0);
        assert_eq!(store.untrust("a.b").expect("nothing to remove"), None);
        for _ in 0..2 {
            let path = store.trust("a.b", "certificate").expect("it is added");
            assert_eq!(path, folder.path().join("certificates/hearth-a.b.crt"));
            assert_eq!(fs::read_to_string(&path).expect("it exists"), "certificate");
            assert_eq!(fs::metadata(&path).expect("it exists").permissions().mode() & 0o777, 0o644);
        }
        assert!(store.untrust("a.b").expect("it is removed").is_some_and(|path| !path.exists()));
        let runs = fs::read_to_string(folder.path().join("runs")).expect("it ran");
        assert_eq!(runs, "run --fresh\nrun \nrun \nrun --fresh\n");
    }

    #[test]
    fn an_error_quotes_the_failed_program() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = store(folder.path(), 3).trust("a.b", "certificate").expect_err("it failed").to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }
}
