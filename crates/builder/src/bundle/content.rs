//! Contents of files: their hashes, and blocks of zeros.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::Meter;

/// Unit in which holes are found: the block size of usual file systems.
const BLOCK_BYTES: usize = 4096;
/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 256 * BLOCK_BYTES;

/// Digest of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest {
    /// Length with holes.
    pub(super) bytes: u64,
    /// Bytes in blocks that are not all zero.
    pub(super) data_bytes: u64,
    /// BLAKE3 hash in hex.
    pub(super) hash: String,
}

/// Failure to read or write a content.
pub(super) enum Failure {
    Read(io::Error),
    Write(io::Error),
    /// More data than allowed.
    TooLarge,
    Cancelled,
}

/// Reads a content to its end, and writes its data to `target` if there is one, at most `data_bytes_max`.
///
/// The target must be empty; blocks of zeros become holes.
pub(super) fn digest(
    source: &mut impl Read,
    target: Option<&File>,
    data_bytes_max: u64,
    meter: &Meter,
) -> Result<Digest, Failure> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut bytes, mut data_bytes) = (0, 0);
    loop {
        let length = fill(source, &mut buffer).map_err(Failure::Read)?;
        let chunk = &buffer[..length];
        hasher.update(chunk);
        for block in chunk.chunks(BLOCK_BYTES) {
            if block.iter().any(|byte| *byte != 0) {
                data_bytes += block.len() as u64;
                if data_bytes > data_bytes_max {
                    return Err(Failure::TooLarge);
                }
                if let Some(target) = target {
                    target.write_all_at(block, bytes).map_err(Failure::Write)?;
                }
            }
            bytes += block.len() as u64;
        }
        meter.count(length).map_err(|_| Failure::Cancelled)?;
        if length < buffer.len() {
            break;
        }
    }
    if let Some(target) = target {
        target.set_len(bytes).map_err(Failure::Write)?;
    }
    Ok(Digest { bytes, data_bytes, hash: hasher.finalize().to_hex().to_string() })
}

/// Reads until the buffer is full or the source ends.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
