//! Permissions of the data directory: other users of the host have no access, even if the folder existed before.
//!
//! A folder with only Hearth's files becomes private as a whole. If it also contains other files, its mode does not
//! change, and only Hearth's own files and folders become private: a private `/srv` or home would break the programs
//! that use it.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Entries that Hearth creates directly in a data directory, with the `-shm` and `-wal` files of SQLite.
const OWN: &[&str] = &[
    "hearth.lock",
    "hearth.db",
    "hearth.db-shm",
    "hearth.db-wal",
    "analytics.db",
    "analytics.db-shm",
    "analytics.db-wal",
    "api-key",
    "admin-token",
    "token-seed",
    "login-key",
    "tls",
    "accelerator.json",
    "programs",
    "guest",
    "artifacts",
    "executions",
    "run",
];
/// Folder of every new ext4 file system.
const OF_THE_FILE_SYSTEM: &str = "lost+found";

/// Any permission of the group and of others.
const OTHERS: u32 = 0o077;
/// Write permission of the group and of others.
const OTHERS_WRITE: u32 = 0o022;

/// Removes access to the data directory `root` for all users but `uid`, who runs Hearth.
///
/// # Errors
/// Another user owns the directory or an entry of it, or others can write to it and it contains foreign entries.
pub(super) fn ensure(root: &Path, uid: u32) -> Result<()> {
    let found = attributes(root)?;
    check_owner(root, &found, uid)?;
    let mode = found.mode();
    if mode & OTHERS != 0 {
        match foreign_entry(root)? {
            None => {
                close(root, mode)?;
                let path = root.display();
                tracing::warn!(%path, mode = %octal(mode), "data directory was open to other users, made private");
            }
            Some(entry) if mode & OTHERS_WRITE != 0 => bail!(
                "other users can write to the data directory {} (mode {}), and it cannot be made private because it \
                 also contains `{entry}`: choose a separate folder with --data-dir",
                root.display(),
                octal(mode)
            ),
            Some(entry) => {
                let path = root.display();
                tracing::warn!(%path, entry, "data directory has foreign entries, made only Hearth's files private");
            }
        }
    }
    for path in OWN.iter().map(|name| root.join(name)) {
        match attributes(&path) {
            Ok(found) => {
                check_owner(&path, &found, uid)?;
                if found.mode() & OTHERS != 0 {
                    close(&path, found.mode())?;
                }
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the reason why users other than `uid` can read the data directory or replace its files.
///
/// `None` if they cannot, or if the directory does not exist.
pub(super) fn exposure(root: &Path, uid: u32) -> Option<String> {
    let found = fs::metadata(root).ok()?;
    if found.uid() != uid {
        return Some(format!("{} belongs to user {}, not to the current user {uid}", root.display(), found.uid()));
    }
    let is_open = found.mode() & OTHERS != 0;
    is_open.then(|| format!("{} is open to other users (mode {})", root.display(), octal(found.mode())))
}

fn attributes(path: &Path) -> Result<Metadata> {
    fs::metadata(path).with_context(|| format!("reading the attributes of {}", path.display()))
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn check_owner(path: &Path, found: &Metadata, uid: u32) -> Result<()> {
    if found.uid() == uid {
        return Ok(());
    }
    bail!(
        "{} belongs to user {}, not to the current user {uid}: its owner could read and replace the keys of this \
         instance. Run Hearth as its owner, `chown -R {uid}` the data directory, or choose another with --data-dir",
        path.display(),
        found.uid()
    )
}

/// Returns the first entry that is not Hearth's.
fn foreign_entry(root: &Path) -> Result<Option<String>> {
    let list = || -> io::Result<Option<String>> {
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !OWN.contains(&name.as_str()) && name != OF_THE_FILE_SYSTEM {
                return Ok(Some(name));
            }
        }
        Ok(None)
    };
    list().with_context(|| format!("listing {}", root.display()))
}

fn close(path: &Path, mode: u32) -> Result<()> {
    let closed = Permissions::from_mode(mode & 0o7777 & !OTHERS);
    fs::set_permissions(path, closed).with_context(|| format!("removing other users' access to {}", path.display()))
}

fn octal(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

/// Folders that are created private, so that their content is never open to other users.
pub(super) fn folders(root: &Path) -> impl Iterator<Item = PathBuf> {
    ["", "tls", "programs", "guest", "artifacts", "executions", "run"].into_iter().map(|name| root.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("own file");
    }

    fn uid(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").uid()
    }

    #[test]
    fn a_dedicated_directory_becomes_private_with_its_content() {
        for before in [0o755, 0o777, 0o710] {
            let folder = tempfile::tempdir().expect("a folder");
            let root = folder.path();
            fs::create_dir(root.join(OF_THE_FILE_SYSTEM)).expect("a folder");
            fs::create_dir(root.join("artifacts")).expect("a folder");
            for file in ["hearth.db", "hearth.lock"] {
                fs::write(root.join(file), "").expect("a file");
                set(&root.join(file), 0o644);
            }
            set(&root.join("artifacts"), 0o755);
            set(root, before);
            assert!(exposure(root, uid(root)).is_some_and(|text| text.contains(&octal(before))));
            ensure(root, uid(root)).expect("it becomes private");
            assert_eq!(exposure(root, uid(root)), None);
            assert_eq!(mode(root), 0o700, "{before:o}");
            assert_eq!([mode(&root.join("artifacts")), mode(&root.join("hearth.db"))], [0o700, 0o600]);
        }
    }

    #[test]
    fn in_a_shared_directory_only_own_files_become_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::write(root.join("foreign"), "").expect("a file");
        set(&root.join("foreign"), 0o644);
        fs::create_dir(root.join("run")).expect("a folder");
        set(&root.join("run"), 0o755);
        set(root, 0o755);
        ensure(root, uid(root)).expect("it is allowed");
        assert_eq!([mode(root), mode(&root.join("run"))], [0o755, 0o700]);
        assert_eq!(mode(&root.join("foreign")), 0o644);
        // Users who can write to the directory could replace the keys.
        set(root, 0o1777);
        let error = ensure(root, uid(root)).expect_err("it is rejected").to_string();
        assert!(error.contains("foreign") && error.contains("--data-dir"), "{error}");
        assert_eq!(mode(root), 0o1777);
    }

    #[test]
    fn a_directory_of_another_user_is_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let error = ensure(root, uid(root) + 1).expect_err("it is rejected").to_string();
        assert!(error.contains("belongs to user") && error.contains("chown"), "{error}");
        assert!(exposure(root, uid(root) + 1).is_some());
    }
}
