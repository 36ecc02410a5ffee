//! Requests that may be sent a second time.
//!
//! The upstream may have just closed an idle connection. A request that meets such a connection is resent on a new one
//! if the upstream cannot process it twice: no byte of it was written, or no byte was received and the upstream either
//! cannot have read it completely or processes a repetition without harm (RFC 9110, 9.2.2).
//!
//! All other requests avoid the risk: they do not use a connection that was idle for so long that common servers may be
//! about to close it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, request};
use http_body::{Frame, SizeHint};

use crate::body::{self, Body, BoxError};
use crate::engine::connection::Connection;
use crate::engine::http1::SendError;
use crate::headers;

/// Maximum idle time of a connection for a request that cannot be resent.
///
/// Common servers close idle connections after 5 s; dialling a guest takes a fraction of a millisecond.
const UNRETRYABLE_IDLE_MAX: Duration = Duration::from_secs(3);

/// Bytes of a body that are retained for a second attempt, if the server may not understand the first.
///
/// Few longer requests get a response before they are sent completely.
const RETAINED_BYTES_MAX: usize = 64 << 10;

/// State shared by a request and the bodies made of it.
struct BodyState {
    body: Mutex<Option<Body>>,
    /// Body bytes read so far, if they are retained.
    retained: Mutex<Option<Retained>>,
    /// The body was read to its end.
    is_sent: AtomicBool,
}

#[derive(Default)]
struct Retained {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Retained {
    /// Appends a frame. Returns false if the limit is exceeded or the frame is not data.
    fn add(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(chunk) = frame.data_ref() else { return false };
        self.bytes += chunk.len();
        self.chunks.push_back(chunk.clone());
        self.bytes <= RETAINED_BYTES_MAX
    }
}

/// Shows if a request's body was read to its end.
pub(super) struct SentFlag(Arc<BodyState>);

impl std::fmt::Debug for SentFlag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SentFlag").field(&self.is_set()).finish()
    }
}

impl SentFlag {
    pub(super) fn is_set(&self) -> bool {
        self.0.is_sent.load(Ordering::Relaxed)
    }
}

impl BodyState {
    fn retained(&self) -> MutexGuard<'_, Option<Retained>> {
        // A panic can lose only a chunk of the task that panicked.
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body(&self) -> MutexGuard<'_, Option<Body>> {
        // Taking the body is the only change, so a poisoned lock is usable.
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, until its final attempt.
pub(super) struct Replay {
    parts: Option<request::Parts>,
    state: Arc<BodyState>,
    has_body: bool,
    idempotent: bool,
}

impl Replay {
    pub(super) fn new(parts: request::Parts, body: Body) -> Self {
        let idempotent = headers::is_idempotent(&parts.method);
        let has_body = !http_body::Body::is_end_stream(&body);
        let state =
            BodyState { body: Mutex::new(Some(body)), retained: Mutex::new(None), is_sent: AtomicBool::new(!has_body) };
        Self { parts: Some(parts), state: Arc::new(state), has_body, idempotent }
    }

    /// Returns the maximum idle time of a connection for this request.
    pub(super) fn idle_max(&self) -> Duration {
        if self.idempotent && !self.has_body { Duration::MAX } else { UNRETRYABLE_IDLE_MAX }
    }

    /// Returns the request for an attempt that may meet a closed connection.
    pub(super) fn attempt(&self) -> Request<ReplayBody> {
        let parts = self.parts.clone().expect("there was no final attempt");
        Request::from_parts(parts, ReplayBody::new(&self.state))
    }

    /// Retains the beginning of the body as it is sent, until [`release_body`](Self::release_body).
    pub(super) fn retain_body(&self) {
        if self.has_body {
            *self.state.retained() = Some(Retained::default());
        }
    }

    /// Drops the retained bytes, because a response has arrived.
    pub(super) fn release_body(&self) {
        if self.has_body {
            *self.state.retained() = None;
        }
    }

    /// Returns true if the complete request can be resent.
    pub(super) fn is_complete(&self) -> bool {
        self.parts.is_some() && self.state.body().is_some()
    }

    /// Returns true if the request may be resent after it got no response on `connection`.
    pub(super) fn may_retry(&self, connection: &Connection, failure: &SendError) -> bool {
        // hyper reads the body only after it has sent the head, and drops an unread body unchanged.
        let body_unread = self.state.body().is_some();
        let incomplete = self.has_body && body_unread;
        body_unread && (failure.nothing_written || !connection.has_received() && (incomplete || self.idempotent))
    }

    /// Returns true if the body was read to its end.
    pub(super) fn is_sent(&self) -> bool {
        self.state.is_sent.load(Ordering::Relaxed)
    }

    /// Returns the request for the final attempt.
    pub(super) fn final_attempt(&mut self) -> Request<ReplayBody> {
        let parts = self.parts.take().expect("there is one final attempt");
        Request::from_parts(parts, ReplayBody::new(&self.state))
    }
}

/// Body of a request. Until the first read it stays in the shared state, where the next attempt finds it.
pub(super) struct ReplayBody {
    state: Arc<BodyState>,
    reading: Option<Body>,
    retains: bool,
    ended: bool,
    size: SizeHint,
}

impl ReplayBody {
    fn new(state: &Arc<BodyState>) -> Self {
        let (ended, size) = match &*state.body() {
            Some(body) => (http_body::Body::is_end_stream(body), http_body::Body::size_hint(body)),
            None => (true, SizeHint::with_exact(0)),
        };
        state.is_sent.store(ended, Ordering::Relaxed);
        Self { state: Arc::clone(state), reading: None, retains: state.retained().is_some(), ended, size }
    }

    pub(super) fn sent_flag(&self) -> SentFlag {
        SentFlag(Arc::clone(&self.state))
    }

    fn retain(&mut self, frame: &Frame<Bytes>) {
        let mut retained = self.state.retained();
        self.retains = retained.as_mut().is_some_and(|retained| retained.add(frame));
        if !self.retains {
            *retained = None;
        }
    }
}

impl http_body::Body for ReplayBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let reading = this.reading.get_or_insert_with(|| this.state.body().take().unwrap_or_else(body::empty));
        let frame = ready!(Pin::new(&mut *reading).poll_frame(cx));
        // A body of known length is not polled again after its last byte.
        if !matches!(frame, Some(Ok(_))) || http_body::Body::is_end_stream(reading) {
            this.state.is_sent.store(true, Ordering::Relaxed);
        }
        if this.retains
            && let Some(Ok(frame)) = &frame
        {
            this.retain(frame);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.reading.as_ref().map_or(self.ended, http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.reading.as_ref().map_or(self.size, http_body::Body::size_hint)
    }
}

impl Drop for ReplayBody {
    /// Returns the retained bytes and the unread rest to the shared state.
    fn drop(&mut self) {
        if self.retains
            && let Some(rest) = self.reading.take()
            && let Some(Retained { chunks, .. }) = self.state.retained().take()
        {
            *self.state.body() = Some(body::boxed(PrefixedBody { chunks, rest }));
        }
    }
}

/// Body that begins with chunks read before.
struct PrefixedBody {
    chunks: VecDeque<Bytes>,
    rest: Body,
}

impl http_body::Body for PrefixedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match this.chunks.pop_front() {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None => Pin::new(&mut this.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let retained = self.chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(retained + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(retained + upper);
        }
        hint
    }
}
