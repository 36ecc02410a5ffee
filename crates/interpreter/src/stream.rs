//! Stream of events from a context to a client.
//!
//! The context waits while a client has not taken what was sent before, and the kernel waits for the context: nothing grows
//! with a slow client. The receiving side adds a keepalive after silence, also while the execution is queued.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::event;

/// Bytes of events that were not taken by the client; one larger event may be pending alone.
const PENDING_BYTES_MAX: u32 = 256 << 10;
/// Events that were not taken by the client.
const PENDING_EVENTS_MAX: usize = 256;
/// Silence after which a keepalive is sent, as the contract says.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Sending side. Dropping it ends the stream.
pub(crate) struct Sender {
    events: mpsc::Sender<Pending>,
    budget: Arc<Semaphore>,
}

/// Event and its share of the budget.
struct Pending {
    line: Bytes,
    _share: OwnedSemaphorePermit,
}

/// The client has left.
#[derive(Debug)]
pub(crate) struct Gone;

/// Makes a stream: its sending side, and the body for the client.
pub(crate) fn channel() -> (Sender, impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) {
    let (events, receiver) = mpsc::channel::<Pending>(PENDING_EVENTS_MAX);
    let budget = Arc::new(Semaphore::new(usize::try_from(PENDING_BYTES_MAX).unwrap_or(usize::MAX)));
    let body = futures::stream::unfold((receiver, None), |(mut receiver, _taken)| async move {
        match timeout(SILENCE_MAX, receiver.recv()).await {
            // The share is released when the next event is requested: then the client has taken this one.
            Ok(Some(Pending { line, _share })) => Some((Ok(line), (receiver, Some(_share)))),
            Ok(None) => None,
            Err(_) => Some((Ok(Bytes::from_static(event::KEEPALIVE)), (receiver, None))),
        }
    });
    (Sender { events, budget }, body)
}

impl Sender {
    /// Sends an event once the client has taken enough of the earlier ones. Cancel safe: nothing is sent then.
    pub(crate) async fn send(&self, line: Bytes) -> Result<(), Gone> {
        let bytes = u32::try_from(line.len()).unwrap_or(u32::MAX).min(PENDING_BYTES_MAX);
        let share = tokio::select! {
            share = Arc::clone(&self.budget).acquire_many_owned(bytes) => share.map_err(|_| Gone)?,
            () = self.events.closed() => return Err(Gone),
        };
        self.events.send(Pending { line, _share: share }).await.map_err(|_| Gone)
    }

    /// Waits until the client has left. Cancel safe.
    pub(crate) async fn gone(&self) {
        self.events.closed().await;
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.events.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_keepalives() {
        let (sender, body) = channel();
        let mut body = std::pin::pin!(body);
        let begun = tokio::time::Instant::now();
        assert_eq!(body.next().await.expect("open").expect("sound"), event::KEEPALIVE);
        assert_eq!(begun.elapsed().as_secs(), SILENCE_MAX.as_secs());
        sender.send(Bytes::from_static(event::END)).await.expect("a client");
        drop(sender);
        assert_eq!(body.next().await.expect("open").expect("sound"), event::END);
        assert!(body.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_stops_the_sender() {
        let (sender, body) = channel();
        let mut body = std::pin::pin!(body);
        let large = Bytes::from(vec![b'x'; 8 << 20]);
        sender.send(large.clone()).await.expect("one fits");
        let blocked = timeout(Duration::from_secs(60), sender.send(large.clone())).await;
        assert!(blocked.is_err(), "the second event waits");
        assert_eq!(body.next().await.expect("open").expect("sound").len(), large.len());
        let (sent, taken) = tokio::join!(sender.send(large), body.next());
        sent.expect("a client");
        assert!(taken.is_some());
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed() {
        let (sender, body) = channel();
        drop(body);
        sender.gone().await;
        assert!(sender.is_gone() && sender.send(Bytes::from_static(b"x")).await.is_err());
    }
}
