//! What a path in a request means, and the folders above it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use crate::users::User;

/// Why a path means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("cannot expand user-specific home dir")]
    OtherHome,
    #[error("the path contains a NUL byte")]
    Nul,
}

/// The absolute path that `path` means for a user. Relative paths begin at the home directory, never at the default
/// working directory, which stands in for an empty path only. An absolute path is used as it is.
pub(crate) fn resolve(path: &str, user: &User, workdir: Option<&str>) -> Result<PathBuf, PathError> {
    let path = if path.is_empty() { workdir.unwrap_or_default() } else { path };
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    if path == "~" {
        return Ok(clean(&user.home));
    }
    if let Some(rest) = path.strip_prefix("~/") {
        return Ok(clean(&user.home.join(rest.trim_start_matches('/'))));
    }
    if path.starts_with('~') {
        return Err(PathError::OtherHome);
    }
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Ok(clean(&user.home.join(path)))
}

/// Resolves `.` and `..` by text alone.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// Why the folders above a path could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParentsError {
    #[error("path is a file: {0}")]
    NotADirectory(String),
    #[error("creating the directory {path}: {source}")]
    Io { path: String, source: io::Error },
}

/// Makes `folder` and everything above it that is missing; what is made belongs to the user. Several may make the same
/// tree at once. Blocks.
pub(crate) fn ensure_folders(folder: &Path, user: &User) -> Result<(), ParentsError> {
    let mut path = PathBuf::new();
    for component in folder.components() {
        path.push(component);
        let io = |source| ParentsError::Io { path: path.display().to_string(), source };
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => continue,
            Ok(_) => return Err(ParentsError::NotADirectory(path.display().to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(error)),
        }
        std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).map_err(io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user() -> User {
        User { name: "user".to_owned(), uid: 1000, gid: 1000, home: PathBuf::from("/home/user") }
    }

    #[test]
    fn paths_as_in_the_contract() {
        for (path, workdir, expected) in [
            ("", None, "/home/user"),
            ("", Some("/work"), "/work"),
            ("", Some("sub"), "/home/user/sub"),
            ("a/b", Some("/work"), "/home/user/a/b"),
            ("./a/../b", None, "/home/user/b"),
            ("../../../etc", None, "/etc"),
            ("~", None, "/home/user"),
            ("~/x", None, "/home/user/x"),
            ("/a/../b/./c", None, "/a/../b/./c"),
            ("/", None, "/"),
        ] {
            assert_eq!(resolve(path, &user(), workdir), Ok(PathBuf::from(expected)), "{path:?}");
        }
        assert_eq!(resolve("~root/x", &user(), None), Err(PathError::OtherHome));
        assert_eq!(resolve("a\0b", &user(), None), Err(PathError::Nul));
    }

    proptest! {
        #[test]
        fn relative_paths_are_absolute_and_clean(path in "[a-z./]{0,20}") {
            prop_assume!(!path.starts_with('/'));
            let resolved = resolve(&path, &user(), None).expect("no tilde, no NUL");
            prop_assert!(resolved.is_absolute());
            prop_assert!(resolved.components().all(|part| !matches!(part, Component::ParentDir)));
        }
    }
}
