//! Disk space and sparse files.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom};

/// Returns the bytes that an unprivileged process may still write below `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Returns the bytes that a file occupies on its disk, including allocated but unwritten ones.
///
/// Opens no descriptor.
pub fn allocated_bytes(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;

    // `st_blocks` counts 512-byte units on every file system (stat(2)).
    Ok(fs::metadata(path)?.blocks().saturating_mul(512))
}

/// Allocates the first `bytes` of a file without changing its length (fallocate(2)).
///
/// Later writes to that range cannot fail for lack of space. Returns false if the file system does not support it.
pub fn allocate(path: &Path, bytes: u64) -> io::Result<bool> {
    let file = File::options().write(true).open(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies a sparse file without filling its holes.
///
/// Shares the blocks if the file system supports it (FICLONE, ioctl_ficlone(2)); otherwise copies only the ranges that
/// hold data. `to` must not exist; after an error it is removed.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::options().write(true).create_new(true).open(to)?;
    let copied = copy_into(&source, &target);
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

fn copy_into(source: &File, target: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position = 0;
    while position < length {
        let data = match rustix::fs::seek(source, SeekFrom::Data(position)) {
            Ok(data) => data,
            // ENXIO: only a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(source, SeekFrom::Hole(data))?;
        copy_range(source, target, data, hole)?;
        position = hole;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let rest = usize::try_from(end - from).unwrap_or(usize::MAX);
        if rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), rest)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_sparse_file_stays_sparse() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).expect("creates");
        file.set_len(64 << 20).expect("grows");
        file.write_all_at(b"middle", 32 << 20).expect("writes");
        file.write_all_at(b"end", (64 << 20) - 3).expect("writes");
        copy_sparse(&from, &to).expect("copies");
        assert_eq!(fs::read(&from).expect("reads"), fs::read(&to).expect("reads"));
        assert!(fs::metadata(&to).expect("exists").blocks() * 512 < 1 << 20, "the holes were filled");
        let before = allocated_bytes(&to).expect("exists");
        if allocate(&to, 8 << 20).expect("allocates") {
            assert!(allocated_bytes(&to).expect("exists") >= before + (8 << 20) - (1 << 16));
        }
        assert_eq!(fs::metadata(&to).expect("exists").len(), 64 << 20);
        assert!(copy_sparse(&from, &to).is_err(), "an existing file was overwritten");
        assert!(free_bytes(folder.path()).expect("reads") > 0);
    }
}
