//! A file that is being written. All of it blocks.
//!
//! The order of steps can be seen by watches in the guest and is part of the contract: parents, owner of an existing file,
//! open and truncate, owner of a new file, data, metadata. No temporary file: who uploads half a file has half a file. Only
//! composing, which takes its sources away, puts its result in place at once.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use http::StatusCode;

use super::metadata::{self, Metadata};
use super::{Written, is_full, write_failure};
use crate::failure::Failure;
use crate::filesystem::same_file;
use crate::paths;
use crate::sys;
use crate::users::User;

/// Bytes of a temporary file's name.
const TEMPORARY_NAME_BYTES: usize = 16;

/// An open file.
pub(super) struct Target {
    file: File,
    path: PathBuf,
}

impl Target {
    /// Opens a file for its new content, with the folders above it; it belongs to the user from now on.
    pub(super) fn open(path: PathBuf, user: &User) -> Result<Self, Failure> {
        ensure_parents(&path, user)?;
        let exists = match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                return Err(Failure::bad_request(format!("path is a directory: {}", path.display())));
            }
            Ok(_) => match chown(&path, Some(user.uid), Some(user.gid)) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(owning(&error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(Failure::internal(format!("error getting file info: {error}"))),
        };
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o666).open(&path);
        let file = file.map_err(|error| opening(&error))?;
        if !exists {
            fchown(&file, Some(user.uid), Some(user.gid)).map_err(|error| owning(&error))?;
        }
        Ok(Self { file, path })
    }

    /// Appends `bytes`; gives the emptied buffer back. `length` is what the client announced.
    pub(super) fn write(mut self, mut bytes: Vec<u8>, length: Option<u64>) -> Result<(Self, Vec<u8>), Failure> {
        if let Err(error) = self.file.write_all(&bytes) {
            return Err(match length.filter(|_| is_full(&error)) {
                Some(length) => Failure::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    format!("attempted to write {length} bytes: not enough disk space available"),
                ),
                None => write_failure(&error, "error writing file"),
            });
        }
        bytes.clear();
        Ok((self, bytes))
    }

    pub(super) fn finish(self, metadata: &Metadata) -> Result<Written, Failure> {
        metadata::replace(&self.file, metadata).map_err(|error| write_failure(&error, "error writing metadata"))?;
        drop(self.file);
        Ok(Written::new(&self.path))
    }
}

fn ensure_parents(path: &Path, user: &User) -> Result<(), Failure> {
    let Some(folder) = path.parent() else { return Ok(()) };
    paths::ensure_folders(folder, user)
        .map_err(|error| Failure::internal(format!("error ensuring directories: {error}")))
}

fn owning(error: &io::Error) -> Failure {
    Failure::internal(format!("error changing file ownership: {error}"))
}

fn opening(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::StorageFull {
        Failure::new(StatusCode::INSUFFICIENT_STORAGE, format!("not enough inodes available: {error}"))
    } else {
        Failure::internal(format!("error opening file: {error}"))
    }
}

/// A file to be joined into another.
pub(super) struct Source {
    /// As the client wrote it.
    pub(super) given: String,
    pub(super) path: PathBuf,
}

/// Joins files into one, by way of a temporary file beside it; the sources go.
pub(super) fn compose(sources: &[Source], destination: &Path, user: &User) -> Result<Written, Failure> {
    for Source { given, path } in sources {
        let found = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::new(StatusCode::NOT_FOUND, format!("source file not found: {given}")),
            _ => Failure::internal(format!("error getting file info: {error}")),
        })?;
        if !found.is_file() {
            return Err(Failure::bad_request(format!("source is not a regular file: {given}")));
        }
        if same_file(path, destination) {
            return Err(Failure::bad_request(format!("source and destination are the same file: {given}")));
        }
    }
    ensure_parents(destination, user)?;
    let random = sys::random_hex::<TEMPORARY_NAME_BYTES>().map_err(|error| opening(&error))?;
    let mut temporary = OsString::from(destination);
    temporary.push(format!(".e2b-compose.{random}.tmp"));
    let temporary = PathBuf::from(temporary);
    join(sources, &temporary, destination, user).inspect_err(|_| {
        // It may not have come to be.
        let _ = fs::remove_file(&temporary);
    })?;
    for source in sources {
        let _ = fs::remove_file(&source.path);
    }
    Ok(Written::new(destination))
}

fn join(sources: &[Source], temporary: &Path, destination: &Path, user: &User) -> Result<(), Failure> {
    let target = OpenOptions::new().write(true).create_new(true).mode(0o666).open(temporary);
    let mut target = target.map_err(|error| opening(&error))?;
    fchown(&target, Some(user.uid), Some(user.gid)).map_err(|error| owning(&error))?;
    let failed = |error: io::Error| write_failure(&error, "error composing files");
    for source in sources {
        let mut source = File::open(&source.path).map_err(failed)?;
        // copy_file_range(2) where the file system has it.
        io::copy(&mut source, &mut target).map_err(failed)?;
    }
    fs::rename(temporary, destination).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> User {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        User { name: "me".to_owned(), uid, gid, home: "/".into() }
    }

    #[test]
    fn composing_takes_the_sources_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let root = folder.path();
        let source = |name: &str| Source { given: name.to_owned(), path: root.join(name) };
        for (name, text) in [("a", "one "), ("b", "two")] {
            fs::write(root.join(name), text).expect("writes");
        }
        fs::create_dir(root.join("folder")).expect("creates");
        let status = |names: &[&str], destination: &str| {
            let sources: Vec<_> = names.iter().map(|name| source(name)).collect();
            compose(&sources, &root.join(destination), &me()).map_err(|failure| failure.status().as_u16()).err()
        };
        assert_eq!(status(&["a", "nope"], "out"), Some(404));
        assert_eq!(status(&["a", "folder"], "out"), Some(400));
        assert_eq!(status(&["a", "b"], "b"), Some(400));
        assert_eq!(status(&["a", "b"], "folder"), Some(500));
        assert_eq!(status(&["a", "b"], "new/out"), None);
        assert_eq!(fs::read_to_string(root.join("new/out")).expect("written"), "one two");
        let mut left: Vec<_> = fs::read_dir(root).expect("lists").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["folder", "new"]);
        assert_eq!(fs::read_dir(root.join("new")).expect("lists").count(), 1);
    }
}
