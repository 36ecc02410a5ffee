//! Files that appear as a whole or not at all: written under another name, fsynced, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;

/// Prefix of the names of unfinished files and folders, which [`sweep`] removes.
pub(crate) const SCRATCH_PREFIX: &str = ".new-";

/// A folder that is being filled. It is removed on drop, unless it was published.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    published: bool,
}

/// Creates an empty folder in `folder`.
pub(crate) fn scratch(folder: &Path) -> Result<Scratch, Error> {
    let path = folder.join(format!("{SCRATCH_PREFIX}{}", std::process::id()));
    remove(&path)?;
    fs::create_dir_all(&path).map_err(Error::file("creating the folder", &path))?;
    Ok(Scratch { path, published: false })
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder visible as `target` and replaces an existing one.
    pub(crate) fn publish(mut self, target: &Path) -> Result<(), Error> {
        remove(target)?;
        sync_tree(&self.path)?;
        fs::rename(&self.path, target).map_err(Error::file("publishing", target))?;
        self.published = true;
        sync_folder(target.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove an unfinished folder");
        }
    }
}

/// Removes leftovers of interrupted runs in `folder`.
pub(crate) fn sweep(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::file("listing", folder))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file, or a folder with its contents. A missing one is success.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(Error::file("removing", path))
}

/// Returns the path for writing a file that will be renamed to `target`.
pub(crate) fn unfinished(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{SCRATCH_PREFIX}{name}"))
}

/// Syncs the file written at [`unfinished`] and renames it to `target`.
pub(crate) fn finish(target: &Path) -> Result<(), Error> {
    let fresh = unfinished(target);
    let finish = File::open(&fresh).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&fresh, target));
    finish.map_err(Error::file("publishing", target))?;
    sync_folder(target.parent().unwrap_or(Path::new("/")))
}

/// Writes a file as a whole and replaces an existing one.
pub(crate) fn publish(target: &Path, bytes: &[u8]) -> Result<(), Error> {
    let fresh = unfinished(target);
    let write = File::create(&fresh).and_then(|mut file| file.write_all(bytes));
    write.map_err(Error::file("writing", &fresh))?;
    finish(target)
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(Error::file("reading", path))
}

/// Syncs a folder with fsync(2), so that the names in it are on the disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file("syncing", folder))
}

/// Syncs all files of a folder with one syncfs(2), instead of thousands of fsyncs.
fn sync_tree(folder: &Path) -> Result<(), Error> {
    let opened = File::open(folder).map_err(Error::file("opening", folder))?;
    rustix::fs::syncfs(&opened).map_err(|errno| Error::file("syncing", folder)(errno.into()))
}

/// Returns a hash over texts, in hex.
///
/// Each text is preceded by its length, so that different lists give different bytes.
pub(crate) fn hash<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut sha = Sha256::new();
    for text in texts {
        sha.update((text.len() as u64).to_be_bytes());
        sha.update(text);
    }
    hex::encode(sha.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_as_a_whole_and_leftovers_are_removed() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("target");
        let fresh = scratch(root.path()).expect("creates");
        fs::write(fresh.path().join("file"), "x").expect("writes");
        fresh.publish(&target).expect("publishes");
        assert!(target.join("file").exists());
        drop(scratch(root.path()).expect("creates"));
        std::mem::forget(scratch(root.path()).expect("creates"));
        fs::write(unfinished(&root.path().join("image")), "half").expect("writes");
        assert_eq!(fs::read_dir(root.path()).expect("lists").count(), 3);
        sweep(root.path()).expect("sweeps");
        assert_eq!(fs::read_dir(root.path()).expect("lists").count(), 1);
    }

    #[test]
    fn lists_with_other_boundaries_have_other_hashes() {
        let one: [&[u8]; 2] = [b"ab", b"c"];
        let other: [&[u8]; 2] = [b"a", b"bc"];
        assert_ne!(hash(one), hash(other));
        assert_eq!(hash(one).len(), 64);
    }
}
