//! The builder's folder, locked by one process at a time.
//!
//! ```text
//! lock             held during a build
//! apt/             package lists and packages
//! kernel/          see `kernel`
//! rootfs/          see `rootfs`
//! boot/            folder of the template's VM during a build
//! <name>-template  the id of the template of a recipe
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_host::lock::Lock;
use hearth_host::process::Process;
use hearth_types::TemplateId;

use crate::files::{SCRATCH_PREFIX, publish, remove, sweep};
use crate::{Config, Error};

/// The builder's folder, with its lock.
#[derive(Debug)]
pub(crate) struct BuildFolder {
    folder: PathBuf,
    _lock: Lock,
}

impl BuildFolder {
    /// Locks the folder, kills processes of a killed run and removes its leftovers.
    pub(crate) async fn open(config: &Config) -> Result<Self, Error> {
        let folder = config.folder.clone();
        for part in ["", "apt", "kernel", "rootfs"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(Error::file("creating the folder", &path))?;
        }
        let lock = acquire_lock(&folder.join("lock")).await?;
        let build_folder = Self { folder, _lock: lock };
        build_folder.kill_leftovers().await?;
        for folder in [&build_folder.folder, &build_folder.kernels(), &build_folder.root_filesystems()] {
            sweep(folder)?;
        }
        Ok(build_folder)
    }

    /// Kills the tools and the VM of a killed run, which outlive it.
    ///
    /// They are found by the paths in their arguments. While the lock is held, no other process uses these paths.
    async fn kill_leftovers(&self) -> Result<(), Error> {
        for folder in [self.apt(), self.kernels().join(SCRATCH_PREFIX), self.work(), self.boot()] {
            for process in Process::find_by_argument(&folder.to_string_lossy()) {
                tracing::info!(pid = process.pid(), "killing a process of an interrupted run");
                process.kill().map_err(Error::file("killing a process that uses", &folder))?;
                process.wait().await;
            }
        }
        remove(&self.boot())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn apt(&self) -> PathBuf {
        self.folder.join("apt")
    }

    pub(crate) fn kernels(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    pub(crate) fn root_filesystems(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    /// Folder in which a root filesystem is made.
    ///
    /// It may contain files that only root of a user namespace can remove.
    pub(crate) fn work(&self) -> PathBuf {
        self.root_filesystems().join("making")
    }

    pub(crate) fn boot(&self) -> PathBuf {
        self.folder.join("boot")
    }

    /// Returns the id of a recipe's template, which is chosen once in the life of a data directory.
    pub(crate) fn template_id(&self, recipe: &str) -> Result<TemplateId, Error> {
        let path = template_file(&self.folder, recipe);
        if let Ok(text) = fs::read_to_string(&path)
            && let Ok(id) = text.trim().parse()
        {
            return Ok(id);
        }
        let id = TemplateId::generate();
        publish(&path, id.as_str().as_bytes())?;
        Ok(id)
    }

    /// Removes fetched packages, which are not needed once they are in a root filesystem.
    ///
    /// Package lists are removed too; each build fetches them again.
    pub(crate) fn remove_packages(&self) -> Result<(), Error> {
        remove(&self.apt())
    }
}

/// Returns the file with the id of a recipe's template.
pub(crate) fn template_file(folder: &Path, recipe: &str) -> PathBuf {
    folder.join(format!("{recipe}-template"))
}

/// Acquires the lock, with retries.
///
/// A child process has copies of all descriptors until it executes its program (flock(2)), so a released lock may seem
/// held for a short time.
async fn acquire_lock(path: &Path) -> Result<Lock, Error> {
    const LIMIT: Duration = Duration::from_millis(500);
    const PAUSE: Duration = Duration::from_millis(10);
    let start = Instant::now();
    loop {
        match Lock::acquire(path, &format!("process {}", std::process::id())) {
            Ok(lock) => return Ok(lock),
            Err(hearth_host::lock::Error::Held { .. }) if start.elapsed() < LIMIT => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(Error::Busy(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestPrograms, NAMESERVER, SUITE};

    fn config(root: &Path) -> Config {
        Config {
            folder: root.join("builder"),
            guest: GuestPrograms { init: PathBuf::new(), envd: PathBuf::new(), interpreter: None },
            suite: SUITE.to_owned(),
            mirror: None,
            variables: Default::default(),
            nameserver: NAMESERVER,
        }
    }

    #[tokio::test]
    async fn processes_of_a_killed_run_are_killed() {
        let root = tempfile::tempdir().expect("temporary folder");
        let config = config(root.path());
        let archive = config.folder.join("rootfs/making/root.tar");
        fs::create_dir_all(config.folder.join("rootfs/making")).expect("creates");
        fs::write(&archive, "").expect("writes");
        let mut spawn = hearth_host::process::Spawn::new("tail");
        spawn.args(["-f".into(), archive.into()]);
        let process = spawn.spawn().expect("starts");
        BuildFolder::open(&config).await.expect("opens");
        tokio::time::timeout(Duration::from_secs(10), process.wait()).await.expect("was killed");
    }

    #[tokio::test]
    async fn the_folder_is_locked_and_the_template_id_is_permanent() {
        let root = tempfile::tempdir().expect("temporary folder");
        let config = config(root.path());
        let build_folder = BuildFolder::open(&config).await.expect("opens");
        assert!(matches!(BuildFolder::open(&config).await, Err(Error::Busy(_))));
        let id = build_folder.template_id("base").expect("chooses");
        drop(build_folder);
        let build_folder = BuildFolder::open(&config).await.expect("opens again");
        assert_eq!(build_folder.template_id("base").expect("remembers"), id);
        assert_ne!(build_folder.template_id("other").expect("chooses"), id);
    }
}
