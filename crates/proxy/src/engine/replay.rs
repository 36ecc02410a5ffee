//! A request that may have to be sent a second time.
//!
//! An idle connection may have been closed by the upstream a moment ago. A request that met one is sent again on a new
//! connection if that is sure to be no second time for the upstream: when nothing of it was written, or nothing came back and
//! either the upstream cannot have seen it whole, or seeing it twice does no harm. (RFC 9110, 9.2.2, forbids more.)
//!
//! For all other requests the risk is kept away: they do not take a connection that was idle for long enough to be one that a
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
use crate::engine::connection::Unsent;
use crate::engine::link::Link;
use crate::hop;

/// How long a connection may have been idle for a request that cannot be sent twice. Common servers close after 5 s; dialling
/// a guest costs a fraction of a millisecond.
const UNREPEATABLE_IDLE_MAX: Duration = Duration::from_secs(3);

/// Bytes of a body that are kept for a second attempt where the first one may meet a server that does not understand it. Few
/// requests are longer that servers answer before they are over.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// What the request and the bodies made of it share.
struct Slot {
    body: Mutex<Option<Body>>,
    /// What was read of the body, if it is kept.
    kept: Mutex<Option<Kept>>,
    /// The body was read to its end.
    is_sent: AtomicBool,
}

#[derive(Default)]
struct Kept {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Kept {
    /// `false`: it is too much, or something else than bytes.
    fn add(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(chunk) = frame.data_ref() else { return false };
        self.bytes += chunk.len();
        self.chunks.push_back(chunk.clone());
        self.bytes <= KEPT_BYTES_MAX
    }
}

/// Tells whether a request was read to its end.
pub(super) struct IsSent(Arc<Slot>);

impl std::fmt::Debug for IsSent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IsSent").field(&self.get()).finish()
    }
}

impl IsSent {
    pub(super) fn get(&self) -> bool {
        self.0.is_sent.load(Ordering::Relaxed)
    }
}

impl Slot {
    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        // A chunk that was not added is missed by nobody: whoever adds it has panicked.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body(&self) -> MutexGuard<'_, Option<Body>> {
        // Taking out the body is the only change, so it is valid after a panic elsewhere.
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request, until it is sent for the last time.
pub(super) struct Replay {
    parts: Option<request::Parts>,
    slot: Arc<Slot>,
    has_body: bool,
    idempotent: bool,
}

impl Replay {
    pub(super) fn new(parts: request::Parts, body: Body) -> Self {
        let idempotent = hop::is_idempotent(&parts.method);
        let has_body = !http_body::Body::is_end_stream(&body);
        let slot = Slot { body: Mutex::new(Some(body)), kept: Mutex::new(None), is_sent: AtomicBool::new(!has_body) };
        Self { parts: Some(parts), slot: Arc::new(slot), has_body, idempotent }
    }

    /// How long a connection may have been idle to be used for this request.
    pub(super) fn idle_max(&self) -> Duration {
        if self.idempotent && !self.has_body { Duration::MAX } else { UNREPEATABLE_IDLE_MAX }
    }

    /// The request, to be sent on a connection that may be closed.
    pub(super) fn first(&self) -> Request<ReplayBody> {
        let parts = self.parts.clone().expect("it was not sent for the last time");
        Request::from_parts(parts, ReplayBody::new(&self.slot))
    }

    /// Keeps what is sent of the body, as far as it is short, until [`forget`](Self::forget).
    pub(super) fn keep(&self) {
        if self.has_body {
            *self.slot.kept() = Some(Kept::default());
        }
    }

    /// Keeps nothing any more: there is an answer.
    pub(super) fn forget(&self) {
        if self.has_body {
            *self.slot.kept() = None;
        }
    }

    /// Whether all of the request is there to be sent once more.
    pub(super) fn is_whole(&self) -> bool {
        self.parts.is_some() && self.slot.body().is_some()
    }

    /// Whether the request may be sent again after it got no answer on `connection`.
    pub(super) fn may_repeat(&self, connection: &Link, unsent: &Unsent) -> bool {
        // hyper reads the body only after the head, and gives back what it has not begun.
        let body_kept = self.slot.body().is_some();
        let incomplete = self.has_body && body_kept;
        body_kept && (unsent.untouched || !connection.was_answered() && (incomplete || self.idempotent))
    }

    /// Whether the request was read to its end.
    pub(super) fn is_sent(&self) -> bool {
        self.slot.is_sent.load(Ordering::Relaxed)
    }

    /// The request, to be sent for the last time.
    pub(super) fn last(&mut self) -> Request<ReplayBody> {
        let parts = self.parts.take().expect("it is sent for the last time only once");
        Request::from_parts(parts, ReplayBody::new(&self.slot))
    }
}

/// The body of a request. It stays where the next attempt finds it until it is first read.
pub(super) struct ReplayBody {
    slot: Arc<Slot>,
    reading: Option<Body>,
    keeps: bool,
    ended: bool,
    size: SizeHint,
}

impl ReplayBody {
    fn new(slot: &Arc<Slot>) -> Self {
        let (ended, size) = match &*slot.body() {
            Some(body) => (http_body::Body::is_end_stream(body), http_body::Body::size_hint(body)),
            None => (true, SizeHint::with_exact(0)),
        };
        slot.is_sent.store(ended, Ordering::Relaxed);
        Self { slot: Arc::clone(slot), reading: None, keeps: slot.kept().is_some(), ended, size }
    }

    pub(super) fn is_sent(&self) -> IsSent {
        IsSent(Arc::clone(&self.slot))
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        let mut kept = self.slot.kept();
        self.keeps = kept.as_mut().is_some_and(|kept| kept.add(frame));
        if !self.keeps {
            *kept = None;
        }
    }
}

impl http_body::Body for ReplayBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let reading = this.reading.get_or_insert_with(|| this.slot.body().take().unwrap_or_else(body::empty));
        let frame = ready!(Pin::new(&mut *reading).poll_frame(cx));
        // After the last byte of a known length nobody polls again.
        if !matches!(frame, Some(Ok(_))) || http_body::Body::is_end_stream(reading) {
            this.slot.is_sent.store(true, Ordering::Relaxed);
        }
        if this.keeps
            && let Some(Ok(frame)) = &frame
        {
            this.keep(frame);
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
    /// Gives back what was kept, and the rest.
    fn drop(&mut self) {
        if self.keeps
            && let Some(rest) = self.reading.take()
            && let Some(Kept { chunks, .. }) = self.slot.kept().take()
        {
            *self.slot.body() = Some(body::boxed(Again { chunks, rest }));
        }
    }
}

/// A body of which the beginning was read before.
struct Again {
    chunks: VecDeque<Bytes>,
    rest: Body,
}

impl http_body::Body for Again {
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
        let kept = self.chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(kept + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(kept + upper);
        }
        hint
    }
}
