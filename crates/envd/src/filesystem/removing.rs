//! Removal of trees. Blocks.
//!
//! A program of the guest may create trees of any depth and directories of any size, and replace entries during the
//! removal. Therefore the removal does not recurse, bounds its open directories and the names in memory, and never
//! follows a link.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::temporary;

/// Directories that are open at the same time. Deeper ones are first moved up, below the top of the tree.
const DEPTH_MAX: usize = 128;
/// Names of a directory that are in memory at the same time.
const NAMES_MAX: usize = 1024;

/// Removes the file or tree at a path.
pub(super) fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::BUSY.into()) };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    remove(&folder, name)
}

/// A directory that is being emptied.
struct Level {
    name: OsString,
    folder: OwnedFd,
    names: Vec<OsString>,
}

impl Level {
    fn open(parent: impl AsFd, name: OsString) -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(parent, &name, flags, Mode::empty())?;
        Ok(Self { name, folder, names: Vec::new() })
    }

    /// Returns the next name; reads the directory again once the names in memory are used up.
    fn next(&mut self) -> io::Result<Option<OsString>> {
        if self.names.is_empty() {
            for entry in Dir::read_from(&self.folder)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    self.names.push(OsStr::from_bytes(name).to_owned());
                }
                if self.names.len() >= NAMES_MAX {
                    break;
                }
            }
        }
        Ok(self.names.pop())
    }
}

/// Removes an entry of a directory, with everything below it.
pub(super) fn remove(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        removed => return Ok(removed?),
    }
    let mut levels = vec![Level::open(folder, name.to_owned())?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.next()? else {
            let Some(emptied) = levels.pop() else { break };
            let parent = levels.last().map_or(folder, |parent| &parent.folder);
            ignore_missing(rustix::fs::unlinkat(parent, &emptied.name, AtFlags::REMOVEDIR))?;
            continue;
        };
        match rustix::fs::unlinkat(&level.folder, &name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            removed => {
                ignore_missing(removed)?;
                continue;
            }
        }
        if levels.len() < DEPTH_MAX {
            let below = Level::open(&levels[levels.len() - 1].folder, name)?;
            levels.push(below);
        } else {
            let (top, deepest) = (&levels[0].folder, &levels[levels.len() - 1].folder);
            ignore_missing(rustix::fs::renameat(deepest, &name, top, temporary::fresh_name()?))?;
        }
    }
    Ok(())
}

/// Accepts that another program removed the entry meanwhile.
fn ignore_missing(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn deep_and_full_trees_are_removed_and_links_are_not_followed() {
        // In memory if possible: so many directories take long on a disk.
        let folder =
            tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("create a temporary directory");
        let (tree, outside) = (folder.path().join("tree"), folder.path().join("outside"));
        fs::create_dir_all(tree.join("full")).expect("create");
        fs::create_dir(&outside).expect("create");
        fs::write(outside.join("file"), "stays").expect("write");
        symlink(&outside, tree.join("link")).expect("link");
        for number in 0..NAMES_MAX * 2 + 1 {
            fs::write(tree.join("full").join(number.to_string()), "").expect("write");
        }
        // Far deeper than the longest path, and than recursion on the small stack below allows.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut deepest = rustix::fs::open(&tree, flags, Mode::empty()).expect("open");
        for _ in 0..4_000 {
            rustix::fs::mkdirat(&deepest, "d", Mode::RWXU).expect("create");
            deepest = rustix::fs::openat(&deepest, "d", flags, Mode::empty()).expect("open");
        }
        drop(deepest);
        let removed = std::thread::Builder::new().stack_size(64 << 10).spawn(move || remove_path(&tree));
        removed.expect("start").join().expect("no panic").expect("remove");
        remove_path(&folder.path().join("gone")).expect_err("missing");
        let left: Vec<_> =
            fs::read_dir(folder.path()).expect("list").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["outside"]);
        assert_eq!(fs::read_to_string(outside.join("file")).expect("read"), "stays");
    }
}
