//! Forwarding of requests to upstreams.
//!
//! ```text
//! Engine ── map ──▶ Group (a sandbox's execution, or a node)      abort or close: all its connections close immediately
//!                     ├─ requests in flight (bounded)
//!                     └─ idle connections, by port (bounded)
//!
//! forward: admitted ─▶ idle or new connection ─▶ head sent ─▶ head received ─▶ response body streams to the caller
//!             │                    ▲                      │               │                    │
//!             │                    └── stale, once ───────┘               └─ 101: spliced      └─ ended: idle again
//!             └ too many: rejected
//! ```
//!
//! A connection speaks HTTP/1.1 or HTTP/2 (see [`protocol`]) and carries one request at a time.
//!
//! Bodies stream in both directions at the same time and are not buffered: a slow reader slows the writer down. An
//! upstream may respond before it has read the request. An abort is passed on: a client that disconnects closes the
//! upstream connection, and an upstream that breaks off ends the response body with an error instead of a proper end.
//!
//! The task that waits for a response or reads its body also polls the connection's I/O ([`connection_io`]). Tasks: one
//! for each connection whose request body is still being sent after the response has begun, those of [`http2`], one for
//! each upgraded stream, and one that closes connections idle for too long; the engine owns all of them. Locks are held
//! for a few map operations and for checking an idle socket, and never across an await.

mod connection;
mod connection_io;
mod exchange;
mod group;
mod http1;
mod http2;
mod protocol;
mod replay;
mod response;
mod response_limits;
mod splice;

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hearth_stdx::TaskSet;
use hearth_types::SandboxId;
use http::{Method, Request, Response};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::dial::{NewConnection, Protocol};
use crate::engine::group::{Group, Totals};
use crate::pages::Page;

/// Interval between checks of the idle connections.
const SWEEP_PERIOD: Duration = Duration::from_secs(15);
/// Closed groups that are remembered, so that a late request does not reopen one.
///
/// A late request was in flight when its sandbox was closed and arrives within moments.
const CLOSED_MAX: usize = 16_384;
/// Time for the engine's tasks to finish after they were aborted; each has to be polled only once.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Kind of server that an engine connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Servers inside sandboxes.
    ///
    /// They are arbitrary programs. Header names are sent in canonical case (`Host`), because some programs compare
    /// them case-sensitively. A connection that may hold unexpected bytes is not reused.
    Guests,
    /// Proxies of this crate, on nodes.
    Nodes,
}

/// Limits of an engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kind of server that requests are sent to.
    pub destination: Destination,
    /// Maximum number of requests and upgraded streams of one group in flight.
    pub requests_per_group_max: usize,
    /// Maximum number of requests and upgraded streams of all groups in flight.
    pub requests_max: usize,
    /// Maximum number of idle connections per key.
    pub idle_per_key_max: usize,
    /// Maximum number of idle connections for all keys; a guest may have thousands of ports.
    pub idle_max: usize,
    /// Time until an idle connection is closed. Must be shorter than the upstream's, or requests meet closed
    /// connections.
    pub idle_timeout: Duration,
}

impl Config {
    /// Returns the limits for a node, whose groups are sandboxes.
    ///
    /// The guest daemon serves hundreds of streams and closes connections that were idle for 640 s.
    #[must_use]
    pub fn for_guests() -> Self {
        Self {
            destination: Destination::Guests,
            requests_per_group_max: 1024,
            requests_max: 16 * 1024,
            idle_per_key_max: 32,
            idle_max: 4096,
            idle_timeout: Duration::from_secs(600),
        }
    }

    /// Returns the limits for an edge, whose groups are nodes.
    ///
    /// Nodes close idle connections later than this, see [`IDLE_TIMEOUT`](crate::serve::IDLE_TIMEOUT). The edge limits
    /// requests before it forwards them, so the engine does not.
    #[must_use]
    pub fn for_nodes() -> Self {
        Self {
            destination: Destination::Nodes,
            requests_per_group_max: usize::MAX >> 4,
            requests_max: usize::MAX >> 4,
            idle_per_key_max: 256,
            idle_max: 4096,
            idle_timeout: Duration::from_secs(600),
        }
    }
}

/// Destination of a connection. Requests with equal keys share connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key<G> {
    /// Unit that is counted, aborted and closed as a whole: a sandbox's execution, or a node.
    pub group: G,
    /// Port within the group, if its ports lead to different servers.
    pub port: Option<u16>,
}

/// Reason why the upstream sent no response.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The group or the engine was aborted or closed. The request may have had its effect.
    #[error("the upstream was closed")]
    Closed,
    /// The group or the engine has the maximum number of requests in flight. Nothing was sent.
    #[error("{limit} requests to the upstream are already in flight")]
    TooManyRequests {
        /// The maximum that was reached.
        limit: usize,
    },
    /// The connection could not be established. Nothing was sent.
    #[error("connecting to the upstream")]
    Dial(#[source] io::Error),
    /// The connection closed, or the received bytes are not HTTP. The request may have had its effect.
    #[error("waiting for the upstream's response")]
    NoResponse(#[source] hyper::Error),
    /// The upstream switched protocols although the request was not an upgrade request.
    #[error("the upstream switched protocols without an upgrade request")]
    UnexpectedUpgrade,
    /// The request is a `CONNECT`, which is always rejected. Nothing was sent.
    #[error("CONNECT requests are rejected")]
    Tunnel,
}

impl Error {
    /// Returns the error page for the client, for an upstream that is a port of this sandbox.
    #[must_use]
    pub fn page<'a>(&self, sandbox_id: &'a SandboxId, port: u16) -> Page<'a> {
        match self {
            Self::Closed => Page::NotFound { sandbox_id },
            Self::TooManyRequests { limit } => Page::TooManyConnections { sandbox_id, limit: *limit },
            Self::Dial(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Page::PortClosed { sandbox_id, port }
            }
            Self::Dial(_) | Self::NoResponse(_) | Self::UnexpectedUpgrade | Self::Tunnel => {
                Page::Unreachable { sandbox_id }
            }
        }
    }
}

/// Forwards requests to upstreams.
///
/// Cheap to clone: clones share connections and limits. When the last clone is dropped, all requests are aborted.
#[derive(Debug)]
pub struct Engine<G> {
    inner: Arc<Inner<G>>,
}

impl<G> Clone for Engine<G> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
struct Inner<G> {
    config: Config,
    groups: Mutex<Groups<G>>,
    totals: Arc<Totals>,
    tasks: TaskSet,
}

/// Value that lives as long as a forwarded request.
///
/// It is dropped when the request and its response, or the upgraded stream, have ended; its `Drop` undoes what the
/// caller counted or reserved.
pub type RequestGuard = Box<dyn Any + Send + Sync>;

/// Request to forward, with its upstream.
#[derive(Debug)]
pub struct UpstreamRequest<'a, G, D> {
    /// Selects the group that counts the request, and the connections that can be reused.
    pub key: &'a Key<G>,
    /// Opens a connection.
    ///
    /// Its argument is the newest HTTP version that the connection may negotiate, as TLS does. Called when no idle
    /// connection is available, and again if an idle one turns out to be closed.
    pub dial: D,
    /// Request as received, or as modified by the caller.
    pub request: Request<Body>,
    /// Dropped when the request is over.
    pub guard: Option<RequestGuard>,
}

#[derive(Debug)]
struct Groups<G> {
    open: HashMap<G, Arc<Group>>,
    /// Groups that stay closed, oldest first.
    closed: VecDeque<G>,
}

impl<G> Drop for Inner<G> {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl<G> Inner<G> {
    fn groups(&self) -> MutexGuard<'_, Groups<G>> {
        // Each critical section is a single step that leaves valid state, so a poisoned lock is usable.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Hash + Eq + Clone + Debug + Send + Sync + 'static> Engine<G> {
    /// Returns an engine without connections.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let groups = Mutex::new(Groups { open: HashMap::new(), closed: VecDeque::new() });
        let inner = Arc::new(Inner { config, groups, totals: Arc::default(), tasks: TaskSet::new() });
        inner.tasks.spawn("idle connections", sweep(Arc::downgrade(&inner), inner.tasks.token()));
        Self { inner }
    }

    /// Sends a request to an upstream and returns its response, whose body streams.
    ///
    /// The request is sent with the path, headers and body it has, except for headers that
    /// [end at a proxy](crate::headers). An upgrade request is passed on; on `101` both connections are spliced.
    ///
    /// Cancel safe in the sense of HTTP: the upstream sees its connection close.
    ///
    /// # Errors
    /// See [`Error`]. Errors after the head of the response are in its body.
    pub async fn forward<D, F>(&self, forwarded: UpstreamRequest<'_, G, D>) -> Result<Response<Body>, Error>
    where
        D: Fn(Protocol) -> F,
        F: Future<Output = io::Result<NewConnection>>,
    {
        let UpstreamRequest { key, dial, request, guard } = forwarded;
        if request.method() == Method::CONNECT {
            return Err(Error::Tunnel);
        }
        let group = self.group(&key.group).ok_or(Error::Closed)?;
        let admitted = Group::admit(&group, key.port, &self.inner.config, guard)?;
        let abort = admitted.abort_token();
        // Pinned here, because by value it would be stored twice.
        let exchange = pin!(self.exchange(admitted, dial, request));
        let outcome = abort.run_until_cancelled(exchange).await;
        match outcome {
            // An abort also shows as a broken connection.
            Some(Err(_)) | None if abort.is_cancelled() => Err(Error::Closed),
            Some(result) => result,
            None => Err(Error::Closed),
        }
    }

    /// Aborts all connections, streams and waiting requests of a group.
    ///
    /// Readers of response bodies get an error. Later requests to the group are served.
    pub fn abort(&self, group: &G) {
        let open = self.inner.groups().open.get(group).cloned();
        if let Some(group) = open {
            group.abort(self.inner.tasks.token().child_token());
        }
    }

    /// Aborts a group like [`abort`](Self::abort) and rejects its later requests with [`Error::Closed`].
    ///
    /// For groups that never return, such as an execution that has ended.
    pub fn close(&self, group: &G) {
        let open = {
            let mut groups = self.inner.groups();
            groups.closed.push_back(group.clone());
            if groups.closed.len() > CLOSED_MAX {
                groups.closed.pop_front();
            }
            groups.open.remove(group)
        };
        if let Some(group) = open {
            group.close();
        }
    }

    /// Aborts everything and waits until the tasks have finished. Later requests get [`Error::Closed`].
    pub async fn shutdown(&self) {
        self.inner.tasks.shutdown(STOP_TIMEOUT).await;
        self.inner.groups().open.clear();
    }

    /// Returns the number of idle connections of all groups.
    #[must_use]
    pub fn idle_connections(&self) -> usize {
        self.inner.groups().open.values().map(|group| group.idle_connections()).sum()
    }

    /// Returns the number of requests and upgraded streams of a group in flight.
    #[must_use]
    pub fn requests(&self, group: &G) -> usize {
        self.inner.groups().open.get(group).map_or(0, |group| group.requests())
    }

    fn group(&self, key: &G) -> Option<Arc<Group>> {
        let mut groups = self.inner.groups();
        if let Some(group) = groups.open.get(key) {
            return Some(Arc::clone(group));
        }
        // Only a group's first request gets here, so that a linear search of the closed groups is cheap enough.
        if groups.closed.contains(key) || self.inner.tasks.token().is_cancelled() {
            return None;
        }
        let group = Arc::new(Group::new(self.inner.tasks.token().child_token(), Arc::clone(&self.inner.totals)));
        groups.open.insert(key.clone(), Arc::clone(&group));
        Some(group)
    }
}

/// Closes connections that were idle for too long and removes unused groups.
async fn sweep<G: Hash + Eq>(engine: Weak<Inner<G>>, stop: CancellationToken) {
    let mut period = tokio::time::interval(SWEEP_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(period.tick()).await.is_some() {
        let Some(inner) = engine.upgrade() else { return };
        // Checking a group makes system calls, during which the map is not locked.
        let open: Vec<_> = inner.groups().open.values().cloned().collect();
        for group in open {
            group.drop_expired();
        }
        // Another reference belongs to a request that was or is about to be admitted.
        inner.groups().open.retain(|_, group| Arc::strong_count(group) > 1 || !group.is_empty());
    }
}
