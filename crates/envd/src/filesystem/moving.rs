//! Moves to another file system: a copy that replaces the destination atomically, then the removal of the source.
//! Blocks.
//!
//! The copy is made beside the destination under a temporary name. It retains everything that a rename retains: owners,
//! modes, times, attributes, hard links within the tree, holes. Nothing changes before the copy is in place; on an
//! error, or when the client disconnects, the copy is removed. Once it is in place the move is finished, even if no
//! client waits for it.
//!
//! All accesses use descriptors and names in open directories, and never follow a link: programs of the guest may
//! replace files during the copy, and the daemon is root.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Statx, StatxAttributes, StatxFlags, StatxTimestamp, Timespec,
    Timestamps,
};
use rustix::io::Errno;

use super::removing;
use crate::attributes;
use crate::path_calls::Cancellation;
use crate::temporary;

/// Bytes copied between two checks for cancellation.
const COPY_BYTES: usize = 4 << 20;
/// Depth limit of a tree. Each level has three open descriptors.
const DEPTH_MAX: usize = 512;

/// Moves the file or tree at `source` to `destination`, with the effect of rename(2).
pub(super) fn across(source: &Path, destination: &Path, cancellation: &Cancellation) -> io::Result<()> {
    let (from, to) = (DirEntry::locate(source)?, DirEntry::locate(destination)?);
    let found = from.stat()?;
    reject_mounts(&found)?;
    if let Some(old) = to.stat_if_exists()? {
        to.check_replaceable(&found, &old)?;
    }
    let leftovers = temporary::stale(&to.folder);
    leftovers.iter().for_each(|name| drop(removing::remove(&to.folder, name)));
    let copy = DirEntry { folder: to.folder.try_clone()?, name: temporary::fresh_name()? };
    let copied = TreeCopy { cancellation, links: HashMap::new(), top: copy.folder.try_clone()? }
        .entry(&from, &copy, &found)
        .and_then(|()| cancellation.check())
        .and_then(|()| Ok(rustix::fs::renameat(&copy.folder, &copy.name, &to.folder, &to.name)?));
    if let Err(error) = copied {
        // The copy may not exist.
        let _ = removing::remove(&copy.folder, &copy.name);
        return Err(error);
    }
    removing::remove(&from.folder, &from.name).map_err(|error| {
        let text = format!("{} is in place, but removing {} failed: {error}", destination.display(), source.display());
        io::Error::other(text)
    })
}

/// A name in an open directory.
struct DirEntry {
    folder: OwnedFd,
    name: OsString,
}

impl DirEntry {
    fn locate(path: &Path) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::BUSY.into()) };
        let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { folder, name: name.to_owned() })
    }

    fn stat(&self) -> rustix::io::Result<Statx> {
        rustix::fs::statx(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
    }

    fn stat_if_exists(&self) -> rustix::io::Result<Option<Statx>> {
        match self.stat() {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fails as rename(2) would, before anything is copied.
    fn check_replaceable(&self, new: &Statx, old: &Statx) -> io::Result<()> {
        match (kind(new) == FileType::Directory, kind(old) == FileType::Directory) {
            (true, false) => Err(Errno::NOTDIR.into()),
            (false, true) => Err(Errno::ISDIR.into()),
            (false, false) => reject_mounts(old),
            (true, true) => {
                reject_mounts(old)?;
                let entries = Dir::new(self.open(OFlags::DIRECTORY)?)?;
                let mut names = entries.flatten().filter(|entry| !is_dot(entry.file_name().to_bytes()));
                names.next().map_or(Ok(()), |_| Err(Errno::NOTEMPTY.into()))
            }
        }
    }

    /// Opens for reading without following a link and without blocking.
    fn open(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.folder, &self.name, flags, Mode::empty())?)
    }
}

fn kind(found: &Statx) -> FileType {
    FileType::from_raw_mode(found.stx_mode.into())
}

/// Rejects mount points: a mount can be copied but not removed, so a move would leave it in two places.
fn reject_mounts(found: &Statx) -> io::Result<()> {
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "a file system is mounted there"));
    }
    Ok(())
}

/// Returns true for `.` and `..`.
fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// A directory whose content is being copied.
struct Level {
    from: OwnedFd,
    to: OwnedFd,
    found: Statx,
    entries: Dir,
}

impl Level {
    fn next(&mut self) -> io::Result<Option<OsString>> {
        loop {
            let Some(entry) = self.entries.next().transpose()? else { return Ok(None) };
            let name = entry.file_name().to_bytes();
            if !is_dot(name) {
                return Ok(Some(OsStr::from_bytes(name).to_owned()));
            }
        }
    }
}

struct TreeCopy<'a> {
    cancellation: &'a Cancellation,
    /// Copies of files with several hard links: path below the top directory, by device and inode.
    links: HashMap<(u32, u32, u64), OsString>,
    /// The directory in which the copy is made.
    top: OwnedFd,
}

impl TreeCopy<'_> {
    /// Copies one entry with everything below it. Iterative, because a tree of the guest may have any depth.
    fn entry(&mut self, from: &DirEntry, to: &DirEntry, found: &Statx) -> io::Result<()> {
        let mut path = to.name.clone();
        let Some(level) = self.copy_one(from, to, found, &path)? else { return Ok(()) };
        let mut levels = vec![level];
        while let Some(level) = levels.last_mut() {
            self.cancellation.check()?;
            let Some(name) = level.next()? else {
                copy_metadata(level.from.as_fd(), level.to.as_fd(), &level.found)?;
                levels.pop();
                path = Path::new(&path).parent().map(|path| path.as_os_str().to_owned()).unwrap_or_default();
                continue;
            };
            let from = DirEntry { folder: level.from.try_clone()?, name: name.clone() };
            let to = DirEntry { folder: level.to.try_clone()?, name };
            // An entry that was removed meanwhile is not moved.
            let Some(found) = from.stat_if_exists()? else { continue };
            reject_mounts(&found)?;
            let below = Path::new(&path).join(&to.name).into_os_string();
            if let Some(level) = self.copy_one(&from, &to, &found, &below)? {
                if levels.len() >= DEPTH_MAX {
                    return Err(io::Error::other(format!("the tree is deeper than {DEPTH_MAX} levels")));
                }
                levels.push(level);
                path = below;
            }
        }
        Ok(())
    }

    /// Copies one entry. For a directory, returns the level whose content is to be copied next.
    fn copy_one(&mut self, from: &DirEntry, to: &DirEntry, found: &Statx, path: &OsStr) -> io::Result<Option<Level>> {
        let id = (found.stx_dev_major, found.stx_dev_minor, found.stx_ino);
        let kind = kind(found);
        if kind != FileType::Directory && found.stx_nlink > 1 {
            if let Some(copy) = self.links.get(&id) {
                rustix::fs::linkat(&self.top, copy, &to.folder, &to.name, AtFlags::empty())?;
                return Ok(None);
            }
            self.links.insert(id, path.to_owned());
        }
        match kind {
            FileType::Directory => {
                let source = from.open(OFlags::DIRECTORY)?;
                rustix::fs::mkdirat(&to.folder, &to.name, Mode::RWXU)?;
                let target = to.open(OFlags::DIRECTORY)?;
                let entries = Dir::new(from.open(OFlags::DIRECTORY)?)?;
                return Ok(Some(Level { from: source, to: target, found: *found, entries }));
            }
            FileType::RegularFile => {
                let source = File::from(from.open(OFlags::empty())?);
                if !source.metadata()?.is_file() {
                    return Err(io::Error::other("a file was replaced during the move"));
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let target = rustix::fs::openat(&to.folder, &to.name, flags, Mode::RUSR | Mode::WUSR)?;
                self.content(&source, &File::from(target.try_clone()?))?;
                copy_metadata(source.as_fd(), target.as_fd(), found)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&from.folder, &from.name, Vec::new())?;
                rustix::fs::symlinkat(target, &to.folder, &to.name)?;
                copy_name_metadata(to, found)?;
            }
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                let device = rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor);
                rustix::fs::mknodat(&to.folder, &to.name, kind, Mode::from_raw_mode(mode(found)), device)?;
                copy_name_metadata(to, found)?;
                rustix::fs::chmodat(&to.folder, &to.name, Mode::from_raw_mode(mode(found)), AtFlags::empty())?;
            }
            FileType::Unknown => return Err(io::Error::other("a file of an unknown kind cannot be moved")),
        }
        Ok(None)
    }

    /// Copies the data of a file and retains its holes.
    fn content(&self, mut from: &File, mut to: &File) -> io::Result<()> {
        let length = from.metadata()?.len();
        let mut at = 0;
        loop {
            self.cancellation.check()?;
            // File systems without support for holes report everything up to the end as data (lseek(2)).
            let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(u64::MAX);
            let end = end.min(data.saturating_add(COPY_BYTES as u64));
            rustix::fs::seek(from, SeekFrom::Start(data))?;
            rustix::fs::seek(to, SeekFrom::Start(data))?;
            // `io::copy` uses copy_file_range(2) where both file systems support it.
            let copied = io::copy(&mut io::Read::take(&mut from, end - data), &mut to)?;
            if copied == 0 {
                break;
            }
            at = data + copied;
        }
        // The file ends in a hole.
        if at < length {
            to.set_len(length)?;
        }
        Ok(())
    }
}

fn mode(found: &Statx) -> u32 {
    u32::from(found.stx_mode) & 0o7777
}

fn times(found: &Statx) -> Timestamps {
    let time = |time: &StatxTimestamp| Timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec.into() };
    Timestamps { last_access: time(&found.stx_atime), last_modification: time(&found.stx_mtime) }
}

/// Copies owner, attributes, mode and, last, times to an open file or directory.
///
/// Errors of a file system without owners or attributes are ignored.
fn copy_metadata(from: impl AsFd, to: impl AsFd, found: &Statx) -> io::Result<()> {
    let (from, to) = (File::from(from.as_fd().try_clone_to_owned()?), File::from(to.as_fd().try_clone_to_owned()?));
    ignore_missing_owners(std::os::unix::fs::fchown(&to, Some(found.stx_uid), Some(found.stx_gid)))?;
    attributes::copy(&from, &to, |_| false)?;
    ignore_missing_owners(to.set_permissions(Permissions::from_mode(mode(found))))?;
    Ok(rustix::fs::futimens(&to, &times(found))?)
}

/// Copies owner and times to an entry that cannot be opened. Links have no mode.
fn copy_name_metadata(to: &DirEntry, found: &Statx) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(found.stx_uid), rustix::fs::Gid::from_raw(found.stx_gid));
    let owned = rustix::fs::chownat(&to.folder, &to.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
    ignore_missing_owners(owned.map_err(io::Error::from))?;
    Ok(rustix::fs::utimensat(&to.folder, &to.name, &times(found), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn ignore_missing_owners(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if crate::paths::has_no_owners(&error) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    use tempfile::TempDir;

    use super::*;

    /// Returns directories on two file systems, or `None` if this machine has only one.
    fn two() -> Option<(TempDir, TempDir)> {
        let memory = tempfile::tempdir_in("/dev/shm").ok();
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../../target").ok();
        let pair = disk.zip(memory).filter(|(disk, memory)| {
            let device = |folder: &TempDir| fs::metadata(folder.path()).expect("exists").dev();
            device(disk) != device(memory)
        });
        if pair.is_none() {
            eprintln!("skipped: /dev/shm is not a separate file system");
        }
        pair
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("list").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn moved(from: PathBuf, to: PathBuf) -> io::Result<()> {
        across(&from, &to, &Cancellation::default())
    }

    #[test]
    fn a_moved_tree_is_unchanged() {
        let Some((disk, memory)) = two() else { return };
        let tree = disk.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).expect("create");
        fs::write(tree.join("a/file"), "text").expect("write");
        fs::hard_link(tree.join("a/file"), tree.join("a/b/same")).expect("link");
        symlink("../nowhere", tree.join("a/link")).expect("link");
        rustix::fs::mknodat(rustix::fs::CWD, tree.join("pipe"), FileType::Fifo, 0o600.into(), 0).expect("create");
        fs::set_permissions(tree.join("pipe"), Permissions::from_mode(0o622)).expect("set");
        // A file with data only in its middle.
        let sparse = File::create(tree.join("sparse")).expect("create");
        std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 64 << 20).expect("write");
        sparse.set_len(128 << 20).expect("set");
        fs::set_permissions(tree.join("a/file"), Permissions::from_mode(0o4751)).expect("set");
        fs::set_permissions(tree.join("a"), Permissions::from_mode(0o1770)).expect("set");
        let then = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        for name in ["a/file", "a"] {
            File::open(tree.join(name)).expect("open").set_modified(then).expect("set");
        }
        let has_attributes = xattr::set(tree.join("a"), "user.test", b"x").is_ok();
        let before = memory.path().join("probe");
        fs::write(&before, "").expect("write");
        let keeps_attributes = has_attributes && xattr::set(&before, "user.test", b"x").is_ok();
        fs::remove_file(before).expect("remove");

        moved(tree.clone(), memory.path().join("moved")).expect("move");

        assert_eq!((names(disk.path()), names(memory.path())), (vec![], vec!["moved".to_owned()]));
        let tree = memory.path().join("moved");
        let look = |name: &str| fs::symlink_metadata(tree.join(name)).expect("exists");
        assert_eq!(fs::read_to_string(tree.join("a/file")).expect("read"), "text");
        assert_eq!((look("a/file").ino(), look("a/file").nlink()), (look("a/b/same").ino(), 2));
        assert_eq!(fs::read_link(tree.join("a/link")).expect("read the link"), Path::new("../nowhere"));
        assert_eq!((look("a/file").mode() & 0o7777, look("a").mode() & 0o7777), (0o4751, 0o1770));
        assert_eq!((look("a/file").modified().ok(), look("a").modified().ok()), (Some(then), Some(then)));
        assert_eq!(
            (FileType::from_raw_mode(look("pipe").mode()), look("pipe").mode() & 0o777),
            (FileType::Fifo, 0o622)
        );
        assert_eq!(look("sparse").len(), 128 << 20);
        assert!(look("sparse").blocks() * 512 < 16 << 20, "holes are retained");
        let mut middle = [0; 6];
        let sparse = File::open(tree.join("sparse")).expect("open");
        std::os::unix::fs::FileExt::read_exact_at(&sparse, &mut middle, 64 << 20).expect("read");
        assert_eq!(&middle, b"middle");
        if keeps_attributes {
            assert_eq!(xattr::get(tree.join("a"), "user.test").expect("read").as_deref(), Some(&b"x"[..]));
        }
    }

    #[test]
    fn errors_of_rename_are_reported_before_anything_is_copied() {
        let Some((disk, memory)) = two() else { return };
        let (disk, memory) = (disk.path(), memory.path());
        fs::create_dir_all(disk.join("folder/inner")).expect("create");
        fs::write(disk.join("file"), "new").expect("write");
        fs::create_dir_all(memory.join("full/inner")).expect("create");
        fs::create_dir(memory.join("empty")).expect("create");
        fs::write(memory.join("file"), "old").expect("write");
        for (from, to, errno) in [
            ("folder", "full", Errno::NOTEMPTY),
            ("folder", "file", Errno::NOTDIR),
            ("file", "empty", Errno::ISDIR),
            ("gone", "new", Errno::NOENT),
        ] {
            let error = moved(disk.join(from), memory.join(to)).expect_err("an error");
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{from} to {to}");
        }
        assert!(moved(PathBuf::from("/proc"), memory.join("new")).is_err(), "a mount is not moved");
        assert_eq!(names(memory), ["empty", "file", "full"]);
        assert_eq!(names(disk), ["file", "folder"]);
        moved(disk.join("folder"), memory.join("empty")).expect("replace an empty directory");
        moved(disk.join("file"), memory.join("file")).expect("replace a file");
        assert_eq!(fs::read_to_string(memory.join("file")).expect("read"), "new");
        assert_eq!(names(&memory.join("empty")), ["inner"]);
        assert_eq!(names(disk), [""; 0]);
    }

    #[test]
    fn a_cancelled_move_changes_nothing() {
        let Some((disk, memory)) = two() else { return };
        fs::create_dir(disk.path().join("folder")).expect("create");
        fs::write(disk.path().join("folder/file"), "text").expect("write");
        let error = across(&disk.path().join("folder"), &memory.path().join("new"), &Cancellation::cancelled());
        assert_eq!(error.expect_err("cancelled").kind(), io::ErrorKind::Interrupted);
        assert_eq!(names(memory.path()), [""; 0]);
        assert_eq!(fs::read_to_string(disk.path().join("folder/file")).expect("read"), "text");
        // Deeper than the limit.
        let mut deep = disk.path().join("deep");
        fs::create_dir(&deep).expect("create");
        for _ in 0..=DEPTH_MAX {
            deep.push("d");
            fs::create_dir(&deep).expect("create");
        }
        assert!(moved(disk.path().join("deep"), memory.path().join("deep")).is_err());
        assert_eq!(names(memory.path()), [""; 0]);
    }
}
