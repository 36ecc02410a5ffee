//! Request body whose remainder is read and discarded if the handler does not read it.
//!
//! Most clients send their whole request before they read a reply, and reuse the connection. If the daemon closed it
//! after an early reply, they would see a broken connection instead of this reply, or of the next one. Therefore the
//! remainder of an unread body is read and discarded, within bounds.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// Bytes of an unread body that are discarded. Beyond them the connection is closed.
const DISCARDED_BYTES_MAX: usize = 64 << 20;
/// Time limit of the discarding.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);

/// A body as it arrives. When it is dropped early, a task reads the remainder.
pub(crate) struct RequestBody {
    /// `None` once the body has ended or failed.
    incoming: Option<Incoming>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self { incoming: Some(incoming) }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.incoming = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let unread = self.incoming.take().filter(|incoming| !incoming.is_end_stream());
        // Without a runtime there is no client.
        if let (Some(incoming), Ok(runtime)) = (unread, tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(DISCARD_TIMEOUT, discard(incoming)));
        }
    }
}

async fn discard(incoming: Incoming) {
    let mut frames = axum::body::Body::new(incoming).into_data_stream();
    let mut bytes = 0;
    while let Some(Ok(chunk)) = frames.next().await {
        bytes += chunk.len();
        if bytes > DISCARDED_BYTES_MAX {
            return;
        }
    }
}
