//! The artifact sets of a node, as folders.
//!
//! ```text
//! <store>/<build id>/manifest.json  rootfs.ext4  memory  state
//! <store>/.draft-<build id>/...     being written; removed at start
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hearth_types::BuildId;

use crate::manifest::{Manifest, ManifestError};

const MANIFEST: &str = "manifest.json";
const ROOTFS: &str = "rootfs.ext4";
const MEMORY: &str = "memory";
const STATE: &str = "state";
const DRAFT_PREFIX: &str = ".draft-";

/// Failure of an operation on the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store has no set of this build.
    #[error("no artifacts of build {0} on this node")]
    Unknown(BuildId),
    /// The manifest of a set cannot be used.
    #[error("artifacts of build {build_id} are damaged")]
    Damaged { build_id: BuildId, source: ManifestError },
    /// A file operation failed.
    #[error("{action} `{}`", path.display())]
    Io {
        /// Attempted action.
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// Store of a node's artifact sets, each of which is the only copy on the node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    root: PathBuf,
}

/// A complete artifact set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactSet {
    folder: PathBuf,
    manifest: Manifest,
}

/// An artifact set that is being written. If it is dropped without [`commit`](Draft::commit), it is deleted.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    root: PathBuf,
    committed: bool,
}

impl ArtifactStore {
    /// Opens the store in `root` and creates that folder if it is missing. Deletes drafts of interrupted runs.
    ///
    /// Only one process at a time may write sets in one root.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(io_error("creating the artifact folder", &root))?;
        let store = Self { root };
        store.sweep_drafts()?;
        Ok(store)
    }

    /// Opens the store in `root` for reading. A missing root is an empty store.
    ///
    /// Creates and deletes nothing, so the owner may write sets at the same time.
    #[must_use]
    pub fn open_read_only(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn sweep_drafts(&self) -> Result<(), Error> {
        for entry in self.entries()? {
            if entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DRAFT_PREFIX)) {
                fs::remove_dir_all(&entry).map_err(io_error("deleting unfinished artifacts", &entry))?;
                tracing::info!(path = %entry.display(), "deleted unfinished artifacts of an interrupted run");
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<PathBuf>, Error> {
        let read = || -> io::Result<Vec<PathBuf>> {
            fs::read_dir(&self.root)?.map(|entry| entry.map(|entry| entry.path())).collect()
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result.map_err(io_error("listing the artifact folder", &self.root)),
        }
    }

    fn folder(&self, build_id: BuildId) -> PathBuf {
        self.root.join(build_id.to_string())
    }

    /// Returns the set of a build.
    pub fn get(&self, build_id: BuildId) -> Result<ArtifactSet, Error> {
        let folder = self.folder(build_id);
        let path = folder.join(MANIFEST);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Unknown(build_id)),
            Err(error) => return Err(io_error("reading the manifest", &path)(error)),
        };
        let manifest = Manifest::from_json(&json).map_err(|source| Error::Damaged { build_id, source })?;
        Ok(ArtifactSet { folder, manifest })
    }

    /// Returns all complete sets. Damaged ones are skipped and logged.
    pub fn list(&self) -> Result<Vec<ArtifactSet>, Error> {
        let mut sets = Vec::new();
        for entry in self.entries()? {
            let Some(build_id) = entry.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            match self.get(build_id) {
                Ok(set) => sets.push(set),
                Err(error) => tracing::warn!(%build_id, %error, "artifact set skipped"),
            }
        }
        Ok(sets)
    }

    /// Starts the set of a build. An earlier draft of it is deleted.
    pub fn create_draft(&self, build_id: BuildId) -> Result<Draft, Error> {
        let folder = self.root.join(format!("{DRAFT_PREFIX}{build_id}"));
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(io_error("deleting unfinished artifacts", &folder))?;
        }
        fs::create_dir(&folder).map_err(io_error("creating the artifact folder", &folder))?;
        Ok(Draft { folder, root: self.root.clone(), committed: false })
    }

    /// Deletes a set; an unknown one is success. Sandboxes that use it retain their open files.
    pub fn delete(&self, build_id: BuildId) -> Result<(), Error> {
        let folder = self.folder(build_id);
        // Renamed first to a name that readers ignore, so that no reader sees an incomplete set.
        let doomed = self.root.join(format!("{DRAFT_PREFIX}{build_id}"));
        match fs::rename(&folder, &doomed) {
            Ok(()) => fs::remove_dir_all(&doomed).map_err(io_error("deleting artifacts", &doomed)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("deleting artifacts", &folder)(error)),
        }
    }
}

impl ArtifactSet {
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the path of the root disk's read-only base: a raw ext4 image.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join(ROOTFS)
    }

    /// Returns the path of the guest memory: a byte-for-byte image, sparse.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.folder.join(MEMORY)
    }

    /// Returns the path of the device and CPU state, in the driver's own format.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join(STATE)
    }
}

impl Draft {
    /// Returns the path to write the root filesystem to.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join(ROOTFS)
    }

    /// Returns the path to write the memory image to.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.folder.join(MEMORY)
    }

    /// Returns the path to write the device state to.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// Returns a folder for the VMM's socket and logs while the set is made. [`commit`](Self::commit) deletes it.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.folder.join("scratch")
    }

    /// Syncs all files and makes the set visible.
    ///
    /// # Errors
    /// A file is missing or a file operation failed. No set is visible then, and the draft is deleted.
    pub fn commit(mut self, manifest: Manifest) -> Result<ArtifactSet, Error> {
        let scratch = self.scratch();
        if scratch.exists() {
            fs::remove_dir_all(&scratch).map_err(io_error("deleting the scratch folder", &scratch))?;
        }
        let path = self.folder.join(MANIFEST);
        fs::write(&path, manifest.to_json()).map_err(io_error("writing the manifest", &path))?;
        for file in [self.rootfs(), self.memory(), self.state(), path, self.folder.clone()] {
            sync(&file)?;
        }
        let folder = self.root.join(manifest.build_id.to_string());
        fs::rename(&self.folder, &folder).map_err(io_error("publishing the artifacts as", &folder))?;
        self.committed = true;
        sync(&self.root)?;
        Ok(ArtifactSet { folder, manifest })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(path = %self.folder.display(), %error, "could not delete unfinished artifacts");
        }
    }
}

/// Syncs a file or folder with fsync(2), which needs only a descriptor opened for reading.
fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("syncing", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    fn fill(draft: &Draft) {
        for path in [draft.rootfs(), draft.memory(), draft.state()] {
            fs::write(path, "x").expect("writable");
        }
    }

    #[test]
    fn a_set_appears_and_disappears_as_a_whole() {
        let root = tempfile::tempdir().expect("temporary folder");
        let store = ArtifactStore::open(root.path()).expect("opens");
        let manifest = manifest();
        let id = manifest.build_id;
        assert!(matches!(store.get(id), Err(Error::Unknown(unknown)) if unknown == id));
        let draft = store.create_draft(id).expect("creates");
        fill(&draft);
        assert!(store.list().expect("lists").is_empty());
        let set = draft.commit(manifest.clone()).expect("commits");
        assert_eq!(store.list().expect("lists"), std::slice::from_ref(&set));
        assert_eq!(store.get(id).expect("known").manifest(), &manifest);
        assert!(set.memory().exists());
        store.delete(id).expect("deletes");
        store.delete(id).expect("deletes twice");
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_read_only_store_keeps_the_owner_s_draft() {
        let root = tempfile::tempdir().expect("temporary folder");
        assert!(ArtifactStore::open_read_only(root.path().join("missing")).list().expect("lists").is_empty());
        let store = ArtifactStore::open(root.path()).expect("opens");
        let draft = store.create_draft(BuildId::generate()).expect("creates");
        assert!(ArtifactStore::open_read_only(root.path()).list().expect("lists").is_empty());
        assert!(draft.rootfs().parent().expect("a folder").exists());
    }

    #[test]
    fn an_incomplete_draft_is_never_published() {
        let root = tempfile::tempdir().expect("temporary folder");
        let store = ArtifactStore::open(root.path()).expect("opens");
        let manifest = manifest();
        let draft = store.create_draft(manifest.build_id).expect("creates");
        fs::write(draft.rootfs(), "x").expect("writable");
        assert!(matches!(draft.commit(manifest), Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_draft_of_a_killed_run_is_deleted() {
        let root = tempfile::tempdir().expect("temporary folder");
        let store = ArtifactStore::open(root.path()).expect("opens");
        std::mem::forget(store.create_draft(BuildId::generate()).expect("creates"));
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 1);
        ArtifactStore::open(root.path()).expect("opens again");
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 0);
    }
}
