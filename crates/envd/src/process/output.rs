//! Reader of a process's output.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hearth_envd_api::process::__buffa::oneof::process_event::data_event::Output;
use rustix::buffer::spare_capacity;
use tokio::io::unix::AsyncFd;

use super::followers::Followers;
use crate::log::{Log, OutputLines};

/// A descriptor from which output is read.
pub(super) struct Source {
    pub(super) descriptor: Arc<AsyncFd<OwnedFd>>,
    /// Constructor of the stream's output event.
    pub(super) kind: fn(Vec<u8>) -> Output,
    /// Largest piece in one event, in bytes.
    pub(super) chunk_bytes: usize,
}

/// Destination of output: followers and log.
pub(super) struct Destination<'a> {
    pub(super) followers: &'a Followers,
    pub(super) log: &'a Log,
    pub(super) lines: OutputLines,
}

impl Destination<'_> {
    async fn write(&mut self, bytes: Vec<u8>, kind: fn(Vec<u8>) -> Output) {
        if self.log.logs_output() {
            self.lines.push(self.log, &bytes);
        }
        self.followers.publish(kind(bytes)).await;
    }
}

impl Drop for Destination<'_> {
    fn drop(&mut self) {
        self.lines.flush(self.log);
    }
}

impl Source {
    /// Publishes output to the followers, and to the log if enabled, until it ends or `over` completes.
    ///
    /// Reads only as fast as the followers take output. `over` is created again for each piece. Not cancel safe: a
    /// piece may be lost.
    pub(super) async fn copy<F: Future<Output = ()>>(self, mut destination: Destination<'_>, over: impl Fn() -> F) {
        loop {
            // Both arms are cancel safe: becoming readable takes nothing.
            let ready = tokio::select! {
                biased;
                ready = self.descriptor.readable() => ready,
                () = over() => return,
            };
            let Ok(mut ready) = ready else { return };
            // Allocated per piece, so that silent processes occupy no memory.
            let mut bytes = Vec::with_capacity(self.chunk_bytes);
            let read = ready.try_io(|inner| Ok(rustix::io::read(inner.get_ref(), spare_capacity(&mut bytes))?));
            match read {
                // EIO: the last process has closed its side of a terminal (pty(7)).
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(_)) => {
                    bytes.shrink_to_fit();
                    destination.write(bytes, self.kind).await;
                }
                Err(_would_block) => {}
            }
        }
    }
}
