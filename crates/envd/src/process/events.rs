//! Event stream of a process's follower.

use std::time::{Duration, Instant};

use connectrpc::ConnectError;
use futures::Stream;
use hearth_envd_api::process::__buffa::oneof::process_event::Event;
use hearth_envd_api::process::ProcessEvent;
use hearth_envd_api::process::process_event::{DataEvent, KeepAlive, StartEvent};

use super::followers::{Feed, Item, STALL_TIMEOUT};
use crate::rpc;

impl Feed {
    /// Streams the start event, output, keepalives during silence, and the end event. The deadline ends only the
    /// stream.
    pub(super) fn follow(
        self,
        pid: u32,
        keepalive: Duration,
        deadline: Option<Instant>,
    ) -> impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send + 'static {
        let start = Some(Event::from(StartEvent { pid, ..Default::default() }));
        let follower = Follower { feed: Some(self), start, keepalive, deadline };
        futures::stream::unfold(follower, |mut follower| async move {
            let event = follower.next().await?;
            Some((event.map(|event| ProcessEvent { event: Some(event), ..Default::default() }), follower))
        })
    }
}

struct Follower {
    /// `None` once the stream has ended.
    feed: Option<Feed>,
    start: Option<Event>,
    keepalive: Duration,
    deadline: Option<Instant>,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Event, ConnectError>> {
        if let Some(start) = self.start.take() {
            return Some(Ok(start));
        }
        let feed = self.feed.as_mut()?;
        // All arms are cancel safe: a poll that is not selected takes nothing. The deadline is polled first, because
        // continuous output must not hide it.
        let item = tokio::select! {
            biased;
            () = rpc::deadline_passed(self.deadline) => {
                self.feed = None;
                return Some(Err(rpc::deadline_exceeded()));
            }
            item = feed.next() => item,
            () = tokio::time::sleep(self.keepalive) => return Some(Ok(KeepAlive::default().into())),
        };
        match item {
            Item::Data(output) => Some(Ok(DataEvent { output: Some(output), ..Default::default() }.into())),
            Item::End(end) => {
                self.feed = None;
                Some(Ok(end.into()))
            }
            Item::Dropped => {
                self.feed = None;
                Some(Err(dropped()))
            }
        }
    }
}

/// Returns the error of a dropped follower.
///
/// Clients treat `resource_exhausted` as a rate limit and advise to retry the command; `aborted` has no such meaning,
/// and its message is shown unchanged.
fn dropped() -> ConnectError {
    ConnectError::aborted(format!(
        "the output was not read for {} seconds while more was pending, so the stream was closed; the process continues: \
         connect to it again to follow its output",
        STALL_TIMEOUT.as_secs()
    ))
}
