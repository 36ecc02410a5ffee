//! The answer of an upstream on its way to whoever asked.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hearth_stdx::{Seldom, TaskSet};
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::body::{self, Body, BoxError};
use crate::dial::Protocol;
use crate::engine::group::Admission;
use crate::engine::link::Link;
use crate::engine::{Config, Error};
use crate::hop;

/// How much earlier than the upstream says (`Keep-Alive: timeout=`) a connection is given up.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// What an exchange holds while it lasts: its place in its group, and its connection. Dropped before the end, it closes the
/// connection.
pub(super) struct Lease {
    admission: Admission,
    connection: Link,
    keep: Duration,
    idle_per_key_max: usize,
    idle_max: usize,
    tasks: TaskSet,
    /// From when on the answer is waited for.
    cut: Option<Seldom<WaitForCancellationFutureOwned>>,
}

impl Lease {
    pub(super) fn new(admission: Admission, connection: Link, config: &Config, tasks: &TaskSet) -> Self {
        let Config { idle_timeout: keep, idle_per_key_max, idle_max, .. } = *config;
        Self { admission, connection, keep, idle_per_key_max, idle_max, tasks: tasks.clone(), cut: None }
    }

    pub(super) fn is_http1(&self) -> bool {
        self.connection.protocol() == Protocol::Http1
    }

    /// Closes the connection after the answer instead of using it again.
    pub(super) fn close_at_end(&mut self) {
        self.idle_per_key_max = 0;
    }

    /// The answer has been read to its end: keeps the connection for the next request as soon as it is ready for it. Until
    /// then, the rest of the request may still be on its way.
    fn end(mut self) {
        if self.connection.is_ready() {
            self.keep_idle();
        } else if self.connection.is_open() && tokio::runtime::Handle::try_current().is_ok() {
            let tasks = self.tasks.clone();
            tasks.spawn("end of an exchange", async move {
                let cut = self.admission.cut();
                if cut.run_until_cancelled(self.connection.ready()).await == Some(true) {
                    self.keep_idle();
                }
            });
        }
    }

    /// Whether it is to end at once. `cx` is woken then.
    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        let cut = self.cut.get_or_insert_with(|| {
            let cut = CancellationToken::clone(&self.admission.cut());
            Seldom::new(cut.cancelled_owned())
        });
        Pin::new(cut).poll(cx).is_ready()
    }

    fn keep_idle(self) {
        self.admission.put_idle(self.connection, self.keep, [self.idle_per_key_max, self.idle_max]);
    }
}

/// How long the upstream keeps the connection, if it says so.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    Some(Duration::from_secs(seconds.parse().ok()?).saturating_sub(KEEP_ALIVE_MARGIN))
}

/// Whether a program that does not know HTTP well may send a body behind this head, where there must be none (RFC 9110, 9.3.2,
/// 15.3.5 and 15.4.5). Those bytes would be taken for the next answer.
pub(super) fn may_be_overlong(asked_head: bool, response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let is_bare = matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let announces = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    asked_head || is_bare && announces
}

/// The answer, with its body streaming. `is_sent`: so is the request, to its end.
pub(super) fn stream(mut lease: Lease, response: Response<Incoming>, is_sent: bool) -> Response<Body> {
    if !is_sent {
        // Clients may read the answer only after they have sent everything.
        lease.connection.detach(&lease.tasks, lease.admission.cut());
    }
    let (mut parts, incoming) = response.into_parts();
    lease.keep = keep_alive(&parts.headers).map_or(lease.keep, |told| told.min(lease.keep));
    hop::prepare_response(&mut parts);
    let mut answer = Answer { incoming, lease: Some(lease) };
    // Nobody reads a body that is not there.
    answer.end_if_over();
    Response::from_parts(parts, answer.boxed_unsync())
}

/// The answer of an upstream that has switched protocols.
pub(super) fn head_only(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, _) = response.into_parts();
    hop::prepare_response(&mut parts);
    Response::from_parts(parts, body::empty())
}

struct Answer {
    incoming: Incoming,
    /// Until the body has ended.
    lease: Option<Lease>,
}

impl Answer {
    fn end_if_over(&mut self) {
        if self.incoming.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.end();
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Some(lease) = &mut this.lease else { return Poll::Ready(None) };
        let incoming = &mut this.incoming;
        let polled = lease.connection.poll(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx));
        if polled.is_ready() {
            lease.connection.advanced();
        }
        match &polled {
            // Nothing comes after trailers, and after the last byte of a known length; nobody polls again to be told so.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => this.end(),
            Poll::Ready(Some(Ok(_))) => this.end_if_over(),
            Poll::Ready(Some(Err(_))) => drop(this.lease.take()),
            Poll::Ready(None) => this.end(),
            Poll::Pending if lease.is_cut(cx) => {
                drop(this.lease.take());
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
    fn an_upstream_s_word_about_idle_connections_counts() {
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
