//! A watch that pushes its events; it is dropped with the stream.

use std::time::{Duration, Instant};

use connectrpc::ConnectError;
use futures::Stream;
use hearth_envd_api::filesystem::watch_dir_response::{KeepAlive, StartEvent};
use hearth_envd_api::filesystem::{FilesystemEvent, WatchDirResponse};

use super::Watch;
use crate::rpc;

/// Returns the start message, then events as they occur, and keepalives while there are none.
///
/// The flow control of the stream reaches the kernel's queue: nothing is read while the client does not read.
pub(in crate::filesystem) fn stream(
    watch: Watch,
    keepalive: Duration,
    deadline: Option<Instant>,
) -> impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send + 'static {
    let follower = Follower {
        watch: Some(watch),
        is_started: false,
        is_drained: true,
        pending: Vec::new().into_iter(),
        keepalive,
        deadline,
    };
    futures::stream::unfold(follower, |mut follower| async move {
        let message = follower.next().await?;
        Some((message, follower))
    })
}

struct Follower {
    /// `None` once the stream has ended.
    watch: Option<Watch>,
    is_started: bool,
    /// The last batch emptied the kernel's queue.
    is_drained: bool,
    pending: std::vec::IntoIter<FilesystemEvent>,
    keepalive: Duration,
    deadline: Option<Instant>,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<WatchDirResponse, ConnectError>> {
        if !std::mem::replace(&mut self.is_started, true) {
            return Some(Ok(WatchDirResponse { event: Some(StartEvent::default().into()), ..Default::default() }));
        }
        loop {
            if let Some(event) = self.pending.next() {
                return Some(Ok(WatchDirResponse { event: Some(event.into()), ..Default::default() }));
            }
            let watch = self.watch.as_mut()?;
            // All arms are cancel safe: becoming readable takes nothing from the queue.
            tokio::select! {
                biased;
                () = rpc::deadline_passed(self.deadline) => {
                    self.watch = None;
                    return Some(Err(rpc::deadline_exceeded()));
                }
                ready = watch.inotify.readable(), if self.is_drained => {
                    if let Ok(mut ready) = ready {
                        ready.clear_ready();
                    }
                }
                () = std::future::ready(()), if !self.is_drained => {}
                () = tokio::time::sleep(self.keepalive) => {
                    let event = Some(KeepAlive::default().into());
                    return Some(Ok(WatchDirResponse { event, ..Default::default() }));
                }
            }
            // The watch moves to a thread that may block and returns; if the call is cancelled meanwhile, it ends with
            // the call.
            let mut watch = self.watch.take()?;
            let lane = watch.lane.clone();
            let drained = lane.run(move || {
                let drained = watch.drain();
                (watch, drained)
            });
            match drained.await {
                Ok((watch, Ok(drained))) => {
                    self.watch = Some(watch);
                    self.is_drained = drained.is_empty;
                    self.pending = drained.events.into_iter();
                }
                Ok((_, Err(error))) => return Some(Err(error)),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}
