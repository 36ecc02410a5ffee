//! A connection to an upstream in either version of HTTP.

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

/// A connection to an upstream, for one request at a time.
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

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<ReplayBody>) -> Result<Response<Incoming>, SendError> {
        match self {
            Self::Http1(connection) => connection.send(request).await,
            // Seldom, and large.
            Self::Http2(connection) => Box::pin(connection.send(request)).await,
        }
    }

    /// Polls what waits for something of this connection.
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

    /// Notes that a frame of the answer came. HTTP/2 bounds by itself what comes without one.
    pub(super) fn frame_received(&self) {
        if let Self::Http1(connection) = self {
            connection.frame_received();
        }
    }

    /// Notes that the connection stops speaking HTTP.
    pub(super) fn switch_protocols(&self) {
        if let Self::Http1(connection) = self {
            connection.switch_protocols();
        }
    }

    /// Lets the request go on whether the answer is read or not, until `cut`. In HTTP/2 it does so anyway.
    pub(super) fn detach(&mut self, tasks: &TaskSet, abort: Arc<CancellationToken>) {
        if let Self::Http1(connection) = self {
            connection.detach(tasks, abort);
        }
    }

    /// Whether anything came back of an answer that did not come whole. In HTTP/2 nothing of it is seen before its head.
    pub(super) fn has_received(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.has_received(),
            Self::Http2(_) => false,
        }
    }

    /// Whether the server answered HTTP/1.1 with the beginning of HTTP/2: it has not understood the request.
    pub(super) fn saw_http2(&self) -> bool {
        matches!(self, Self::Http1(connection) if connection.saw_http2())
    }

    /// Whether the next request can be sent now.
    pub(super) fn is_ready(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_ready(),
            Self::Http2(connection) => connection.is_ready(),
        }
    }

    /// Whether the connection may become ready, or is.
    pub(super) fn is_open(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_open(),
            Self::Http2(connection) => connection.is_ready(),
        }
    }

    /// Waits until the request is sent to its end and the answer read to its end. `false`: the connection ended instead.
    /// Cancel safe.
    pub(super) async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.ready().await,
            Self::Http2(connection) => connection.is_ready(),
        }
    }

    /// Nobody waits for it until it is taken again.
    pub(super) fn clear_waker(&self) {
        if let Self::Http1(connection) = self {
            connection.clear_waker();
        }
    }
}
