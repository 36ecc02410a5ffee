//! The mount of a path, found without accessing it.
//!
//! A look-up in a FUSE or network mount may block. The walk below opens one component at a time and stops where it
//! leaves the root file system: at this point the mount is known, and no call was made on it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};

/// Symbolic links that are followed; the kernel's limit (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// The kernel's id of a mount.
pub(super) type MountId = u64;

/// Returns the first mount that `path` crosses after the root, with its mount point; the root if it crosses none.
pub(super) fn first_crossed(path: &Path) -> (MountId, PathBuf) {
    walk(path).unwrap_or_else(|_| (0, PathBuf::from("/")))
}

fn walk(path: &Path) -> rustix::io::Result<(MountId, PathBuf)> {
    let open_root = || rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let mut folder = open_root()?;
    let (own, _) = stat(&folder)?;
    let mut at = PathBuf::from("/");
    let mut rest = Vec::new();
    push(&mut rest, path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A missing or inaccessible component cannot be in another mount.
        let Ok(next) = rustix::fs::openat(&folder, &name, flags, Mode::empty()) else { break };
        let (mount, kind) = stat(&next)?;
        if name == ".." {
            at.pop();
        } else {
            at.push(&name);
        }
        if mount != own {
            return Ok((mount, at));
        }
        match kind {
            FileType::Directory => folder = next,
            FileType::Symlink if links < LINKS_MAX => {
                links += 1;
                let target =
                    PathBuf::from(OsString::from_vec(rustix::fs::readlinkat(&next, "", Vec::new())?.into_bytes()));
                at.pop();
                if target.is_absolute() {
                    folder = open_root()?;
                    at = PathBuf::from("/");
                }
                push(&mut rest, &target);
            }
            _ => break,
        }
    }
    Ok((own, PathBuf::from("/")))
}

/// Pushes the components of a path to a stack, the first one on top.
fn push(stack: &mut Vec<OsString>, path: &Path) {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    stack.extend(names);
}

/// Returns mount and type of an open file, from the kernel's cached data.
fn stat(file: &OwnedFd) -> rustix::io::Result<(MountId, FileType)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(file, "", flags, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    Ok((found.stx_mnt_id, FileType::from_raw_mode(found.stx_mode.into())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_resolve_to_their_first_mount() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let path = |name: &str| folder.path().join(name);
        symlink("/proc/self", path("absolute")).expect("link");
        symlink("../../../../../../../../proc", path("relative")).expect("link");
        symlink("loop", path("loop")).expect("link");
        symlink("absolute", path("twice")).expect("link");
        let place = |path: &Path| first_crossed(path).1;
        for leads in ["/proc", "/proc/self/root/etc", "/etc/../proc/version"] {
            assert_eq!(place(Path::new(leads)), Path::new("/proc"), "{leads}");
        }
        for leads in ["absolute", "relative/self/fd", "twice/status", "absolute/../x"] {
            assert_eq!(place(&path(leads)), Path::new("/proc"), "{leads}");
        }
        let (root, _) = first_crossed(Path::new("/"));
        assert_ne!(first_crossed(Path::new("/proc")).0, root);
        for stays in ["/etc/passwd", "/etc/passwd/x", "/no-such-thing/x", "/.."] {
            assert_eq!(first_crossed(Path::new(stays)), (root, PathBuf::from("/")), "{stays}");
        }
        // The temporary directory may be on a mount of its own.
        assert_eq!(place(&path("loop/x")), place(folder.path()));
    }
}
