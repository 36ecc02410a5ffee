//! Pipes and devices, written as the content arrives.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::failure::Failure;
use crate::path_calls::{BlockingDrop, Lane};
use crate::{regular, sys};

/// An open pipe or device. Its owner does not change.
pub(super) struct Output {
    file: Arc<BlockingDrop<File>>,
    lane: Lane,
    /// Readiness of a file that supports polling. A second descriptor of the same open file.
    reactor: Option<AsyncFd<OwnedFd>>,
}

impl Output {
    /// Opens a pipe, which must have a reader, or a device. Blocks; must run inside a Tokio runtime.
    pub(super) fn open(path: &Path, lane: Lane) -> Result<Self, Failure> {
        let opened = regular::open_any(path, OFlags::WRONLY).and_then(|file| {
            match sys::pollable(file.try_clone()?.into()) {
                Ok(reactor) => Ok((file, Some(reactor))),
                // Always ready, as `/dev/null` is (epoll_ctl(2)).
                Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok((file, None)),
                Err(error) => Err(error),
            }
        });
        let (file, reactor) = opened.map_err(|error| {
            if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) {
                let text = format!("path '{}' is a pipe without a reader, or a socket", path.display());
                return Failure::bad_request(text);
            }
            super::open_failure(&error)
        })?;
        Ok(Self { file: Arc::new(BlockingDrop::light(file, lane.clone())), lane, reactor })
    }

    /// Writes all bytes. Not cancel safe: a part may be written.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = Bytes::copy_from_slice(bytes);
        while !rest.is_empty() {
            let ready = match &self.reactor {
                Some(reactor) => Some(reactor.writable().await?),
                None => None,
            };
            let (file, piece) = (Arc::clone(&self.file), rest.clone());
            let written = self.lane.run(move || rustix::io::retry_on_intr(|| rustix::io::write(&**file, &piece))).await;
            match (written.map_err(io::Error::other)?, ready) {
                (Ok(0), _) => return Err(io::ErrorKind::WriteZero.into()),
                (Ok(length), _) => rest.advance(length),
                (Err(Errno::AGAIN), Some(mut ready)) => ready.clear_ready(),
                (Err(error), _) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
