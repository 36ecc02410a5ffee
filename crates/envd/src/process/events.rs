//! What a follower of a process hears.

use std::time::{Duration, Instant};

use connectrpc::ConnectError;
use futures::Stream;
use hearth_envd_api::process::__buffa::oneof::process_event::Event;
use hearth_envd_api::process::__buffa::oneof::process_event::data_event::Output;
use hearth_envd_api::process::ProcessEvent;
use hearth_envd_api::process::process_event::{DataEvent, EndEvent, KeepAlive, StartEvent};
use tokio::sync::mpsc;

use crate::rpc;

/// Chunks that wait for one follower. A full queue stops the reading of the process's output.
pub(super) const QUEUE_CHUNKS: usize = 64;

/// A piece of output, or the end.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Data(Output),
    End(EndEvent),
}

/// One follower's queue.
pub(super) struct Feed {
    items: mpsc::Receiver<Item>,
}

impl Feed {
    pub(super) fn new() -> (mpsc::Sender<Item>, Self) {
        let (sender, items) = mpsc::channel(QUEUE_CHUNKS);
        (sender, Self { items })
    }

    /// A feed of a process that has ended.
    pub(super) fn ended(end: EndEvent) -> Self {
        let (sender, feed) = Self::new();
        // The queue is empty, so there is room.
        let _ = sender.try_send(Item::End(end));
        feed
    }

    /// The start event, everything that comes, keepalives in silences, the end event. The deadline ends the stream only.
    pub(super) fn follow(
        self,
        pid: u32,
        keepalive: Duration,
        deadline: Option<Instant>,
    ) -> impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send + 'static {
        let start = Some(Event::from(StartEvent { pid, ..Default::default() }));
        let follower = Follower { items: Some(self.items), start, keepalive, deadline };
        futures::stream::unfold(follower, |mut follower| async move {
            let event = follower.next().await?;
            Some((event.map(|event| ProcessEvent { event: Some(event), ..Default::default() }), follower))
        })
    }
}

struct Follower {
    /// `None` once the stream is over.
    items: Option<mpsc::Receiver<Item>>,
    start: Option<Event>,
    keepalive: Duration,
    deadline: Option<Instant>,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Event, ConnectError>> {
        if let Some(start) = self.start.take() {
            return Some(Ok(start));
        }
        let items = self.items.as_mut()?;
        // All arms are cancel safe: a receive that is not chosen takes nothing. The deadline comes first, because output
        // that never pauses must not hide it.
        let item = tokio::select! {
            biased;
            () = rpc::passed(self.deadline) => {
                self.items = None;
                return Some(Err(rpc::deadline_exceeded()));
            }
            item = items.recv() => item,
            () = tokio::time::sleep(self.keepalive) => return Some(Ok(KeepAlive::default().into())),
        };
        match item {
            Some(Item::Data(output)) => Some(Ok(DataEvent { output: Some(output), ..Default::default() }.into())),
            Some(Item::End(end)) => {
                self.items = None;
                Some(Ok(end.into()))
            }
            None => {
                self.items = None;
                Some(Err(ConnectError::internal("the process's events broke off")))
            }
        }
    }
}
