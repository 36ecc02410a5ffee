//! The artifact sets of a node, as folders.
//!
//! ```text
//! <cache>/<build id>/manifest.json  rootfs.ext4  memory  state
//! <cache>/.draft-<build id>/...     being written; swept at start
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

/// Why the cache could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such set here.
    #[error("no artifacts of build {0} on this node")]
    Unknown(BuildId),
    /// A set whose manifest cannot be used.
    #[error("artifacts of build {build_id} are damaged")]
    Damaged {
        /// The set.
        build_id: BuildId,
        /// What is wrong with its manifest.
        source: ManifestError,
    },
    /// The operating system refused.
    #[error("{action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// The artifact sets of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A complete set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactSet {
    folder: PathBuf,
    manifest: Manifest,
}

/// A set that is being written. Dropped without [`commit`](Draft::commit), it is removed.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    root: PathBuf,
    committed: bool,
}

impl Cache {
    /// Opens the cache in `root`, which is made when missing; removes drafts that an interrupted run left.
    ///
    /// One process at a time may write sets below one root.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(io_error("creating the artifact folder", &root))?;
        let cache = Self { root };
        cache.sweep_drafts()?;
        Ok(cache)
    }

    /// A cache in `root` for looking only: nothing is made or removed, so its owner may be at work. A missing root is empty.
    #[must_use]
    pub fn view(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn sweep_drafts(&self) -> Result<(), Error> {
        for entry in self.entries()? {
            if entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DRAFT_PREFIX)) {
                fs::remove_dir_all(&entry).map_err(io_error("removing the unfinished artifacts", &entry))?;
                tracing::info!(path = %entry.display(), "removed artifacts that an interrupted run left unfinished");
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

    /// The set of a build.
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

    /// All complete sets. Damaged ones are skipped and logged.
    pub fn list(&self) -> Result<Vec<ArtifactSet>, Error> {
        let mut sets = Vec::new();
        for entry in self.entries()? {
            let Some(build_id) = entry.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            match self.get(build_id) {
                Ok(set) => sets.push(set),
                Err(error) => tracing::warn!(%build_id, %error, "skipped an artifact set"),
            }
        }
        Ok(sets)
    }

    /// Begins the set of a build. An earlier draft of it is thrown away.
    pub fn begin(&self, build_id: BuildId) -> Result<Draft, Error> {
        let folder = self.root.join(format!("{DRAFT_PREFIX}{build_id}"));
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(io_error("removing the unfinished artifacts", &folder))?;
        }
        fs::create_dir(&folder).map_err(io_error("creating the artifact folder", &folder))?;
        Ok(Draft { folder, root: self.root.clone(), committed: false })
    }

    /// Removes a set; an unknown one is success. Sandboxes that use it keep their open files.
    pub fn remove(&self, build_id: BuildId) -> Result<(), Error> {
        let folder = self.folder(build_id);
        // First under a name that no reader looks for, so that nobody sees half a set.
        let doomed = self.root.join(format!("{DRAFT_PREFIX}{build_id}"));
        match fs::rename(&folder, &doomed) {
            Ok(()) => fs::remove_dir_all(&doomed).map_err(io_error("removing artifacts", &doomed)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("removing artifacts", &folder)(error)),
        }
    }
}

impl ArtifactSet {
    /// What the set is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The read-only base of the root disk: a raw ext4 image.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join(ROOTFS)
    }

    /// Guest memory, byte for byte, sparse.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.folder.join(MEMORY)
    }

    /// Device and CPU state in the driver's own form.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join(STATE)
    }
}

impl Draft {
    /// Where the root filesystem goes.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join(ROOTFS)
    }

    /// Where the memory image goes.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.folder.join(MEMORY)
    }

    /// Where the device state goes.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// Where a VMM may keep its socket and logs while the set is made; removed by [`commit`](Self::commit).
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.folder.join("scratch")
    }

    /// Makes the set visible, once all its files are on the disk.
    ///
    /// # Errors
    /// A file is missing or the disk refuses; then nothing is visible and the draft is removed.
    pub fn commit(mut self, manifest: Manifest) -> Result<ArtifactSet, Error> {
        let scratch = self.scratch();
        if scratch.exists() {
            fs::remove_dir_all(&scratch).map_err(io_error("removing the scratch folder", &scratch))?;
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
            tracing::warn!(path = %self.folder.display(), %error, "could not remove unfinished artifacts");
        }
    }
}

/// fsync(2), which also works on folders and on files opened for reading.
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
    fn a_set_appears_whole_and_goes_whole() {
        let root = tempfile::tempdir().expect("temporary folder");
        let cache = Cache::open(root.path()).expect("opens");
        let manifest = manifest();
        let id = manifest.build_id;
        assert!(matches!(cache.get(id), Err(Error::Unknown(unknown)) if unknown == id));
        let draft = cache.begin(id).expect("begins");
        fill(&draft);
        assert!(cache.list().expect("lists").is_empty());
        let set = draft.commit(manifest.clone()).expect("commits");
        assert_eq!(cache.list().expect("lists"), std::slice::from_ref(&set));
        assert_eq!(cache.get(id).expect("known").manifest(), &manifest);
        assert!(set.memory().exists());
        cache.remove(id).expect("removes");
        cache.remove(id).expect("removes twice");
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_view_leaves_the_owner_s_draft_alone() {
        let root = tempfile::tempdir().expect("temporary folder");
        assert!(Cache::view(root.path().join("missing")).list().expect("lists").is_empty());
        let cache = Cache::open(root.path()).expect("opens");
        let draft = cache.begin(BuildId::generate()).expect("begins");
        assert!(Cache::view(root.path()).list().expect("lists").is_empty());
        assert!(draft.rootfs().parent().expect("a folder").exists());
    }

    #[test]
    fn an_incomplete_draft_is_never_published() {
        let root = tempfile::tempdir().expect("temporary folder");
        let cache = Cache::open(root.path()).expect("opens");
        let manifest = manifest();
        let draft = cache.begin(manifest.build_id).expect("begins");
        fs::write(draft.rootfs(), "x").expect("writable");
        assert!(matches!(draft.commit(manifest), Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_draft_of_a_killed_run_is_swept() {
        let root = tempfile::tempdir().expect("temporary folder");
        let cache = Cache::open(root.path()).expect("opens");
        std::mem::forget(cache.begin(BuildId::generate()).expect("begins"));
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 1);
        Cache::open(root.path()).expect("opens again");
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 0);
    }
}
