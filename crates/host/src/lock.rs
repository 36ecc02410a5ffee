//! One owner at a time, across processes.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// A lock file that is held until this is dropped or the process ends, however it ends. It tells its owner.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else has it.
    #[error("`{path}` is held by {owner}")]
    Held {
        /// The lock file.
        path: String,
        /// What its owner wrote into it.
        owner: String,
    },
    /// The file cannot be used.
    #[error("locking `{path}`")]
    Io {
        /// The lock file.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock at `path` (flock(2)), writing `owner` into it for people. The file stays when the lock goes: removing
    /// it would let two owners lock two files of one name.
    pub fn take(path: &Path, owner: &str) -> Result<Self, Error> {
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
    fn the_second_learns_who_is_first() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("lock");
        let first = Lock::take(&path, "the first").expect("free");
        let error = Lock::take(&path, "the second").expect_err("held");
        assert!(matches!(error, Error::Held { owner, .. } if owner == "the first"));
        drop(first);
        Lock::take(&path, "the third").expect("free again");
    }
}
