//! The format of `recipe.toml`.

use serde::Deserialize;

/// A recipe as it is written down. Paths are relative to its folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Name under which clients request the template.
    pub(super) alias: String,
    /// Name of another recipe.
    pub(super) extends: Option<String>,
    /// Size of the finished tree of files, for checks of free space.
    pub(super) installed_mib: u64,
    /// Debian packages, in addition to those of the extended recipe.
    #[serde(default)]
    pub(super) packages: Vec<String>,
    /// Lock file of Python packages, with hashes, for the system's Python.
    pub(super) python_lock: Option<String>,
    /// Folder with the `package.json` and `package-lock.json` of Node packages.
    pub(super) npm_lock_folder: Option<String>,
    /// Folder whose tree is copied over the root filesystem.
    pub(super) files: Option<String>,
    /// Script for the root filesystem.
    pub(super) setup: Option<String>,
    /// URL that must answer in the guest before its snapshot.
    pub(super) ready: Option<String>,
    /// Shell commands of the default user, run in the guest before its snapshot.
    #[serde(default)]
    pub(super) warm_up: Vec<String>,
    pub(super) resources: Resources,
}

/// Virtual hardware.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resources {
    pub(super) cpu_count: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_mib: u32,
}

impl Document {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }
}
