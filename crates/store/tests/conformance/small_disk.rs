//! A file system of the test's own that fills up: a tmpfs in a mount namespace of the test's thread.
//!
//! Threads and processes that this thread starts see it, nobody else does, and it is gone with the last of them. So a test
//! that uses it runs on a current-thread runtime.

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
    /// `None`: this is not root, who alone may mount; it says so.
    pub(crate) fn mount(mib: u64) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("SKIPPED: mounting a small file system takes root");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        // What is mounted here stays here.
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

    /// Leaves not a byte free.
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

    /// Makes room.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The folder below it can be removed then; files that are still open keep working.
        let _ = nix::mount::umount2(self.folder.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}
