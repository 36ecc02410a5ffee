//! Kernel and base template, made once.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The folders of a data directory that `hearth setup` fills and that never change afterwards.
const FOLDERS: [&str; 2] = ["guest", "artifacts"];

/// A data directory with a guest kernel and the base template.
#[derive(Debug, Clone)]
pub struct Prepared {
    folder: PathBuf,
    binary: PathBuf,
}

impl Prepared {
    /// Runs `hearth setup` on a folder below the one the binary was built into. The first time takes a minute or two; after
    /// that nothing is done. Several at once wait for each other.
    ///
    /// # Errors
    /// The setup failed; what it said is part of the error.
    pub fn ensure(binary: &Path) -> Result<Self> {
        Self::ensure_with(binary, &[])
    }

    /// The same with options of `hearth`. The templates of different options live side by side.
    ///
    /// # Errors
    /// The setup failed; what it said is part of the error.
    pub fn ensure_with(binary: &Path, options: &[&str]) -> Result<Self> {
        let target = binary.ancestors().nth(2).context("the binary is in a profile folder of a target folder")?;
        let name = ["hearth-data"].into_iter().chain(options.iter().copied()).collect::<String>();
        let folder = target.join(&name);
        fs::create_dir_all(&folder)?;
        let lock = File::create(target.join(format!("{name}.lock")))?;
        lock.lock()?;
        if !options.is_empty() {
            // Packages are fetched once, whatever is made of them.
            let plain = Self::ensure(binary)?;
            link_tree(&plain.folder.join("guest"), &folder.join("guest"))?;
        }
        let mut setup = Command::new(binary);
        for variable in configuration() {
            setup.env_remove(variable);
        }
        let setup = setup.arg("setup").args(options).arg("--data-dir").arg(&folder).output();
        let setup = setup.with_context(|| format!("running {} setup", binary.display()))?;
        ensure!(setup.status.success(), "hearth setup failed: {}", String::from_utf8_lossy(&setup.stderr));
        Ok(Self { folder, binary: binary.to_owned() })
    }

    /// The program.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The data directory that was prepared. Not to be run on.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives the prepared files to another data directory.
    pub fn furnish(&self, data_dir: &Path) -> Result<()> {
        for folder in FOLDERS {
            link_tree(&self.folder.join(folder), &data_dir.join(folder))?;
        }
        // The verdict on KVM is worth a boot.
        let verdict = self.folder.join("accelerator.json");
        if verdict.exists() {
            fs::copy(&verdict, data_dir.join("accelerator.json"))?;
        }
        Ok(())
    }
}

/// Variables of whoever runs the tests that would configure `hearth`.
pub(crate) fn configuration() -> impl Iterator<Item = OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| name.to_string_lossy().starts_with("HEARTH_"))
}

/// Hard links for files, new folders for folders.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let entry = entry?;
        // A link to a lock would be the same lock.
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
