//! The guest's users, read from its files at each call, because programs may create users at any time.
//!
//! No name service is used: the daemon is static and must run in any image.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::regular;

/// Longest line of `/etc/passwd` or `/etc/group` that is parsed, in bytes. The guest writes these files.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of such a file that are read; every request reads it.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Directory in which systemd creates a user's private runtime directory in memory (`XDG_RUNTIME_DIR`).
pub(crate) const RUNTIME_DIRECTORIES: &str = "/run/user";

/// A user from passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
}

impl User {
    /// Finds a user by name; numbers are not names.
    pub(crate) fn find(name: &str) -> Option<Self> {
        find_line("/etc/passwd", |line| parse_user(line).filter(|user| user.name == name))
    }

    /// Returns the user's groups, including the primary one; only that one without a group file.
    pub(crate) fn groups(&self) -> Vec<u32> {
        let mut groups = vec![self.gid];
        let _ = find_line("/etc/group", |line| {
            let (_, gid, members) = parse_group(line)?;
            if members.split(',').any(|member| member == self.name) && !groups.contains(&gid) {
                groups.push(gid);
            }
            None::<()>
        });
        groups
    }
}

impl User {
    /// Creates the user's private directory for sockets below `folders`, if it is missing, and returns its path.
    ///
    /// Only root writes to `folders`.
    pub(crate) fn ensure_runtime_directory(&self, folders: &Path) -> io::Result<PathBuf> {
        let folder = folders.join(self.uid.to_string());
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => std::os::unix::fs::chown(&folder, Some(self.uid), Some(self.gid))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folders)?;
                return self.ensure_runtime_directory(folders);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let found = fs::symlink_metadata(&folder)?;
        let is_theirs = found.is_dir() && found.uid() == self.uid;
        is_theirs.then_some(folder).ok_or_else(|| io::ErrorKind::PermissionDenied.into())
    }
}

/// Cache of the names of ids for one call: a long listing has the same few ids again and again.
#[derive(Debug, Default)]
pub(crate) struct NameCache {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl NameCache {
    /// Returns the name of a user id, or the number as text.
    pub(crate) fn user(&mut self, uid: u32) -> String {
        let find = || {
            find_line("/etc/passwd", |line| parse_user(line).filter(|user| user.uid == uid))
                .map_or_else(|| uid.to_string(), |user| user.name)
        };
        self.users.entry(uid).or_insert_with(find).clone()
    }

    /// Returns the name of a group id, or the number as text.
    pub(crate) fn group(&mut self, gid: u32) -> String {
        let named = |line: &str| parse_group(line).filter(|(_, id, _)| *id == gid).map(|(name, ..)| name.to_owned());
        let find = || find_line("/etc/group", named).unwrap_or_else(|| gid.to_string());
        self.groups.entry(gid).or_insert_with(find).clone()
    }
}

fn find_line<T>(path: &str, mut choose: impl FnMut(&str) -> Option<T>) -> Option<T> {
    let file = regular::open(Path::new(path), OFlags::RDONLY).ok()?;
    let mut reader = BufReader::new(io::Read::take(file, FILE_BYTES_MAX));
    loop {
        let mut line = Vec::new();
        let read = io::Read::take(&mut reader, LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).ok()?;
        if read == 0 {
            return None;
        }
        if let Some(found) = std::str::from_utf8(&line).ok().and_then(|line| choose(line.trim_end())) {
            return Some(found);
        }
    }
}

fn parse_user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = PathBuf::from(fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/"));
    Some(User { name, uid, gid, home })
}

fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_passwd_and_group_are_parsed() {
        let user = parse_user("user:x:1000:1001:A User,,,:/home/user:/bin/bash").expect("valid");
        assert_eq!((user.name.as_str(), user.uid, user.gid), ("user", 1000, 1001));
        assert_eq!(user.home, PathBuf::from("/home/user"));
        for line in ["", "user", ":x:1:1::/:/", "user:x:a:1::/:/", "#comment"] {
            assert_eq!(parse_user(line), None, "{line}");
        }
        assert_eq!(parse_group("sudo:x:27:user,other"), Some(("sudo", 27, "user,other")));
    }

    #[test]
    fn a_runtime_folder_is_private() {
        let root = tempfile::tempdir().expect("create a temporary directory");
        let folders = root.path().join("run/user");
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let user = User { name: "me".to_owned(), uid, gid, home: PathBuf::from("/") };
        for _ in 0..2 {
            let folder = user.ensure_runtime_directory(&folders).expect("create or find the directory");
            let found = fs::metadata(&folder).expect("exists");
            assert_eq!((folder, found.mode() & 0o777, found.uid()), (folders.join(uid.to_string()), 0o700, uid));
        }
        fs::remove_dir(folders.join(uid.to_string())).expect("remove");
        std::os::unix::fs::symlink("/", folders.join(uid.to_string())).expect("link");
        assert!(user.ensure_runtime_directory(&folders).is_err(), "a symbolic link is rejected");
    }

    #[test]
    fn root_is_found_and_numbers_are_not_names() {
        assert_eq!(User::find("root").expect("root exists").uid, 0);
        assert_eq!(User::find("0"), None);
        let mut names = NameCache::default();
        assert_eq!((names.user(0), names.group(0)), ("root".to_owned(), "root".to_owned()));
        assert_eq!(names.user(4_000_000_001), "4000000001");
        assert_eq!(names.group(4_000_000_001), "4000000001");
    }
}
