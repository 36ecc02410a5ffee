//! Temporary files and names, which atomically take their final place.
//!
//! Most file systems support nameless files (O_TMPFILE, open(2)), which are invisible and leave nothing behind on any
//! error. On other file systems a file has a name of a reserved form. It is removed when its owner is dropped; one that
//! a killed daemon left behind is removed by a later call in the same directory ([`stale`]).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::sys;

/// Prefix of the names of new entries.
const NEW: &str = ".hearth-new-";
/// Prefix of the name of a file that is about to replace another. A watch reports a write to the replaced file.
const REPLACEMENT: &str = ".hearth-over-";
/// Random bytes in the remainder of a name, which make it unguessable.
const NAME_BYTES: usize = 16;
/// Age at which a temporary name belongs to a daemon that exited.
///
/// Another daemon may be using the same directory of a shared mount, so this is longer than any call.
const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Entries of a directory that are checked for stale names.
const SWEPT_ENTRIES_MAX: usize = 4096;

/// Returns an unused name for a new entry.
pub(crate) fn fresh_name() -> io::Result<OsString> {
    name(NEW)
}

fn name(prefix: &str) -> io::Result<OsString> {
    Ok(format!("{prefix}{}", sys::random_hex::<NAME_BYTES>()?).into())
}

/// Returns true for a temporary name.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    has_form(name, NEW) || is_replacement(name)
}

/// Returns true for the name of a file that is about to replace another.
pub(crate) fn is_replacement(name: &OsStr) -> bool {
    has_form(name, REPLACEMENT)
}

fn has_form(name: &OsStr, prefix: &str) -> bool {
    name.as_bytes().strip_prefix(prefix.as_bytes()).is_some_and(|rest| rest.len() == 2 * NAME_BYTES)
}

/// Returns true for a name that the kernel may have generated in an event on a nameless file.
pub(crate) fn may_be_nameless(name: &OsStr) -> bool {
    name.as_bytes().strip_prefix(b"#").is_some_and(|rest| !rest.is_empty() && rest.iter().all(u8::is_ascii_digit))
}

/// A regular file in a directory, not visible there yet. Removed when dropped.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    folder: OwnedFd,
    pub(crate) file: File,
    /// Temporary name; `None` for a nameless file.
    name: Option<OsString>,
}

impl TemporaryFile {
    /// Creates the file. Fails if the directory does not permit it. All methods block.
    pub(crate) fn create(folder: OwnedFd) -> io::Result<Self> {
        let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o666));
        match rustix::fs::openat(&folder, ".", flags | OFlags::TMPFILE, mode) {
            Ok(file) => Ok(Self { folder, file: file.into(), name: None }),
            // The file system or the kernel does not support nameless files.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOSYS | Errno::INVAL) => {
                sweep(&folder);
                let name = fresh_name()?;
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let file = rustix::fs::openat(&folder, &name, flags, mode)?;
                Ok(Self { folder, file: file.into(), name: Some(name) })
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// Moves the file to `name`. Fails with EEXIST if the name exists.
    pub(crate) fn place(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        match self.name.take() {
            None => self.link(name),
            Some(own) => {
                let renamed = rustix::fs::renameat_with(&self.folder, &own, &self.folder, name, RenameFlags::NOREPLACE);
                // Network file systems do not support the flag.
                let renamed = match renamed {
                    Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(&self.folder, &own, &self.folder, name),
                    renamed => renamed,
                };
                renamed.inspect_err(|_| self.name = Some(own))
            }
        }
    }

    /// Atomically replaces the file at `name`.
    pub(crate) fn replace(&mut self, name: &OsStr) -> io::Result<()> {
        let replacement = self::name(REPLACEMENT)?;
        match &self.name {
            Some(own) => rustix::fs::renameat(&self.folder, own, &self.folder, &replacement)?,
            None => self.link(&replacement)?,
        }
        let renamed = rustix::fs::renameat(&self.folder, &replacement, &self.folder, name);
        self.name = renamed.is_err().then_some(replacement);
        Ok(renamed?)
    }

    /// Links a nameless file. The fallback serves processes that may not link by descriptor alone (linkat(2)).
    fn link(&self, name: &OsStr) -> rustix::io::Result<()> {
        match rustix::fs::linkat(&self.file, "", &self.folder, name, AtFlags::EMPTY_PATH) {
            Err(Errno::NOENT | Errno::PERM) => {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, own, &self.folder, name, AtFlags::SYMLINK_FOLLOW)
            }
            linked => linked,
        }
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}

/// Removes temporary files that a killed daemon left behind.
fn sweep(folder: &OwnedFd) {
    for name in stale(folder) {
        // Fails for a directory, which a move may have left behind; the next move removes it.
        let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
    }
}

/// Returns stale temporary names among the first entries of a directory.
pub(crate) fn stale(folder: impl AsFd) -> Vec<OsString> {
    let Ok(opened) =
        rustix::fs::openat(&folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    else {
        return Vec::new();
    };
    let entries = rustix::fs::Dir::new(opened).into_iter().flatten().take(SWEPT_ENTRIES_MAX).flatten();
    let names = entries.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
    names.filter(|name| is_temporary(name) && is_stale(&folder, name)).collect()
}

fn is_stale(folder: impl AsFd, name: &OsStr) -> bool {
    let Ok(found) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    let age = jiff::Timestamp::now().as_second().saturating_sub(found.st_mtime);
    u64::try_from(age).is_ok_and(|age| age >= STALE_AFTER.as_secs())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("list").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn open(folder: &Path) -> OwnedFd {
        rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("open")
    }

    /// Creates a named file, as on a file system without nameless ones.
    fn named(folder: &Path) -> TemporaryFile {
        let name = fresh_name().expect("draw a name");
        let file = File::options().read(true).write(true).create_new(true).open(folder.join(&name)).expect("create");
        TemporaryFile { folder: open(folder), file, name: Some(name) }
    }

    #[test]
    fn temporary_files_are_placed_or_removed() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let path = folder.path();
        for make in [|path: &Path| TemporaryFile::create(open(path)).expect("create"), named] {
            drop(make(path));
            assert_eq!(names(path), [""; 0], "no leftovers");
            let mut file = make(path);
            file.file.write_all(b"new").expect("write");
            file.place(OsStr::new("name")).expect("place");
            drop(file);
            let mut second = make(path);
            assert_eq!(second.place(OsStr::new("name")), Err(Errno::EXIST));
            second.file.write_all(b"second").expect("write");
            second.replace(OsStr::new("name")).expect("replace");
            drop(second);
            fs::create_dir(path.join("folder")).expect("create");
            let mut third = make(path);
            assert!(third.replace(OsStr::new("folder")).is_err());
            drop(third);
            fs::remove_dir(path.join("folder")).expect("remove");
            assert_eq!(names(path), ["name"]);
            assert_eq!(fs::read_to_string(path.join("name")).expect("read"), "second");
            fs::remove_file(path.join("name")).expect("remove");
        }
    }

    #[test]
    fn leftovers_of_a_killed_daemon_are_removed_when_old() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let path = folder.path();
        let (old, young) = (fresh_name().expect("draw a name"), fresh_name().expect("draw a name"));
        for name in [&old, &young, &OsString::from(".hearth-new-mine"), &OsString::from("other")] {
            let file = File::create(path.join(name)).expect("create");
            if *name != young {
                let then = std::time::SystemTime::now() - STALE_AFTER - Duration::from_secs(1);
                file.set_modified(then).expect("set");
            }
        }
        sweep(&open(path));
        assert_eq!(names(path), [young.to_str().expect("UTF-8"), ".hearth-new-mine", "other"]);
    }

    #[test]
    fn temporary_names_are_recognized() {
        let (new, replacement) = (fresh_name().expect("draw a name"), name(REPLACEMENT).expect("draw a name"));
        assert!(
            is_temporary(&new) && !is_replacement(&new) && is_temporary(&replacement) && is_replacement(&replacement)
        );
        assert!(!is_temporary(OsStr::new(".hearth-new-")) && !is_replacement(OsStr::new("over")));
        for (name, is) in [("#12", true), ("#", false), ("#1a", false), ("12", false)] {
            assert_eq!(may_be_nameless(OsStr::new(name)), is, "{name}");
        }
    }
}
