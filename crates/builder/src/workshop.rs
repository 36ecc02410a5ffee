//! The builder's folder, held by one process at a time.
//!
//! ```text
//! lock           held while something is built
//! apt/           lists and packages
//! kernel/        see `kernel`
//! rootfs/        see `rootfs`
//! boot/          folder of the template's VM while it is built
//! base-template  the id of the base template
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_host::lock::Lock;
use hearth_host::process::Process;
use hearth_types::TemplateId;

use crate::files::{SCRATCH_PREFIX, publish, remove, sweep};
use crate::{Config, Error};

/// The builder's folder.
#[derive(Debug)]
pub(crate) struct Workshop {
    folder: PathBuf,
    _lock: Lock,
}

impl Workshop {
    /// Takes the folder, ends what a killed run left running and removes what it left in the folder.
    pub(crate) async fn open(config: &Config) -> Result<Self, Error> {
        let folder = config.folder.clone();
        for part in ["", "apt", "kernel", "rootfs"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(Error::file("creating the folder", &path))?;
        }
        let lock = take_lock(&folder.join("lock")).await?;
        let workshop = Self { folder, _lock: lock };
        workshop.end_leftovers().await?;
        for folder in [&workshop.folder, &workshop.kernels(), &workshop.root_filesystems()] {
            sweep(folder)?;
        }
        Ok(workshop)
    }

    /// The tools and the VM of a killed run outlive it. They are found by the paths they work on, which nobody else works on
    /// while the lock is held.
    async fn end_leftovers(&self) -> Result<(), Error> {
        for folder in [self.apt(), self.kernels().join(SCRATCH_PREFIX), self.work(), self.boot()] {
            for process in Process::find_by_argument(&folder.to_string_lossy()) {
                tracing::info!(pid = process.pid(), "ending a process that an interrupted run left");
                process.kill().map_err(Error::file("ending what works on", &folder))?;
                process.wait().await;
            }
        }
        remove(&self.boot())
    }

    pub(crate) fn folder(&self) -> &Path {
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

    /// Where a root filesystem is made. It may have files that only root of a user namespace can remove.
    pub(crate) fn work(&self) -> PathBuf {
        self.root_filesystems().join("making")
    }

    pub(crate) fn boot(&self) -> PathBuf {
        self.folder.join("boot")
    }

    /// The id of the base template: chosen once in the life of a data directory.
    pub(crate) fn base_template_id(&self) -> Result<TemplateId, Error> {
        let path = self.folder.join("base-template");
        if let Ok(text) = fs::read_to_string(&path)
            && let Ok(id) = text.trim().parse()
        {
            return Ok(id);
        }
        let id = TemplateId::generate();
        publish(&path, id.as_str().as_bytes())?;
        Ok(id)
    }

    /// Fetched packages are of no use once they are in a root filesystem; the lists are fetched anew anyway.
    pub(crate) fn forget_packages(&self) -> Result<(), Error> {
        remove(&self.apt())
    }
}

/// A process that is being started has copies of all descriptors until it runs its program (flock(2)), so a lock that was
/// just given back may seem held for a moment.
async fn take_lock(path: &Path) -> Result<Lock, Error> {
    const PATIENCE: Duration = Duration::from_millis(500);
    const PAUSE: Duration = Duration::from_millis(10);
    let start = Instant::now();
    loop {
        match Lock::take(path, &format!("process {}", std::process::id())) {
            Ok(lock) => return Ok(lock),
            Err(hearth_host::lock::Error::Held { .. }) if start.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(Error::Busy(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestPrograms, NAMESERVER, RESOURCES, SUITE};

    fn config(root: &Path) -> Config {
        Config {
            folder: root.join("builder"),
            guest: GuestPrograms { init: PathBuf::new(), envd: PathBuf::new() },
            suite: SUITE.to_owned(),
            mirror: None,
            nameserver: NAMESERVER,
            resources: RESOURCES,
        }
    }

    #[tokio::test]
    async fn what_a_killed_run_left_running_is_ended() {
        let root = tempfile::tempdir().expect("temporary folder");
        let config = config(root.path());
        let archive = config.folder.join("rootfs/making/root.tar");
        fs::create_dir_all(config.folder.join("rootfs/making")).expect("creates");
        fs::write(&archive, "").expect("writes");
        let mut spawn = hearth_host::process::Spawn::new("tail");
        spawn.args(["-f".into(), archive.into()]);
        let process = spawn.spawn().expect("starts");
        Workshop::open(&config).await.expect("opens");
        tokio::time::timeout(Duration::from_secs(10), process.wait()).await.expect("was ended");
    }

    #[tokio::test]
    async fn one_process_at_a_time_and_one_template_id_for_ever() {
        let root = tempfile::tempdir().expect("temporary folder");
        let config = config(root.path());
        let workshop = Workshop::open(&config).await.expect("opens");
        assert!(matches!(Workshop::open(&config).await, Err(Error::Busy(_))));
        let id = workshop.base_template_id().expect("chooses");
        drop(workshop);
        let workshop = Workshop::open(&config).await.expect("opens again");
        assert_eq!(workshop.base_template_id().expect("remembers"), id);
    }
}
