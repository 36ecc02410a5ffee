//! Keeps other users of the host out of the data directory, also where the folder was made beforehand.
//!
//! A folder that holds only what Hearth makes is closed as a whole. One that is shared with other things is left as it is, and
//! only Hearth's own files and folders in it are closed: closing `/srv` or somebody's home would break what else is there.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What Hearth makes directly in a data directory; the files beside a database are SQLite's.
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
/// Every new ext4 has it.
const OF_THE_FILE_SYSTEM: &str = "lost+found";

/// Rights of the group and of others: to do anything, and to change what is there.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;

/// Closes the data directory `root` for everybody but the user `uid`, who runs Hearth.
///
/// # Errors
/// Somebody else owns the directory or something in it, or others may write to it and it cannot be closed.
pub(super) fn ensure(root: &Path, uid: u32) -> Result<()> {
    let found = attributes(root)?;
    check_owner(root, &found, uid)?;
    let mode = found.mode();
    if mode & OTHERS != 0 {
        match foreign_entry(root)? {
            None => {
                close(root, mode)?;
                tracing::warn!(path = %root.display(), mode = %octal(mode), "data directory was open to other users, closed it");
            }
            Some(entry) if mode & OTHERS_WRITE != 0 => bail!(
                "the data directory {} may be written to by others (mode {}), and it is not Hearth's alone (`{entry}` is in \
                 it), so that it cannot be closed: choose a folder of its own with --data-dir",
                root.display(),
                octal(mode)
            ),
            Some(entry) => {
                let path = root.display();
                tracing::warn!(%path, entry, "data directory is shared with other things, closing only Hearth's own files");
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

/// Returns why others than the user `uid` may see the data directory or replace what is in it; `None` if they may not, or if
/// there is none yet.
pub(super) fn exposure(root: &Path, uid: u32) -> Option<String> {
    let found = fs::metadata(root).ok()?;
    if found.uid() != uid {
        return Some(format!("{} belongs to user {}, and this is user {uid}", root.display(), found.uid()));
    }
    let is_open = found.mode() & OTHERS != 0;
    is_open.then(|| format!("{} is open to other users (mode {})", root.display(), octal(found.mode())))
}

fn attributes(path: &Path) -> Result<Metadata> {
    fs::metadata(path).with_context(|| format!("looking at {}", path.display()))
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn check_owner(path: &Path, found: &Metadata, uid: u32) -> Result<()> {
    if found.uid() == uid {
        return Ok(());
    }
    bail!(
        "{} belongs to user {}, and this is user {uid}: its owner could read and replace the keys of this instance. Run Hearth \
         as its owner, `chown -R {uid}` the data directory, or choose another with --data-dir",
        path.display(),
        found.uid()
    )
}

/// The first entry that Hearth did not make.
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
    fs::set_permissions(path, closed).with_context(|| format!("closing {} to other users", path.display()))
}

fn octal(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

/// Folders that are made closed, so that nothing below them is ever open.
pub(super) fn folders(root: &Path) -> impl Iterator<Item = PathBuf> {
    ["", "tls", "programs", "guest", "artifacts", "executions", "run"].into_iter().map(|name| root.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
    }

    fn uid(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").uid()
    }

    #[test]
    fn a_directory_of_its_own_is_closed_with_all_that_is_in_it() {
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
            ensure(root, uid(root)).expect("it is closed");
            assert_eq!(exposure(root, uid(root)), None);
            assert_eq!(mode(root), 0o700, "{before:o}");
            assert_eq!([mode(&root.join("artifacts")), mode(&root.join("hearth.db"))], [0o700, 0o600]);
        }
    }

    #[test]
    fn a_shared_directory_stays_open_and_what_is_ours_in_it_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::write(root.join("of-somebody-else"), "").expect("a file");
        set(&root.join("of-somebody-else"), 0o644);
        fs::create_dir(root.join("run")).expect("a folder");
        set(&root.join("run"), 0o755);
        set(root, 0o755);
        ensure(root, uid(root)).expect("it is allowed");
        assert_eq!([mode(root), mode(&root.join("run"))], [0o755, 0o700]);
        assert_eq!(mode(&root.join("of-somebody-else")), 0o644);
        // Who may write to it could put other keys into the place of ours.
        set(root, 0o1777);
        let error = ensure(root, uid(root)).expect_err("it is refused").to_string();
        assert!(error.contains("of-somebody-else") && error.contains("--data-dir"), "{error}");
        assert_eq!(mode(root), 0o1777);
    }

    #[test]
    fn what_belongs_to_somebody_else_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let error = ensure(root, uid(root) + 1).expect_err("it is refused").to_string();
        assert!(error.contains("belongs to user") && error.contains("chown"), "{error}");
        assert!(exposure(root, uid(root) + 1).is_some());
    }
}
