//! Lock files: one owner at a time, across processes.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// A held lock file. It is released when this is dropped or the process exits for any reason.
///
/// The file contains the owner's name.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Failure to acquire a lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the lock.
    #[error("`{path}` is held by {owner}")]
    Held {
        path: String,
        /// Text that the owner wrote into the file.
        owner: String,
    },
    /// The file cannot be opened, locked or written.
    #[error("locking `{path}`")]
    Io { path: String, source: io::Error },
}

impl Lock {
    /// Acquires the lock at `path` (flock(2)) and writes `owner` into it, for operators.
    ///
    /// The file remains after release: removing it would let two owners lock two files of the same name.
    pub fn acquire(path: &Path, owner: &str) -> Result<Self, Error> {
        let name = || path.display().to_string();
        let io = |source| Error::Io { path: name(), source };
        let mut file = File::options().create(true).read(true).write(true).truncate(false).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                return Err(Error::Held { path: name(), owner: owner.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let write = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(owner.as_bytes()));
        write.map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_owner() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("lock");
        let first = Lock::acquire(&path, "the first").expect("free");
        let error = Lock::acquire(&path, "the second").expect_err("held");
        assert!(matches!(error, Error::Held { owner, .. } if owner == "the first"));
        drop(first);
        Lock::acquire(&path, "the third").expect("free again");
    }
}
