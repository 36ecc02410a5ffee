//! Environment of the process, from which defaults follow.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Facts about the process and the host that determine defaults, as a value, so that tests can set them.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    pub(crate) is_root: bool,
    pub(crate) home: Option<PathBuf>,
    pub(crate) xdg_data_home: Option<PathBuf>,
    pub(crate) xdg_config_home: Option<PathBuf>,
    pub(crate) memory_mib: u64,
}

impl Environment {
    /// Reads those of this process.
    pub(crate) fn current() -> Self {
        let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            is_root: hearth_host::requirement::is_root(),
            home: folder("HOME"),
            xdg_data_home: folder("XDG_DATA_HOME"),
            xdg_config_home: folder("XDG_CONFIG_HOME"),
            memory_mib: hearth_host::requirement::memory_mib().unwrap_or(4096),
        }
    }

    pub(super) fn data_dir(&self) -> Result<PathBuf> {
        if self.is_root {
            return Ok(PathBuf::from("/var/lib/hearth"));
        }
        let data = self.xdg_data_home.clone().or_else(|| Some(self.home.as_ref()?.join(".local/share")));
        Ok(data.context("neither HOME nor XDG_DATA_HOME is set: choose a folder with --data-dir")?.join("hearth"))
    }

    /// Returns the default path of the configuration file.
    pub(super) fn config_file(&self) -> Option<PathBuf> {
        let folder = if self.is_root {
            PathBuf::from("/etc")
        } else {
            self.xdg_config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")))?
        };
        Some(folder.join("hearth/hearth.toml"))
    }
}
