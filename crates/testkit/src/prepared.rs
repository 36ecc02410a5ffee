//! Data directory with kernel and base template, built once per checkout.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Folders of a data directory that `hearth setup` fills and that do not change afterwards.
const FOLDERS: [&str; 2] = ["guest", "artifacts"];

/// Variable with the templates that `hearth` prepares, and its value for tests.
///
/// An instance makes other templates in the background, which would disturb tests that depend on time.
pub(crate) const TEMPLATES: &str = "HEARTH_TEMPLATES";
pub(crate) const ONLY_BASE: &str = "base";

/// A data directory with a guest kernel and the base template.
#[derive(Debug, Clone)]
pub struct PreparedDataDir {
    folder: PathBuf,
    binary: PathBuf,
    templates: String,
}

impl PreparedDataDir {
    /// Runs `hearth setup` on a folder in the target folder of the binary.
    ///
    /// The first run takes a minute or two; later runs do nothing. Concurrent calls wait for each other.
    ///
    /// # Errors
    /// Fails if the setup fails. The error has the setup's standard error.
    pub fn ensure(binary: &Path) -> Result<Self> {
        Self::ensure_templates(binary, ONLY_BASE)
    }

    /// Does the same with these templates, separated by commas; instances prepare no other ones.
    ///
    /// # Errors
    /// Fails if the setup fails. The error has the setup's standard error.
    pub fn ensure_templates(binary: &Path, templates: &str) -> Result<Self> {
        Self::ensure_folder(binary, templates, &[])
    }

    /// Does the same with further options for `hearth setup`. Each set of options has a folder of its own.
    ///
    /// # Errors
    /// Fails if the setup fails. The error has the setup's standard error.
    pub fn ensure_with(binary: &Path, options: &[&str]) -> Result<Self> {
        Self::ensure_folder(binary, ONLY_BASE, options)
    }

    fn ensure_folder(binary: &Path, templates: &str, options: &[&str]) -> Result<Self> {
        let target = binary.ancestors().nth(2).context("the binary is not in a profile folder of a target folder")?;
        let name = ["hearth-data"].into_iter().chain(options.iter().copied()).collect::<String>();
        let folder = target.join(&name);
        fs::create_dir_all(&folder)?;
        let lock = File::create(target.join(format!("{name}.lock")))?;
        lock.lock()?;
        if !options.is_empty() {
            // All options share the packages, which are downloaded once.
            let plain = Self::ensure(binary)?;
            link_tree(&plain.folder.join("guest"), &folder.join("guest"))?;
        }
        let mut setup = Command::new(binary);
        for variable in configuration() {
            setup.env_remove(variable);
        }
        setup.env(TEMPLATES, templates);
        let setup = setup.arg("setup").args(options).arg("--data-dir").arg(&folder).output();
        let setup = setup.with_context(|| format!("running {} setup", binary.display()))?;
        ensure!(setup.status.success(), "hearth setup failed: {}", String::from_utf8_lossy(&setup.stderr));
        Ok(Self { folder, binary: binary.to_owned(), templates: templates.to_owned() })
    }

    /// Returns the path of the `hearth` binary.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Returns the prepared templates, separated by commas.
    pub(crate) fn templates(&self) -> &str {
        &self.templates
    }

    /// Returns the prepared data directory. Do not run an instance in it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds hard links to the prepared files to another data directory.
    pub fn link_into(&self, data_dir: &Path) -> Result<()> {
        for folder in FOLDERS {
            link_tree(&self.folder.join(folder), &data_dir.join(folder))?;
        }
        // Saves a boot: the file has the result of the KVM probe.
        let verdict = self.folder.join("accelerator.json");
        if verdict.exists() {
            fs::copy(&verdict, data_dir.join("accelerator.json"))?;
        }
        Ok(())
    }
}

/// Returns the environment variables of this process that would configure `hearth`.
pub(crate) fn configuration() -> impl Iterator<Item = OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| name.to_string_lossy().starts_with("HEARTH_"))
}

/// Recreates a tree of folders, with hard links to its files. Existing links are left as they are.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let entry = entry?;
        // A hard link would share the lock.
        if entry.file_name() == "lock" {
            continue;
        }
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_tree(&entry.path(), &target)?;
        } else {
            match fs::hard_link(entry.path(), &target) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("linking {}", target.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
