//! A small file system that tests fill up: a tmpfs in a mount namespace of the test's thread.
//!
//! Only this thread and the threads and processes that it starts see the mount; it is removed with the last of them. A
//! test that uses it therefore runs on a current-thread runtime.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;

pub(crate) struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts the file system. Returns `None`, and prints that the test is skipped, if this is not root.
    pub(crate) fn mount(mib: u64) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("SKIPPED: mounting a small file system takes root");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        // Mounts of this namespace do not propagate to others.
        mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&Path>)
            .expect("private mounts");
        let options = format!("size={},mode=0755", mib * MIB);
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("a small file system");
        Some(Self { folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Uses every free byte.
    pub(crate) fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.filler()).expect("a file");
        for block in [64 * 1024, 4096, 1] {
            let block = vec![0u8; block];
            loop {
                match filler.write(&block) {
                    Ok(written) if written > 0 => {}
                    Err(error) if error.kind() != ErrorKind::StorageFull => panic!("{error}"),
                    Ok(_) | Err(_) => break,
                }
            }
        }
    }

    /// Frees the space that [`fill`](Self::fill) used.
    pub(crate) fn free_space(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // After the unmount the folder can be removed; files that are still open keep working.
        let _ = nix::mount::umount2(self.folder.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}
