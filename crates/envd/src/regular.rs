//! Regular files, opened without blocking.
//!
//! A guest may have replaced an expected file by a pipe or a device, and opening one can block forever. The type is
//! checked after the file is open, so that it cannot be replaced in between.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

/// Opens a file of any type without waiting for a peer (open(2), fifo(7)).
pub(crate) fn open_any(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o666))?))
}

/// Opens a regular file; rejects every other type.
pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let file = open_any(path, flags)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a regular file", path.display())))
}

/// Reads the text of a regular file of at most `bytes_max` bytes.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    open(path, OFlags::RDONLY)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} is larger than {bytes_max} bytes", path.display()),
        ));
    }
    Ok(text)
}

/// Replaces the content of a regular file in place; creates it if it is missing.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<File> {
    let mut file = open(path, OFlags::WRONLY | OFlags::CREATE)?;
    file.set_len(0)?;
    file.write_all(content)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_and_devices_are_rejected_immediately() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let path = |name: &str| folder.path().join(name);
        rustix::fs::mknodat(CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("create");
        for odd in [path("pipe"), "/dev/null".into(), folder.path().to_owned()] {
            assert!(open(&odd, OFlags::RDONLY).is_err(), "{odd:?}");
            assert!(read_text(&odd, 10).is_err(), "{odd:?}");
            assert!(write(&odd, b"x").is_err(), "{odd:?}");
        }
        write(&path("file"), b"longer than the next").expect("write");
        write(&path("file"), b"text").expect("write");
        assert_eq!(read_text(&path("file"), 4).expect("read"), "text");
        assert!(read_text(&path("file"), 3).is_err());
    }
}
