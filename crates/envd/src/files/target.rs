//! A file that is being written.
//!
//! The new content of a regular file is written beside the old one and replaces it atomically ([`Replacement`]):
//! concurrent readers see the whole old content, and an aborted upload changes nothing. A new file has its owner and
//! content as soon as it appears. The events that watches in the guest observe are the contract's: the file appears (if
//! it is new), its owner changes, it is written.
//!
//! Some files must be written in place: a file with several hard links, a mount point, a file in a directory where no
//! other file can be created, as below `/proc`. These receive their content as late as possible. Pipes and devices
//! receive the bytes as they arrive ([`Output`]), and never make a thread wait.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use http::StatusCode;
use rustix::fs::OFlags;

use super::metadata::{self, Metadata};
use super::{WrittenFile, is_full, write_failure};
use crate::failure::Failure;
use crate::filesystem::same_file;
use crate::path_calls::{BlockingDrop, Cancellation, Lane};
use crate::paths;
use crate::regular;
use crate::users::User;

mod output;
mod replacement;

use output::Output;
use replacement::{Replacement, ResolvedTarget};

/// Bytes read between two checks for cancellation while files are joined.
const JOIN_BYTES: u64 = 4 << 20;

/// Destination of an upload.
pub(super) struct Target {
    path: PathBuf,
    lane: Lane,
    kind: Kind,
}

enum Kind {
    Replacement(BlockingDrop<Replacement>),
    InPlace(BlockingDrop<File>),
    Output(Output),
}

impl Target {
    /// Opens a file for its new content and creates missing parent directories. The user becomes its owner.
    pub(super) async fn open(path: PathBuf, user: &User, lane: Lane) -> Result<Self, Failure> {
        let (user, opened_path, own) = (user.clone(), path.clone(), lane.clone());
        let kind = super::blocking(&lane, move || Kind::open(&opened_path, user, own)).await?;
        Ok(Self { path, lane, kind })
    }

    /// Appends `bytes` and returns the emptied buffer. `length` is the client's `Content-Length`.
    pub(super) async fn write(self, mut bytes: Vec<u8>, length: Option<u64>) -> Result<(Self, Vec<u8>), Failure> {
        let Self { path, lane, kind } = self;
        let failed = move |error: &io::Error| match length.filter(|_| is_full(error)) {
            Some(length) => Failure::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("attempted to write {length} bytes: not enough disk space available"),
            ),
            None => write_failure(error, "error writing file"),
        };
        if let Kind::Output(mut output) = kind {
            output.write(&bytes).await.map_err(|error| failed(&error))?;
            bytes.clear();
            return Ok((Self { path, lane, kind: Kind::Output(output) }, bytes));
        }
        let (kind, bytes) = super::blocking(&lane, move || {
            let mut file = match &kind {
                Kind::Replacement(replacement) => replacement.file(),
                Kind::InPlace(file) => file,
                Kind::Output(_) => return Ok((kind, bytes)),
            };
            file.write_all(&bytes).map_err(|error| failed(&error))?;
            bytes.clear();
            Ok((kind, bytes))
        })
        .await?;
        Ok((Self { path, lane, kind }, bytes))
    }

    /// Moves the file into place, if it is not there already.
    pub(super) async fn finish(self, metadata: &Metadata) -> Result<WrittenFile, Failure> {
        let Self { path, lane, kind } = self;
        let metadata = metadata.clone();
        super::blocking(&lane, move || kind.finish(&path, &metadata)).await
    }
}

impl Kind {
    /// Opens the destination. Blocks.
    fn open(path: &Path, user: User, lane: Lane) -> Result<Self, Failure> {
        ensure_parents(path, &user)?;
        match replacement::locate(path)? {
            ResolvedTarget::Other => Ok(Self::Output(Output::open(path, lane)?)),
            ResolvedTarget::Regular { folder, name } => match Replacement::create(folder, name, &user) {
                Ok(replacement) => Ok(Self::Replacement(BlockingDrop::new(replacement, lane))),
                Err(error) if is_full(&error) => Err(open_failure(&error)),
                // No other file can be created in that directory.
                Err(_) => Self::open_in_place(path, &user, lane),
            },
            ResolvedTarget::Unmovable => Self::open_in_place(path, &user, lane),
        }
    }

    fn open_in_place(path: &Path, user: &User, lane: Lane) -> Result<Self, Failure> {
        let opened = regular::open(path, OFlags::WRONLY | OFlags::CREATE);
        let file = opened.map_err(|error| open_failure(&error))?;
        replacement::empty(&file, user)?;
        Ok(Self::InPlace(BlockingDrop::light(file, lane)))
    }

    /// Finishes the file. Blocks.
    fn finish(self, path: &Path, metadata: &Metadata) -> Result<WrittenFile, Failure> {
        let attributes = |error: io::Error| write_failure(&error, "error writing metadata");
        match self {
            Self::Replacement(replacement) => replacement.into_inner().finish(metadata)?,
            Self::InPlace(file) => metadata::replace(&file.into_inner(), metadata).map_err(attributes)?,
            Self::Output(_) => {}
        }
        Ok(WrittenFile::new(path))
    }
}

fn ensure_parents(path: &Path, user: &User) -> Result<(), Failure> {
    let Some(folder) = path.parent() else { return Ok(()) };
    paths::ensure_directories(folder, user)
        .map_err(|error| Failure::internal(format!("error ensuring directories: {error}")))
}

fn owner_failure(error: &io::Error) -> Failure {
    Failure::internal(format!("error changing file ownership: {error}"))
}

fn open_failure(error: &io::Error) -> Failure {
    if is_full(error) {
        Failure::new(StatusCode::INSUFFICIENT_STORAGE, format!("not enough inodes available: {error}"))
    } else {
        Failure::internal(format!("error opening file: {error}"))
    }
}

/// A file to be joined into another.
pub(super) struct Source {
    /// Path as the client wrote it.
    pub(super) given: String,
    pub(super) path: PathBuf,
}

/// Joins files into one, which appears atomically, and removes the sources.
///
/// Stops if the client disconnects before the file appears. Blocks.
pub(super) fn compose(
    sources: &[Source],
    destination: &Path,
    user: &User,
    cancellation: &Cancellation,
) -> Result<WrittenFile, Failure> {
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
    if destination.is_dir() {
        return Err(Failure::internal(format!("error composing files: {} is a directory", destination.display())));
    }
    let ResolvedTarget::Regular { folder, name } = replacement::locate(destination)? else {
        let text = format!("destination cannot be replaced: {}", destination.display());
        return Err(Failure::bad_request(text));
    };
    let target = Replacement::create(folder, name, user).map_err(|error| open_failure(&error))?;
    for source in sources {
        join(&source.path, target.file(), cancellation)
            .map_err(|error| write_failure(&error, "error composing files"))?;
    }
    target.finish(&Metadata::new())?;
    for source in sources {
        let _ = fs::remove_file(&source.path);
    }
    Ok(WrittenFile::new(destination))
}

fn join(source: &Path, mut target: &File, cancellation: &Cancellation) -> io::Result<()> {
    let source = regular::open(source, OFlags::RDONLY)?;
    loop {
        cancellation.check()?;
        // `io::copy` uses copy_file_range(2) where the file system supports it.
        if io::copy(&mut io::Read::take(&source, JOIN_BYTES), &mut target)? == 0 {
            return Ok(());
        }
    }
}

/// Makes the user the owner of a file, if that is not so already.
///
/// Errors of file systems without owners, such as many FUSE ones, are ignored.
fn ensure_owner(file: &File, user: &User) -> io::Result<()> {
    let found = file.metadata()?;
    if (found.uid(), found.gid()) == (user.uid, user.gid) {
        return Ok(());
    }
    match std::os::unix::fs::fchown(file, Some(user.uid), Some(user.gid)) {
        Err(error) if paths::has_no_owners(&error) => Ok(()),
        owned => owned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> User {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        User { name: "me".to_owned(), uid, gid, home: "/".into() }
    }

    #[test]
    fn composing_removes_the_sources_and_temporary_files() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let root = folder.path();
        let source = |name: &str| Source { given: name.to_owned(), path: root.join(name) };
        for (name, text) in [("a", "one "), ("b", "two")] {
            fs::write(root.join(name), text).expect("write");
        }
        fs::create_dir(root.join("folder")).expect("create");
        let status = |names: &[&str], destination: &str| {
            let sources: Vec<_> = names.iter().map(|name| source(name)).collect();
            compose(&sources, &root.join(destination), &me(), &Cancellation::default())
                .map_err(|failure| failure.status().as_u16())
                .err()
        };
        assert_eq!(status(&["a", "nope"], "out"), Some(404));
        assert_eq!(status(&["a", "folder"], "out"), Some(400));
        assert_eq!(status(&["a", "b"], "b"), Some(400));
        assert_eq!(status(&["a", "b"], "folder"), Some(500));
        assert_eq!(status(&["a", "b"], "new/out"), None);
        assert_eq!(fs::read_to_string(root.join("new/out")).expect("write"), "one two");
        let mut left: Vec<_> = fs::read_dir(root).expect("list").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["folder", "new"]);
        assert_eq!(fs::read_dir(root.join("new")).expect("list").count(), 1);
    }
}
