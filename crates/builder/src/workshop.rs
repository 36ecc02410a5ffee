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

use hearth_host::lock::Lock;
use hearth_types::TemplateId;

use crate::files::{publish, remove, sweep};
use crate::{Config, Error};

/// The builder's folder.
#[derive(Debug)]
pub(crate) struct Workshop {
    folder: PathBuf,
    _lock: Lock,
}

impl Workshop {
    /// Takes the folder and removes what interrupted runs left in it.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let folder = config.folder.clone();
        for part in ["", "apt", "kernel", "rootfs"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(Error::file("creating the folder", &path))?;
        }
        let lock = Lock::take(&folder.join("lock"), &format!("process {}", std::process::id())).map_err(Error::Busy)?;
        let workshop = Self { folder, _lock: lock };
        for folder in [&workshop.folder, &workshop.kernels(), &workshop.root_filesystems()] {
            sweep(folder)?;
        }
        Ok(workshop)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestPrograms, NAMESERVER, RESOURCES, SUITE};

    #[test]
    fn one_process_at_a_time_and_one_template_id_for_ever() {
        let root = tempfile::tempdir().expect("temporary folder");
        let config = Config {
            folder: root.path().join("builder"),
            guest: GuestPrograms { init: PathBuf::new(), envd: PathBuf::new() },
            suite: SUITE.to_owned(),
            mirror: None,
            nameserver: NAMESERVER,
            resources: RESOURCES,
        };
        let workshop = Workshop::open(&config).expect("opens");
        assert!(matches!(Workshop::open(&config), Err(Error::Busy(_))));
        let id = workshop.base_template_id().expect("chooses");
        drop(workshop);
        let workshop = Workshop::open(&config).expect("opens again");
        assert_eq!(workshop.base_template_id().expect("remembers"), id);
    }
}
