//! Responses of an upstream, streamed to the caller.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hearth_stdx::{TaskSet, WakeGated};
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::body::{self, Body, BoxError};
use crate::dial::Protocol;
use crate::engine::connection::Connection;
use crate::engine::group::AdmittedRequest;
use crate::engine::{Config, Error};
use crate::headers;

/// Safety margin subtracted from the idle time that an upstream announces (`Keep-Alive: timeout=`).
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// Admission and connection of an exchange in progress.
///
/// Dropping it before its end closes the connection.
pub(super) struct ActiveExchange {
    admitted: AdmittedRequest,
    connection: Connection,
    idle_timeout: Duration,
    idle_per_key_max: usize,
    idle_max: usize,
    tasks: TaskSet,
    /// Set when the response is first waited for.
    abort: Option<WakeGated<WaitForCancellationFutureOwned>>,
}

impl ActiveExchange {
    pub(super) fn new(admitted: AdmittedRequest, connection: Connection, config: &Config, tasks: &TaskSet) -> Self {
        let Config { idle_timeout, idle_per_key_max, idle_max, .. } = *config;
        Self { admitted, connection, idle_timeout, idle_per_key_max, idle_max, tasks: tasks.clone(), abort: None }
    }

    pub(super) fn is_http1(&self) -> bool {
        self.connection.protocol() == Protocol::Http1
    }

    /// Closes the connection after the response instead of reusing it.
    pub(super) fn close_after_response(&mut self) {
        self.idle_per_key_max = 0;
    }

    /// Returns the connection to the pool after the response was read.
    ///
    /// The rest of the request may still be in transit; a task waits until the connection is ready.
    fn finish(mut self) {
        if self.connection.is_ready() {
            self.return_to_pool();
        } else if self.connection.is_open() && tokio::runtime::Handle::try_current().is_ok() {
            let tasks = self.tasks.clone();
            tasks.spawn("end of an exchange", async move {
                let abort = self.admitted.abort_token();
                if abort.run_until_cancelled(self.connection.ready()).await == Some(true) {
                    self.return_to_pool();
                }
            });
        }
    }

    /// Polls for an abort, and registers `cx` for it.
    fn is_aborted(&mut self, cx: &mut Context<'_>) -> bool {
        let abort = self.abort.get_or_insert_with(|| {
            let abort = CancellationToken::clone(&self.admitted.abort_token());
            WakeGated::new(abort.cancelled_owned())
        });
        Pin::new(abort).poll(cx).is_ready()
    }

    fn return_to_pool(self) {
        self.admitted.put_idle(self.connection, self.idle_timeout, [self.idle_per_key_max, self.idle_max]);
    }
}

/// Returns the idle time that the upstream announces.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    Some(Duration::from_secs(seconds.parse().ok()?).saturating_sub(KEEP_ALIVE_MARGIN))
}

/// Returns true if a server with faulty HTTP may send a body after a head that allows none.
///
/// See RFC 9110, 9.3.2, 15.3.5 and 15.4.5. Those bytes would be taken for the next response.
pub(super) fn may_have_excess_body(is_head: bool, response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let has_no_body = matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let announces_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    is_head || has_no_body && announces_body
}

/// Returns the response with its body streaming. `is_sent`: the request body was read to its end.
pub(super) fn stream(mut exchange: ActiveExchange, response: Response<Incoming>, is_sent: bool) -> Response<Body> {
    if !is_sent {
        // The client may read the response only after it has sent its whole request.
        exchange.connection.detach(&exchange.tasks, exchange.admitted.abort_token());
    }
    let (mut parts, incoming) = response.into_parts();
    exchange.idle_timeout =
        keep_alive(&parts.headers).map_or(exchange.idle_timeout, |announced| announced.min(exchange.idle_timeout));
    headers::prepare_response(&mut parts);
    let mut body = UpstreamBody { incoming, exchange: Some(exchange) };
    // An empty body is never read.
    body.finish_if_ended();
    Response::from_parts(parts, body.boxed_unsync())
}

/// Returns the response of an upstream that has switched protocols.
pub(super) fn head_only(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, _) = response.into_parts();
    headers::prepare_response(&mut parts);
    Response::from_parts(parts, body::empty())
}

struct UpstreamBody {
    incoming: Incoming,
    /// Set until the body has ended.
    exchange: Option<ActiveExchange>,
}

impl UpstreamBody {
    fn finish_if_ended(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
    }
}

impl http_body::Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Some(exchange) = &mut this.exchange else { return Poll::Ready(None) };
        let incoming = &mut this.incoming;
        let polled = exchange.connection.poll(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx));
        if polled.is_ready() {
            exchange.connection.frame_received();
        }
        match &polled {
            // The body ends after trailers, and after the last byte of a known length; it is not polled again.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => this.finish(),
            Poll::Ready(Some(Ok(_))) => this.finish_if_ended(),
            Poll::Ready(Some(Err(_))) => drop(this.exchange.take()),
            Poll::Ready(None) => this.finish(),
            Poll::Pending if exchange.is_aborted(cx) => {
                drop(this.exchange.take());
                return Poll::Ready(Some(Err(Error::Closed.into())));
            }
            Poll::Pending => {}
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keep_alive_header_is_parsed() {
        let check = |value: &'static str, seconds: Option<u64>| {
            let headers: HeaderMap =
                [(http::HeaderName::from_static("keep-alive"), http::HeaderValue::from_static(value))]
                    .into_iter()
                    .collect();
            assert_eq!(keep_alive(&headers), seconds.map(Duration::from_secs), "{value}");
        };
        check("timeout=5", Some(4));
        check("max=100, timeout=5", Some(4));
        check("timeout=5, max=100", Some(4));
        check("timeout=0", Some(0));
        check("timeout=x", None);
        check("max=1", None);
    }
}
