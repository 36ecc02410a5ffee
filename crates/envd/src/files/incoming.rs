//! The body of an upload, which is read to its end even if nobody wants it any more.
//!
//! Most clients send their whole request before they look for an answer. If the daemon closed the connection on an early
//! error, they would see a broken connection and not the error. So the rest of an unwanted body is read and thrown away,
//! within bounds.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::BodyDataStream;
use bytes::Bytes;
use futures::{Stream, StreamExt};

/// How much of an unwanted body is read. Who sends more gets a closed connection.
const UNWANTED_BYTES_MAX: usize = 64 << 20;
/// And for how long.
const UNWANTED_PATIENCE: Duration = Duration::from_secs(30);

/// A stream of the body's pieces. When it is dropped early, a task reads the rest.
pub(super) struct Incoming {
    /// `None` once the body has ended or failed.
    body: Option<BodyDataStream>,
}

impl Incoming {
    pub(super) fn new(body: BodyDataStream) -> Self {
        Self { body: Some(body) }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = body.poll_next_unpin(context).map(|item| item.map(|chunk| chunk.map_err(io::Error::other)));
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Outside of a runtime there is no client left.
        if let (Some(body), Ok(runtime)) = (self.body.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(UNWANTED_PATIENCE, drain(body)));
        }
    }
}

async fn drain(mut body: BodyDataStream) {
    let mut drained = 0;
    while let Some(Ok(chunk)) = body.next().await {
        drained += chunk.len();
        if drained > UNWANTED_BYTES_MAX {
            return;
        }
    }
}
