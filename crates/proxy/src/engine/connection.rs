//! Upstream connection of either HTTP version.

use std::sync::Arc;
use std::task::{Context, Poll};

use hearth_stdx::TaskSet;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::dial::Protocol;
use crate::engine::http1::{self, SendError};
use crate::engine::http2;
use crate::engine::replay::ReplayBody;

/// Connection to an upstream, for one request at a time.
#[derive(Debug)]
pub(super) enum Connection {
    Http1(http1::Connection),
    Http2(http2::Connection),
}

impl Connection {
    pub(super) fn protocol(&self) -> Protocol {
        match self {
            Self::Http1(_) => Protocol::Http1,
            Self::Http2(_) => Protocol::Http2,
        }
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: Request<ReplayBody>) -> Result<Response<Incoming>, SendError> {
        match self {
            Self::Http1(connection) => connection.send(request).await,
            // Rare, and a large future.
            Self::Http2(connection) => Box::pin(connection.send(request)).await,
        }
    }

    /// Polls a request's progress together with the connection's I/O.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll_request: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match self {
            Self::Http1(connection) => connection.poll(cx, poll_request),
            Self::Http2(_) => poll_request(cx),
        }
    }

    /// Records that a frame of the response was received. HTTP/2 itself limits bytes without a frame.
    pub(super) fn frame_received(&self) {
        if let Self::Http1(connection) = self {
            connection.frame_received();
        }
    }

    /// Records that the connection stops speaking HTTP.
    pub(super) fn switch_protocols(&self) {
        if let Self::Http1(connection) = self {
            connection.switch_protocols();
        }
    }

    /// Spawns a task for the connection's I/O, so that the request continues even if the response is not read.
    ///
    /// The task stops at `abort`. Does nothing in HTTP/2, whose I/O always is in a task.
    pub(super) fn detach(&mut self, tasks: &TaskSet, abort: Arc<CancellationToken>) {
        if let Self::Http1(connection) = self {
            connection.detach(tasks, abort);
        }
    }

    /// Returns true if bytes of an incomplete response were received.
    ///
    /// Always false in HTTP/2, which shows nothing of a response before its head.
    pub(super) fn has_received(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.has_received(),
            Self::Http2(_) => false,
        }
    }

    /// Returns true if the server responded to HTTP/1.1 with HTTP/2, and so has not understood the request.
    pub(super) fn saw_http2(&self) -> bool {
        matches!(self, Self::Http1(connection) if connection.saw_http2())
    }

    /// Returns true if the next request can be sent now.
    pub(super) fn is_ready(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_ready(),
            Self::Http2(connection) => connection.is_ready(),
        }
    }

    /// Returns true if the connection is ready or may become ready.
    pub(super) fn is_open(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_open(),
            Self::Http2(connection) => connection.is_ready(),
        }
    }

    /// Waits until the request is sent and the response is read. Returns false if the connection closed instead.
    ///
    /// Cancel safe.
    pub(super) async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.ready().await,
            Self::Http2(connection) => connection.is_ready(),
        }
    }

    /// Drops the waker: no task waits for this connection until it is used again.
    pub(super) fn clear_waker(&self) {
        if let Self::Http1(connection) = self {
            connection.clear_waker();
        }
    }
}
