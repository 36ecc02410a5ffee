//! New content of a file, beside the old one until it is complete. All of it blocks.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::{ensure_owner, open_failure, owner_failure};
use crate::attributes;
use crate::failure::Failure;
use crate::files::metadata::{self, Metadata};
use crate::files::{is_full, write_failure};
use crate::filesystem::METADATA_PREFIX;
use crate::temporary::TemporaryFile;
use crate::users::User;

/// Symbolic links that are followed; the kernel's limit (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Mode bits that a replaced file retains. The change of the owner clears the others (chown(2)).
const KEPT_MODE: u32 = 0o1777;
/// Attempts to move the file into place while other programs change the name.
const PLACE_ATTEMPTS: usize = 4;

/// Destination of a path.
pub(super) enum ResolvedTarget {
    /// A regular file or a free name, by its real directory and its name in it.
    Regular { folder: OwnedFd, name: OsString },
    /// A regular file that cannot be reached by its real path, as below `/proc/self/fd`.
    Unmovable,
    /// A pipe, a socket or a device.
    Other,
}

/// Resolves a path to the destination of a write; also through a link whose target is missing.
pub(super) fn locate(path: &Path) -> Result<ResolvedTarget, Failure> {
    let stat_failure = |error: io::Error| Failure::internal(format!("error getting file info: {error}"));
    let directory = || Failure::bad_request(format!("path is a directory: {}", path.display()));
    let real = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(directory()),
        Ok(found) if !found.is_file() => return Ok(ResolvedTarget::Other),
        Ok(found) => {
            let real = fs::canonicalize(path).map_err(stat_failure)?;
            let same = |other: fs::Metadata| (other.dev(), other.ino()) == (found.dev(), found.ino());
            if !fs::symlink_metadata(&real).is_ok_and(same) {
                return Ok(ResolvedTarget::Unmovable);
            }
            real
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => follow(path).map_err(|error| open_failure(&error))?,
        Err(error) => return Err(stat_failure(error)),
    };
    let ends_as_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    let (Some(parent), Some(name), false) = (real.parent(), real.file_name(), ends_as_folder) else {
        return Err(directory());
    };
    let folder = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let folder = folder.map_err(|error| open_failure(&error.into()))?;
    Ok(ResolvedTarget::Regular { folder, name: name.to_owned() })
}

/// Returns the real path of a missing file; dangling links are followed to their target.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { break };
        let folder = fs::canonicalize(folder)?;
        let real = folder.join(name);
        match fs::read_link(&real) {
            Ok(target) => path = folder.join(target),
            Err(_) => return Ok(real),
        }
    }
    Err(Errno::LOOP.into())
}

/// New content of a file.
#[derive(Debug)]
pub(super) struct Replacement {
    temporary: TemporaryFile,
    name: OsString,
    user: User,
}

impl Replacement {
    pub(super) fn create(folder: OwnedFd, name: OsString, user: &User) -> io::Result<Self> {
        let temporary = TemporaryFile::create(folder)?;
        ensure_owner(&temporary.file, user)?;
        Ok(Self { temporary, name, user: user.clone() })
    }

    pub(super) fn file(&self) -> &File {
        &self.temporary.file
    }

    /// Moves the content into place: atomically if possible, otherwise by writing into the existing file.
    pub(super) fn finish(mut self, metadata: &Metadata) -> Result<(), Failure> {
        metadata::replace(self.file(), metadata).map_err(|error| write_failure(&error, "error writing metadata"))?;
        for _ in 0..PLACE_ATTEMPTS {
            let existing = self.existing().map_err(|error| open_failure(&error))?;
            let is_written = matches!(existing, Existing::Replaceable(_))
                || self.file().metadata().is_ok_and(|found| found.len() > 0);
            let placed = match existing {
                Existing::Free => match self.temporary.place(&self.name) {
                    // Another program created the file first.
                    Err(Errno::EXIST) => continue,
                    placed => placed.map_err(io::Error::from),
                },
                Existing::Replaceable(old) => {
                    self.copy_attributes(&old).and_then(|()| self.temporary.replace(&self.name))
                }
                Existing::Fixed => return self.copy_into(metadata),
            };
            return match placed {
                Ok(()) => {
                    self.emit_events(is_written);
                    Ok(())
                }
                Err(error) if is_full(&error) => Err(open_failure(&error)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(open_failure(&error)),
                // The name is fixed, for example by a mount or a flag of the directory.
                Err(_) => self.copy_into(metadata),
            };
        }
        Err(Failure::internal("error opening file: other programs keep changing it"))
    }

    /// Examines the existing file at the destination.
    fn existing(&self) -> io::Result<Existing> {
        let folder = self.temporary.folder();
        let wanted = StatxFlags::TYPE | StatxFlags::NLINK;
        let found = match rustix::fs::statx(folder, &self.name, AtFlags::SYMLINK_NOFOLLOW, wanted) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(Existing::Free),
            Err(error) => return Err(error.into()),
        };
        let is_file = rustix::fs::FileType::from_raw_mode(found.stx_mode.into()) == rustix::fs::FileType::RegularFile;
        let is_mount = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        if !is_file || is_mount || found.stx_nlink != 1 {
            return Ok(Existing::Fixed);
        }
        match self.open_old(OFlags::RDONLY) {
            Ok(old) => Ok(Existing::Replaceable(old)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Existing::Free),
            // It cannot be read, so its mode and attributes are unknown.
            Err(_) => Ok(Existing::Fixed),
        }
    }

    fn open_old(&self, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(self.temporary.folder(), &self.name, flags, Mode::empty())?))
    }

    /// Copies mode and attributes of the replaced file, except for attributes that a write clears.
    fn copy_attributes(&self, old: &File) -> io::Result<()> {
        let is_lost = |name: &OsString| {
            let name = name.to_str().unwrap_or_default();
            name == attributes::CAPABILITIES || name.starts_with(METADATA_PREFIX)
        };
        attributes::copy(old, self.file(), is_lost)?;
        let mode = old.metadata()?.permissions().mode() & KEPT_MODE;
        self.file().set_permissions(Permissions::from_mode(mode))
    }

    /// Causes the events that the contract promises to watches under the file's name: a new owner and a write.
    ///
    /// For the kernel, the file had another name while it was written. Changes nothing else; failures are ignored.
    fn emit_events(&self, is_written: bool) {
        let Ok(placed) = self.open_old(OFlags::WRONLY) else { return };
        let id = |file: &File| file.metadata().map(|found| (found.dev(), found.ino())).ok();
        if id(&placed) != id(self.file()) {
            return;
        }
        let _ = std::os::unix::fs::fchown(&placed, Some(self.user.uid), Some(self.user.gid));
        // An empty new file causes no write event.
        if !is_written {
            return;
        }
        let time = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let written = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
        let _ = rustix::fs::futimens(&placed, &written);
    }

    /// Writes the content into the existing file.
    fn copy_into(mut self, metadata: &Metadata) -> Result<(), Failure> {
        let mut old = self.open_old(OFlags::WRONLY).map_err(|error| open_failure(&error))?;
        if !old.metadata().is_ok_and(|found| found.is_file()) {
            return Err(Failure::internal("error opening file: it is no longer a regular file"));
        }
        empty(&old, &self.user)?;
        let content = &mut self.temporary.file;
        let copied = content.seek(SeekFrom::Start(0)).and_then(|_| io::copy(content, &mut old));
        copied.map_err(|error| write_failure(&error, "error writing file"))?;
        metadata::replace(&old, metadata).map_err(|error| write_failure(&error, "error writing metadata"))
    }
}

enum Existing {
    Free,
    /// A regular file that can be replaced.
    Replaceable(File),
    /// A file whose inode must be retained.
    Fixed,
}

/// Prepares a file that is written in place: sets the owner and truncates it.
pub(super) fn empty(file: &File, user: &User) -> Result<(), Failure> {
    ensure_owner(file, user).map_err(|error| owner_failure(&error))?;
    file.set_len(0).map_err(|error| open_failure(&error))
}
