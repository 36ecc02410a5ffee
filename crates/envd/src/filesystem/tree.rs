//! The unary calls. All of them block.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use connectrpc::ConnectError;
use hearth_envd_api::filesystem::EntryInfo;

use super::entry::describe;
use super::{moving, removing};
use crate::path_calls::Cancellation;
use crate::paths;
use crate::users::{NameCache, User};

/// Entry limit of one listing. At half a kilobyte each, this bounds the memory of a listing of the whole disk.
const LISTED_MAX: usize = 200_000;
/// ELOOP: a symbolic link that leads to itself, or too many links.
const LOOP: i32 = 40;

pub(super) fn stat(path: &Path) -> Result<EntryInfo, ConnectError> {
    describe(path, &mut NameCache::default()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ConnectError::not_found(format!("file not found: {}", path.display())),
        _ => stat_error(&error),
    })
}

fn stat_error(error: &io::Error) -> ConnectError {
    ConnectError::internal(format!("error getting file info: {error}"))
}

fn describe_entry(path: &Path) -> Result<EntryInfo, ConnectError> {
    describe(path, &mut NameCache::default()).map_err(|error| stat_error(&error))
}

fn ensure_directories(folder: &Path, user: &User) -> Result<(), ConnectError> {
    paths::ensure_directories(folder, user).map_err(|error| ConnectError::internal(error.to_string()))
}

/// Creates a directory and the missing ones above it.
pub(super) fn make_dir(path: &Path, user: &User) -> Result<EntryInfo, ConnectError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(ConnectError::already_exists(format!("directory already exists: {}", path.display())));
        }
        Ok(_) => {
            let text = format!("path already exists but it is not a directory: {}", path.display());
            return Err(ConnectError::invalid_argument(text));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(stat_error(&error)),
    }
    ensure_directories(path, user)?;
    describe_entry(path)
}

/// Renames with rename(2) after creating the directories above the destination; copies to another file system
/// ([`moving`]).
pub(super) fn rename(
    source: &Path,
    destination: &Path,
    user: &User,
    cancellation: &Cancellation,
) -> Result<EntryInfo, ConnectError> {
    if let Some(folder) = destination.parent() {
        ensure_directories(folder, user)?;
    }
    let renamed = match fs::rename(source, destination) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            moving::across(source, destination, cancellation)
        }
        renamed => renamed,
    };
    renamed.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ConnectError::not_found(format!("source file not found: {}", source.display())),
        _ => ConnectError::internal(format!("error renaming: {error}")),
    })?;
    describe_entry(destination)
}

/// Removes recursively. A link is removed, not followed; a missing path is no error.
pub(super) fn remove(path: &Path) -> Result<(), ConnectError> {
    match removing::remove_path(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ConnectError::internal(format!("error removing file or directory: {error}"))),
    }
}

/// Lists everything down to `depth` levels below a directory.
///
/// Each directory stands before its children; names are in byte order.
pub(super) fn list(path: &Path, depth: u32, cancellation: &Cancellation) -> Result<Vec<EntryInfo>, ConnectError> {
    let found = fs::metadata(path).map_err(|error| match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => ConnectError::not_found(format!("path not found: {}", path.display())),
        (_, Some(LOOP)) => {
            let text = format!("cyclic symlink or chain over 255 links: {}", path.display());
            ConnectError::failed_precondition(text)
        }
        _ => stat_error(&error),
    })?;
    if !found.is_dir() {
        return Err(ConnectError::invalid_argument(format!("path is not a directory: {}", path.display())));
    }
    let reading = |error: io::Error| ConnectError::internal(format!("error reading directory: {error}"));
    // The walk follows only the root's link; replies name entries by the requested path.
    let real = fs::canonicalize(path).map_err(reading)?;
    let depth = usize::try_from(depth).unwrap_or(usize::MAX);
    let mut names = NameCache::default();
    let mut entries = Vec::new();
    for entry in walkdir::WalkDir::new(&real).min_depth(1).max_depth(depth).sort_by_file_name() {
        cancellation.check().map_err(reading)?;
        if entries.len() >= LISTED_MAX {
            let text = format!("more than {LISTED_MAX} entries: list with a smaller depth, or one folder at a time");
            return Err(ConnectError::resource_exhausted(text));
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => continue,
            Err(error) => return Err(reading(error.into())),
        };
        let relative = entry.path().strip_prefix(&real).unwrap_or(entry.path());
        match describe(&path.join(relative), &mut names) {
            Ok(info) => entries.push(info),
            // The entry was removed during the walk.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(stat_error(&error)),
        }
    }
    Ok(entries)
}

/// Returns true if two paths are the same file.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => paths::clean(a) == paths::clean(b),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use connectrpc::ErrorCode;

    use super::*;

    fn me() -> User {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        User { name: "me".to_owned(), uid, gid, home: "/".into() }
    }

    #[test]
    fn lists_depth_first_in_byte_order() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let root = folder.path();
        for file in ["file1.txt", "subdir1/a", "subdir1/deep/b", "subdir10/c", "Z"] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("create");
            fs::write(path, "x").expect("write");
        }
        symlink(root.join("subdir1"), root.join("link")).expect("link");
        let names = |depth| -> Vec<String> {
            let entries = list(root, depth, &Cancellation::default()).expect("list");
            entries.iter().map(|entry| entry.path[root.as_os_str().len() + 1..].to_owned()).collect()
        };
        assert_eq!(names(1), ["Z", "file1.txt", "link", "subdir1", "subdir10"]);
        let two = ["Z", "file1.txt", "link", "subdir1", "subdir1/a", "subdir1/deep", "subdir10", "subdir10/c"];
        assert_eq!(names(2), two);
        assert_eq!(names(u32::MAX).len(), 9);
        // Through a link to the root, entries are named by the requested path.
        let alias = root.join("alias");
        symlink(root.join("subdir10"), &alias).expect("link");
        let entries = list(&alias, 1, &Cancellation::default()).expect("list");
        assert_eq!(entries[0].path, alias.join("c").to_str().expect("UTF-8"));
    }

    #[test]
    fn errors_as_in_the_contract() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let root = folder.path();
        fs::write(root.join("file"), "x").expect("write");
        fs::create_dir_all(root.join("full/inner")).expect("create");
        symlink(root.join("loop"), root.join("loop")).expect("link");
        symlink(root.join("nowhere"), root.join("broken")).expect("link");
        let code = |result: Result<EntryInfo, ConnectError>| result.map_err(|error| error.code).err();
        let listed = |name: &str| list(&root.join(name), 1, &Cancellation::default()).map_err(|error| error.code).err();
        assert_eq!(code(stat(&root.join("nope"))), Some(ErrorCode::NotFound));
        assert_eq!(code(stat(&root.join("file/x"))), Some(ErrorCode::Internal));
        assert_eq!(code(stat(&root.join("broken"))), None);
        assert_eq!(listed("nope"), Some(ErrorCode::NotFound));
        assert_eq!(listed("broken"), Some(ErrorCode::NotFound));
        assert_eq!(listed("loop"), Some(ErrorCode::FailedPrecondition));
        assert_eq!(listed("file"), Some(ErrorCode::InvalidArgument));
        assert_eq!(code(make_dir(&root.join("full"), &me())), Some(ErrorCode::AlreadyExists));
        assert_eq!(code(make_dir(&root.join("file"), &me())), Some(ErrorCode::InvalidArgument));
        assert_eq!(code(make_dir(&root.join("file/x"), &me())), Some(ErrorCode::Internal));
        assert_eq!(code(make_dir(&root.join("new/a/b"), &me())), None);
        assert_eq!(
            code(rename(&root.join("nope"), &root.join("x"), &me(), &Cancellation::default())),
            Some(ErrorCode::NotFound)
        );
        assert_eq!(
            code(rename(&root.join("new"), &root.join("full"), &me(), &Cancellation::default())),
            Some(ErrorCode::Internal)
        );
        assert_eq!(code(rename(&root.join("file"), &root.join("made/file"), &me(), &Cancellation::default())), None);
        for gone in ["nope", "full", "loop", "broken"] {
            assert!(remove(&root.join(gone)).is_ok(), "{gone}");
            assert!(!root.join(gone).exists(), "{gone}");
        }
        assert!(remove(&root.join("made/file/x")).is_err());
    }
}
