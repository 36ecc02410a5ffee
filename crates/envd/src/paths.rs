//! Resolution of paths in requests, and creation of parent directories.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use crate::users::User;

/// Error of a path that cannot be resolved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("cannot expand user-specific home dir")]
    OtherHome,
    #[error("the path contains a NUL byte")]
    Nul,
}

/// Returns the absolute path of `path` for a user.
///
/// Relative paths start at the home directory, never at the default working directory, which replaces only an empty
/// path. An absolute path is returned unchanged.
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

/// Resolves `.` and `..` lexically.
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

/// Error of the creation of parent directories.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParentsError {
    #[error("path is a file: {0}")]
    NotADirectory(String),
    #[error("creating the directory {path}: {source}")]
    Io { path: String, source: io::Error },
}

/// Creates `folder` and its missing parents, with the user as the owner.
///
/// Concurrent calls may create the same tree. Blocks.
pub(crate) fn ensure_directories(folder: &Path, user: &User) -> Result<(), ParentsError> {
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
        match std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)) {
            Err(error) if has_no_owners(&error) => {}
            owned => owned.map_err(io)?,
        }
    }
    Ok(())
}

/// Returns true if root could not change an owner because the file system does not support it.
///
/// That is so on many FUSE and network mounts and for the kernel's own files.
pub(crate) fn has_no_owners(error: &io::Error) -> bool {
    let errors = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL].map(|errno| Some(errno.raw_os_error()));
    rustix::process::geteuid().is_root() && errors.contains(&error.raw_os_error())
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

    /// A second implementation of the contract's rules (section 5.3), on strings. Returns `None` for an invalid path.
    fn model(path: &str, home: &str, workdir: Option<&str>) -> Option<String> {
        let path = match (path, workdir) {
            ("", Some(workdir)) => workdir,
            _ => path,
        };
        if path.contains('\0') {
            return None;
        }
        let below = match path.as_bytes() {
            [b'~'] => "",
            [b'~', b'/', ..] => &path[2..],
            [b'~', ..] => return None,
            [b'/', ..] => return Some(path.to_owned()),
            _ => path,
        };
        let mut names: Vec<&str> = Vec::new();
        for name in home.split('/').chain(below.split('/')) {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        Some(format!("/{}", names.join("/")))
    }

    /// Generates texts that consist mostly of the special components of a path.
    fn path() -> impl Strategy<Value = String> {
        prop_oneof![4 => "[a~./]{0,16}", 2 => "~?/?((\\.{0,3}|[a-zü ]{1,3})/{0,2}){0,6}", 1 => any::<String>()]
    }

    fn home() -> impl Strategy<Value = String> {
        prop_oneof![Just("/".to_owned()), "(/[a-z.]{1,4}){1,3}/?"]
    }

    proptest! {
        #[test]
        fn paths_are_resolved_by_the_rules(
            path in path(),
            home in home(),
            workdir in proptest::option::of(path()),
        ) {
            let user = User { home: PathBuf::from(&home), ..user() };
            let resolved = resolve(&path, &user, workdir.as_deref());
            let expected = model(&path, &home, workdir.as_deref());
            // Compared as text: `Path` treats `/a/./b` and `/a/b` as equal.
            prop_assert_eq!(resolved.as_deref().ok().map(Path::as_os_str), expected.as_deref().map(std::ffi::OsStr::new));
            if let Ok(resolved) = resolved {
                prop_assert!(resolved.is_absolute());
            }
        }

        #[test]
        fn absolute_paths_are_unchanged(path in "/[^\\x00]{0,30}", workdir in proptest::option::of(path())) {
            let resolved = resolve(&path, &user(), workdir.as_deref()).expect("no NUL");
            prop_assert_eq!(resolved.as_os_str(), path.as_str());
        }

        #[test]
        fn cleaning_is_idempotent(path in path()) {
            let cleaned = clean(Path::new(&path));
            prop_assert!(cleaned.is_absolute());
            prop_assert!(cleaned.components().skip(1).all(|part| matches!(part, Component::Normal(_))));
            let again = clean(&cleaned);
            prop_assert_eq!(again.as_os_str(), cleaned.as_os_str());
        }
    }
}
