//! Empty qcow2 images for the blocks that a sandbox writes, created without a child process.
//!
//! The image names no backing file; the VMM is given the base separately. So the overlay contains no path that could
//! become stale or be manipulated, and overlays of the same size are byte-for-byte equal.
//!
//! An empty image has four clusters (QEMU, `docs/interop/qcow2.txt`): header, refcount table, first refcount block,
//! first cluster of the L1 table.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// "QFI\xfb".
const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of an L2 table: one cluster of 8-byte entries.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// 16-bit reference counts, the default of version 3.
const REFCOUNT_ORDER: u32 = 4;
const HEADER_BYTES: u32 = 104;
/// Largest disk whose L1 table fits into one cluster: 8192 entries of 512 MiB each.
const SIZE_MAX: u64 = (CLUSTER / 8) * L2_ENTRIES * CLUSTER;

/// Failure to create an overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Zero, not a multiple of 512, or larger than the layout allows.
    #[error("{0} is no valid disk size in bytes: it must be a multiple of 512 and at most {SIZE_MAX}")]
    Size(u64),
    /// A file operation failed.
    #[error("writing the overlay `{path}`")]
    Io { path: String, source: io::Error },
}

/// Writes an empty overlay for a base of `size_bytes` to `path`, which must not exist.
///
/// Only the owner can access the file. It is not fsynced: an overlay is useless without the memory of the VM that
/// writes to it.
pub fn create_overlay(path: &Path, size_bytes: u64) -> Result<(), OverlayError> {
    use std::os::unix::fs::OpenOptionsExt;

    let image = empty_image(size_bytes)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let write = options.open(path).and_then(|mut file| {
        file.write_all(&image)?;
        // The file covers its four clusters completely, as the reference counts require.
        file.set_len(4 * CLUSTER)
    });
    write.map_err(|source| OverlayError::Io { path: path.display().to_string(), source })
}

fn empty_image(size_bytes: u64) -> Result<Vec<u8>, OverlayError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(512) || size_bytes > SIZE_MAX {
        return Err(OverlayError::Size(size_bytes));
    }
    let l1_entries = u32::try_from(size_bytes.div_ceil(L2_ENTRIES * CLUSTER)).expect("bounded by SIZE_MAX");
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    let put32 = |header: &mut Vec<u8>, value: u32| header.extend(value.to_be_bytes());
    put32(&mut header, MAGIC);
    put32(&mut header, VERSION);
    header.extend(0u64.to_be_bytes()); // no backing file name
    put32(&mut header, 0); // of length 0
    put32(&mut header, CLUSTER_BITS);
    header.extend(size_bytes.to_be_bytes());
    put32(&mut header, 0); // not encrypted
    put32(&mut header, l1_entries);
    header.extend((3 * CLUSTER).to_be_bytes()); // L1 table
    header.extend(CLUSTER.to_be_bytes()); // refcount table
    put32(&mut header, 1); // of one cluster
    put32(&mut header, 0); // no snapshots
    header.extend(0u64.to_be_bytes());
    header.extend([0u8; 3 * 8]); // no incompatible, compatible or autoclear features
    put32(&mut header, REFCOUNT_ORDER);
    put32(&mut header, HEADER_BYTES);

    let mut image = header;
    image.resize(usize_of(CLUSTER), 0);
    image.extend((2 * CLUSTER).to_be_bytes()); // refcount table: the only block
    image.resize(usize_of(2 * CLUSTER), 0);
    for _ in 0..4 {
        image.extend(1u16.to_be_bytes()); // each of the four clusters is used once
    }
    Ok(image)
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).expect("a few clusters fit into memory")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn invalid_sizes_are_rejected() {
        for size in [0, 1, 511, SIZE_MAX + 512] {
            assert!(matches!(empty_image(size), Err(OverlayError::Size(_))), "{size}");
        }
        assert!(empty_image(SIZE_MAX).is_ok());
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("overlay");
        create_overlay(&path, 1 << 30).expect("creates");
        assert!(create_overlay(&path, 1 << 30).is_err());
    }

    /// QEMU's own tool must find no error.
    #[test]
    fn qemu_img_accepts_the_image() {
        let folder = tempfile::tempdir().expect("temporary folder");
        for size in [512, 1 << 20, 10 << 30, SIZE_MAX] {
            let path = folder.path().join(format!("overlay-{size}"));
            create_overlay(&path, size).expect("creates");
            let check = Command::new("qemu-img").arg("check").arg(&path).output().expect("qemu-img is installed");
            assert!(check.status.success(), "{size}: {check:?}");
            let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&path).output().expect("runs");
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON");
            assert_eq!(info["virtual-size"], size);
        }
    }
}
