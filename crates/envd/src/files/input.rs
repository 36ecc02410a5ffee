//! The file that a download reads, of any type. No thread waits for content.
//!
//! Every file is opened without blocking. Reads that have to wait for a peer, as on a pipe, wait on the reactor, where
//! a disconnecting client cancels them; a thread is used only for the read itself.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::path_calls::{BlockingDrop, Lane};
use crate::{regular, sys};

/// An open file.
#[derive(Debug)]
pub(super) struct Input {
    file: Arc<BlockingDrop<File>>,
    pub(super) metadata: Metadata,
    pub(super) lane: Lane,
    /// Readiness of a file that supports polling. A second descriptor of the same open file.
    reactor: Option<AsyncFd<OwnedFd>>,
}

/// Size and offset of a read.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReadRequest {
    /// At most this many bytes at an offset.
    At { start: u64, bytes: usize },
    /// At most this many bytes, from the end of the last read.
    Next { bytes: usize },
    /// This many bytes from the end of the last read; fewer only at the end of the file.
    Full { bytes: usize },
}

impl Input {
    /// Opens a file. Blocks; must run inside a Tokio runtime.
    pub(super) fn open(path: &Path, lane: Lane) -> io::Result<Self> {
        let file = regular::open_any(path, OFlags::RDONLY)?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let file = Arc::new(BlockingDrop::light(file, lane.clone()));
        let mut input = Self { file, metadata, lane, reactor: None };
        // A nonblocking read from a pipe without a writer reports the end of the file, so wait for readiness first.
        if kind.is_fifo() || kind.is_char_device() {
            input.reactor = input.watch()?;
        }
        Ok(input)
    }

    /// Registers the file. Returns `None` for files that are always ready, such as `/dev/zero` (EPERM, epoll_ctl(2)).
    fn watch(&self) -> io::Result<Option<AsyncFd<OwnedFd>>> {
        match sys::pollable(self.file.try_clone()?.into()) {
            Ok(reactor) => Ok(Some(reactor)),
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn is_regular(&self) -> bool {
        self.metadata.is_file()
    }

    /// Reads bytes; empty at the end of the file. Not cancel safe: bytes already read are lost.
    pub(super) async fn read(&mut self, request: ReadRequest) -> io::Result<Bytes> {
        loop {
            let ready = match &self.reactor {
                Some(reactor) => Some(reactor.readable().await?),
                None => None,
            };
            let file = Arc::clone(&self.file);
            let read = self.lane.run(move || read(&file, request)).await.map_err(io::Error::other)?;
            match (read, ready) {
                (Ok(bytes), _) => return Ok(bytes),
                (Err(Errno::AGAIN), Some(mut ready)) => ready.clear_ready(),
                // Some kernel files are regular and still return EAGAIN, such as `/proc/kmsg`.
                (Err(Errno::AGAIN), None) => match self.watch()? {
                    Some(reactor) => self.reactor = Some(reactor),
                    None => return Err(Errno::AGAIN.into()),
                },
                (Err(error), _) => return Err(error.into()),
            }
        }
    }
}

/// Blocks only for a disk or an unresponsive mount.
fn read(file: &File, request: ReadRequest) -> Result<Bytes, Errno> {
    let (ReadRequest::At { bytes: length, .. }
    | ReadRequest::Next { bytes: length }
    | ReadRequest::Full { bytes: length }) = request;
    let mut bytes = Vec::with_capacity(length);
    loop {
        let read = rustix::io::retry_on_intr(|| match request {
            ReadRequest::At { start, .. } => rustix::io::pread(file, spare_capacity(&mut bytes), start),
            ReadRequest::Next { .. } | ReadRequest::Full { .. } => rustix::io::read(file, spare_capacity(&mut bytes)),
        });
        let is_full = !matches!(request, ReadRequest::Full { .. }) || bytes.len() >= length;
        match read {
            Ok(0) => break,
            Ok(_) if is_full => break,
            Ok(_) => {}
            Err(Errno::AGAIN) if !bytes.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    if let ReadRequest::At { .. } = request {
        // The allocator may have reserved more than requested.
        bytes.truncate(length);
    }
    bytes.shrink_to_fit();
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use futures::FutureExt;

    use super::*;
    use crate::state::State;

    fn input(path: &Path) -> Input {
        Input::open(path, State::outside().file_calls.lane([path])).expect("open")
    }

    #[tokio::test]
    async fn a_pipe_waits_for_its_writer_and_ends_with_it() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let path: PathBuf = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("create");
        let mut pipe = input(&path);
        assert!(pipe.read(ReadRequest::Next { bytes: 10 }).now_or_never().is_none(), "no writer yet");
        let mut writer = File::options().write(true).open(&path).expect("open with a reader present");
        writer.write_all(b"text").expect("write");
        assert_eq!(pipe.read(ReadRequest::Next { bytes: 10 }).await.expect("read"), "text");
        drop(writer);
        assert_eq!(pipe.read(ReadRequest::Next { bytes: 10 }).await.expect("read"), "");
    }

    #[tokio::test]
    async fn devices_that_are_always_ready() {
        assert_eq!(input(Path::new("/dev/zero")).read(ReadRequest::Full { bytes: 3 }).await.expect("read"), "\0\0\0");
        assert_eq!(input(Path::new("/dev/null")).read(ReadRequest::Next { bytes: 3 }).await.expect("read"), "");
    }
}
