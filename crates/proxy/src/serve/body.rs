//! Request and response bodies of an exchange on the server's side.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hearth_stdx::TaskSet;
use http::{Version, header, request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::coop;

use crate::body::BoxError;
use crate::serve::connection_state::Exchange;

/// Limits of discarding an unread request body, so that the client gets to read the response.
const DISCARD_BYTES_MAX: usize = 64 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);

/// Body of a request.
pub(super) struct RequestBody {
    /// Set until it has ended.
    incoming: Option<Incoming>,
    /// Discard the unread rest. HTTP/2 can reject a body without closing the connection.
    discard: bool,
    /// The client sent `Expect: 100-continue`, and reading the body would make it send the body.
    expects_continue: bool,
    exchange: Arc<Exchange>,
    tasks: TaskSet,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, parts: &request::Parts, exchange: Arc<Exchange>, tasks: TaskSet) -> Self {
        let incoming = Some(incoming).filter(|incoming| !incoming.is_end_stream());
        let discard = parts.version != Version::HTTP_2;
        let expects_continue = parts.headers.contains_key(header::EXPECT);
        Self { incoming, discard, expects_continue, exchange, tasks }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        this.expects_continue = false;
        // The peer chooses the size of frames, and HTTP/2 may have them ready without reading from the socket.
        let budget = ready!(coop::poll_proceed(cx));
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        budget.made_progress();
        if !matches!(frame, Some(Ok(_))) || incoming.is_end_stream() {
            this.incoming = None;
            this.exchange.body_finished();
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
        let Some(incoming) = self.incoming.take() else { return };
        self.exchange.body_finished();
        if !self.discard
            || self.expects_continue
            || incoming.is_end_stream()
            || tokio::runtime::Handle::try_current().is_err()
        {
            return;
        }
        let exchange = Arc::clone(&self.exchange);
        let abort = self.tasks.token();
        self.tasks.spawn("discarded body", async move {
            let discarded = tokio::time::timeout(DISCARD_TIMEOUT, discard(incoming));
            let _ = abort.run_until_cancelled(discarded).await;
            drop(exchange);
        });
    }
}

async fn discard(mut incoming: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = incoming.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > DISCARD_BYTES_MAX {
            return;
        }
        coop::consume_budget().await;
    }
}

/// Body of a response.
pub(super) struct ResponseBody<B> {
    /// `None` for an empty body.
    body: Option<B>,
    exchange: Arc<Exchange>,
    /// The end of the connection marks the end of the body.
    close_delimited: bool,
    failure: Option<BoxError>,
}

impl<B> ResponseBody<B> {
    pub(super) fn new(body: Option<B>, exchange: Arc<Exchange>, close_delimited: bool) -> Self {
        Self { body, exchange, close_delimited, failure: None }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(failure) = this.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        // The HTTP/2 writer takes all frames that are ready.
        let budget = ready!(coop::poll_proceed(cx));
        let frame = ready!(Pin::new(body).poll_frame(cx));
        budget.made_progress();
        match frame {
            Some(Err(failure)) => {
                if this.close_delimited {
                    this.exchange.require_reset();
                }
                // hyper drops unwritten data when a body fails. The chunks before the failure belong to the client;
                // they are written while the body reports that no frame is ready.
                this.failure = Some(failure.into());
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            frame => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}
