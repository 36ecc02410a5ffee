//! A request that may have to be sent a second time.
//!
//! An idle connection may have been closed by the upstream a moment ago. A request that met one is sent again on a new
//! connection if that is sure to be no second time for the upstream: when nothing of it was written, or nothing came back and
//! either the upstream cannot have seen it whole, or seeing it twice does no harm. (RFC 9110, 9.2.2, forbids more.)
//!
//! For all other requests the risk is retained away: they do not take a connection that was idle for long enough to be one that a
//! common server is about to close.

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

/// How long a connection may have been idle for a request that cannot be sent twice. Common servers close after 5 s; dialling
/// a guest costs a fraction of a millisecond.
const UNRETRYABLE_IDLE_MAX: Duration = Duration::from_secs(3);

/// Bytes of a body that are retained for a second attempt where the first one may meet a server that does not understand it. Few
/// requests are longer that servers answer before they are over.
const RETAINED_BYTES_MAX: usize = 64 << 10;

/// What the request and the bodies made of it share.
struct BodyState {
    body: Mutex<Option<Body>>,
    /// What was read of the body, if it is retained.
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
    /// `false`: it is too much, or something else than bytes.
    fn add(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(chunk) = frame.data_ref() else { return false };
        self.bytes += chunk.len();
        self.chunks.push_back(chunk.clone());
        self.bytes <= RETAINED_BYTES_MAX
    }
}

/// Tells whether a request was read to its end.
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
        // A chunk that was not added is missed by nobody: whoever adds it has panicked.
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body(&self) -> MutexGuard<'_, Option<Body>> {
        // Taking out the body is the only change, so it is valid after a panic elsewhere.
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request, until it is sent for the last time.
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

    /// How long a connection may have been idle to be used for this request.
    pub(super) fn idle_max(&self) -> Duration {
        if self.idempotent && !self.has_body { Duration::MAX } else { UNRETRYABLE_IDLE_MAX }
    }

    /// The request, to be sent on a connection that may be closed.
    pub(super) fn attempt(&self) -> Request<ReplayBody> {
        let parts = self.parts.clone().expect("it was not sent for the last time");
        Request::from_parts(parts, ReplayBody::new(&self.state))
    }

    /// Keeps what is sent of the body, as far as it is short, until [`forget`](Self::forget).
    pub(super) fn retain_body(&self) {
        if self.has_body {
            *self.state.retained() = Some(Retained::default());
        }
    }

    /// Keeps nothing any more: there is an answer.
    pub(super) fn release_body(&self) {
        if self.has_body {
            *self.state.retained() = None;
        }
    }

    /// Whether all of the request is there to be sent once more.
    pub(super) fn is_complete(&self) -> bool {
        self.parts.is_some() && self.state.body().is_some()
    }

    /// Whether the request may be sent again after it got no answer on `connection`.
    pub(super) fn may_retry(&self, connection: &Connection, failure: &SendError) -> bool {
        // hyper reads the body only after the head, and gives back what it has not begun.
        let body_unread = self.state.body().is_some();
        let incomplete = self.has_body && body_unread;
        body_unread && (failure.nothing_written || !connection.has_received() && (incomplete || self.idempotent))
    }

    /// Whether the request was read to its end.
    pub(super) fn is_sent(&self) -> bool {
        self.state.is_sent.load(Ordering::Relaxed)
    }

    /// The request, to be sent for the last time.
    pub(super) fn final_attempt(&mut self) -> Request<ReplayBody> {
        let parts = self.parts.take().expect("it is sent for the last time only once");
        Request::from_parts(parts, ReplayBody::new(&self.state))
    }
}

/// The body of a request. It stays where the next attempt finds it until it is first read.
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
        // After the last byte of a known length nobody polls again.
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
    /// Gives back what was retained, and the rest.
    fn drop(&mut self) {
        if self.retains
            && let Some(rest) = self.reading.take()
            && let Some(Retained { chunks, .. }) = self.state.retained().take()
        {
            *self.state.body() = Some(body::boxed(PrefixedBody { chunks, rest }));
        }
    }
}

/// A body of which the beginning was read before.
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
