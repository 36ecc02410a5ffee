//! Who follows a process, and how output gets to all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_envd_api::process::__buffa::oneof::process_event::data_event::Output;
use hearth_envd_api::process::process_event::EndEvent;
use tokio::sync::mpsc;

use super::events::{Feed, Item};

#[derive(Debug, Default)]
pub(super) struct Followers {
    inner: Mutex<Fan>,
}

#[derive(Debug, Default)]
struct Fan {
    queues: Vec<mpsc::Sender<Item>>,
    /// Once it is told, for those who come in the moment after.
    end: Option<EndEvent>,
    /// Output that came, whoever heard it.
    bytes: u64,
}

impl Followers {
    fn inner(&self) -> MutexGuard<'_, Fan> {
        // Every section is one step on a valid list.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything from now on.
    pub(super) fn add(&self) -> Feed {
        let mut fan = self.inner();
        if let Some(end) = &fan.end {
            return Feed::ended(end.clone());
        }
        let (sender, feed) = Feed::new();
        fan.queues.push(sender);
        feed
    }

    /// Hands a piece of output to every follower, waiting for each; those who left are forgotten at once. Not cancel safe:
    /// some may have it then, and others not.
    pub(super) async fn tell(&self, output: Output) {
        let queues = {
            let mut fan = self.inner();
            fan.bytes += length(&output);
            fan.queues.retain(|queue| !queue.is_closed());
            fan.queues.clone()
        };
        send(queues, Item::Data(output)).await;
    }

    /// How much output there was.
    pub(super) fn bytes(&self) -> u64 {
        self.inner().bytes
    }

    /// Tells the end to every follower, now and later. A follower that does not listen keeps no other one from hearing it.
    pub(super) async fn finish(&self, end: EndEvent) {
        let queues = {
            let mut fan = self.inner();
            fan.end = Some(end.clone());
            std::mem::take(&mut fan.queues)
        };
        send(queues, Item::End(end)).await;
    }
}

fn length(output: &Output) -> u64 {
    let (Output::Stdout(bytes) | Output::Stderr(bytes) | Output::Pty(bytes)) = output;
    bytes.len() as u64
}

async fn send(queues: Vec<mpsc::Sender<Item>>, item: Item) {
    // Sending fails when the follower leaves, also while this waits for it.
    if let [only] = queues.as_slice() {
        let _ = only.send(item).await;
        return;
    }
    futures::future::join_all(queues.iter().map(|queue| queue.send(item.clone()))).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt, StreamExt};
    use hearth_envd_api::process::__buffa::oneof::process_event::Event;

    use super::super::events::QUEUE_CHUNKS;
    use super::*;

    /// How many pieces of output a feed has, and whether the end is there.
    async fn heard(feed: Feed) -> (usize, bool) {
        let events: Vec<_> = feed.follow(1, Duration::from_secs(3600), None).collect().await;
        let events = events.into_iter().map(|event| event.expect("no error").event.expect("of some kind"));
        let mut counted = (0, false);
        for event in events {
            match event {
                Event::Data(_) => counted.0 += 1,
                Event::End(_) => counted.1 = true,
                Event::Start(_) | Event::Keepalive(_) => {}
            }
        }
        counted
    }

    fn piece() -> Output {
        Output::Stdout(b"x".to_vec())
    }

    #[tokio::test]
    async fn a_full_queue_makes_everybody_wait_until_its_owner_leaves() {
        let followers = Followers::default();
        let (stalled, other) = (followers.add(), followers.add());
        for _ in 0..QUEUE_CHUNKS {
            assert_eq!(followers.tell(piece()).now_or_never(), Some(()));
        }
        let mut waiting = Box::pin(followers.tell(piece()));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        let other = tokio::spawn(heard(other));
        tokio::task::yield_now().await;
        assert_eq!(waiting.as_mut().now_or_never(), None, "the other one has read, the stalled one has not");
        drop(stalled);
        waiting.await;
        followers.finish(EndEvent::default()).await;
        assert_eq!(other.await.expect("no panic"), (QUEUE_CHUNKS + 1, true));
    }

    #[tokio::test]
    async fn whoever_comes_whenever_hears_the_end() {
        let followers = Followers::default();
        let early = followers.add();
        followers.tell(piece()).await;
        let late = followers.add();
        followers.finish(EndEvent::default()).await;
        let too_late = followers.add();
        assert_eq!(heard(early).await, (1, true));
        assert_eq!(heard(late).await, (0, true));
        assert_eq!(heard(too_late).await, (0, true));
    }
}
