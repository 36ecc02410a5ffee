//! Files and folders of the data directory.
//!
//! ```text
//! hearth.lock            locked by the daemon of this directory
//! hearth.db              database: teams, users, keys, templates, sandboxes; unless --database-url is set
//! analytics.db           logs and metrics of sandboxes: bounded, and safe to delete while no daemon runs
//! api-key                API key of the first team, for `hearth env`
//! admin-token            token that authenticates operators over HTTP
//! token-seed             seed of the access tokens of sandboxes
//! login-key              key that signs the access tokens of users who log in here
//! tls/                   per domain: certificate and key of the instance's own authority, and the files for clients to
//!                        trust; in `acme/`, accounts with issuers and certificates from them
//! accelerator.json       result of the last KVM test
//! programs/              guest programs of this version
//! guest/                 kernel, initramfs and root filesystems, inputs of templates
//! artifacts/             artifact sets of builds
//! executions/            one folder per running sandbox
//! run/                   sockets between roles, the addresses of the listeners, and the states of templates
//! ```

mod permissions;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hearth_types::Secret;

/// Paths in the data directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Creates the directory and its folders, and removes other users' access to them, also to existing ones.
    ///
    /// They contain keys and guests' memory.
    pub(crate) fn ensure(&self) -> Result<()> {
        for folder in permissions::folders(&self.root) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.with_context(|| format!("creating the folder {} (choose another with --data-dir)", folder.display()))?;
        }
        permissions::ensure(&self.root, rustix::process::geteuid().as_raw())
    }

    /// Returns the reason why other users can read the directory or replace its files; `None` if they cannot.
    pub(crate) fn exposure(&self) -> Option<String> {
        permissions::exposure(&self.root, rustix::process::geteuid().as_raw())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("hearth.lock")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("hearth.db")
    }

    pub(crate) fn analytics(&self) -> PathBuf {
        self.root.join("analytics.db")
    }

    pub(crate) fn api_key(&self) -> PathBuf {
        self.root.join("api-key")
    }

    pub(crate) fn admin_token(&self) -> PathBuf {
        self.root.join("admin-token")
    }

    pub(crate) fn token_seed(&self) -> PathBuf {
        self.root.join("token-seed")
    }

    pub(crate) fn login_key(&self) -> PathBuf {
        self.root.join("login-key")
    }

    pub(crate) fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    pub(crate) fn verdict(&self) -> PathBuf {
        self.root.join("accelerator.json")
    }

    pub(crate) fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    pub(crate) fn guest(&self) -> PathBuf {
        self.root.join("guest")
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }

    pub(crate) fn executions(&self) -> PathBuf {
        self.root.join("executions")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub(crate) fn node_socket(&self) -> PathBuf {
        self.run().join("node.sock")
    }

    pub(crate) fn node_proxy_socket(&self) -> PathBuf {
        self.run().join("node-proxy.sock")
    }

    /// File in which the running daemon publishes the states of its templates.
    pub(crate) fn template_states(&self) -> PathBuf {
        self.run().join("templates.json")
    }

    /// File in which the running daemon publishes its addresses.
    pub(crate) fn endpoints(&self) -> PathBuf {
        self.run().join("endpoints.json")
    }
}

/// Reads a secret file without surrounding white space; `None` if it does not exist.
pub(crate) fn read_secret(path: &Path) -> Result<Option<Secret>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Secret::new(text.trim()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Writes a file that only its owner can read, atomically, and syncs it to disk.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        // A leftover of an interrupted run may have another mode.
        let _ = fs::remove_file(&fresh);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        if let Some(folder) = path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_private_and_survive() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("secret");
        assert!(read_secret(&path).expect("reads").is_none());
        write_secret(&path, "one").expect("writes");
        write_secret(&path, "two\n").expect("writes again");
        assert_eq!(read_secret(&path).expect("reads").expect("it exists").expose(), "two");
        assert_eq!(fs::metadata(&path).expect("it exists").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }

    #[test]
    fn the_data_directory_is_private() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let layout = Layout::new(&folder.path().join("a/b"));
        layout.ensure().expect("creates");
        layout.ensure().expect("is there");
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!(mode(layout.root()), 0o700);
        // The mode with which a package or an administrator may have created it.
        fs::set_permissions(layout.root(), fs::Permissions::from_mode(0o755)).expect("own folder");
        fs::set_permissions(layout.artifacts(), fs::Permissions::from_mode(0o755)).expect("own folder");
        layout.ensure().expect("is there");
        assert_eq!([mode(layout.root()), mode(&layout.artifacts())], [0o700, 0o700]);
    }
}
